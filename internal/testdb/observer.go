package testdb

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
)

// Panic is what an observer of DBMUTEX_TEST_OBSERVER=panics panics with.
const Panic = "the observer of all tests"

// blockEvery: an observer that blocks does so at one of so many events. The tests would take hours otherwise.
const blockEvery = 16

// bad are the observers that DBMUTEX_TEST_OBSERVER may ask for.
var bad = map[string]observer{
	"":       nil,
	"panics": func(context.Context, int64) context.Context { panic(Panic) },
	"blocks": func(ctx context.Context, n int64) context.Context {
		if n%blockEvery == 0 {
			time.Sleep(300 * time.Millisecond)
		}
		return ctx
	},
	"nil": func(context.Context, int64) context.Context { return nil },
	"cancelled": func(ctx context.Context, _ int64) context.Context {
		cancelled, cancel := context.WithCancel(ctx)
		cancel()
		return cancelled
	},
}

// observer is told of the n-th event.
type observer func(ctx context.Context, n int64) context.Context

var events atomic.Int64

// Observe counts the event.
func (o observer) Observe(ctx context.Context, _ dbmutex.Event) context.Context {
	return o(ctx, events.Add(1))
}

// observed are settings with the observer that the environment asks for, unless they have one.
func observed(settings dbmutex.Settings) dbmutex.Settings {
	name := os.Getenv("DBMUTEX_TEST_OBSERVER")
	o, known := bad[name]
	if !known {
		panic(fmt.Sprintf("testdb: DBMUTEX_TEST_OBSERVER=%q", name))
	}
	if o != nil && settings.Observer == nil {
		settings.Observer = o
	}
	return settings
}
