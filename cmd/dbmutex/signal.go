package main

import (
	"errors"
	"os"
	"slices"
)

var errSignalled = errors.New("a signal came")

// untilSignal cancels a wait when a signal comes that ends programs. The function that it returns ends this, and says which
// signal came, if any did.
func untilSignal(signals <-chan os.Signal, cancel func(cause error)) func() os.Signal {
	quit, got := make(chan struct{}), make(chan os.Signal, 1)
	go func() {
		defer close(got)
		for {
			select {
			case <-quit:
				return
			case sig := <-signals:
				if slices.Contains(endsWaiting, sig) {
					cancel(errSignalled)
					got <- sig
					return
				}
			}
		}
	}()
	return func() os.Signal {
		close(quit)
		return <-got
	}
}
