package dashboard

import (
	"context"
	"sync"
	"time"
)

// manyKept is how many answers a cache keeps before it throws away those that are not fresh.
const manyKept = 100

// cache shares answers among all who ask the same at about the same time.
type cache[K comparable, T any] struct {
	fresh time.Duration
	ask   func(K) (T, error)

	mu    sync.Mutex
	asked map[K]*answer[T]
}

// answer is what the database says, once done is closed.
type answer[T any] struct {
	done  chan struct{}
	value T
	err   error
	at    time.Time  // when it came
	last  *answer[T] // if err is set: the last answer without an error, or nil
}

func newCache[K comparable, T any](fresh time.Duration, ask func(K) (T, error)) *cache[K, T] {
	return &cache[K, T]{fresh: fresh, ask: ask, asked: map[K]*answer[T]{}}
}

// get is the answer that is fresh, or on its way.
func (c *cache[K, T]) get(key K) *answer[T] {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.asked[key]
	if before != nil && !c.old(before) {
		return before
	}
	if len(c.asked) >= manyKept {
		for key, a := range c.asked {
			if c.old(a) {
				delete(c.asked, key)
			}
		}
	}
	a := &answer[T]{done: make(chan struct{})}
	c.asked[key] = a
	go func() {
		defer close(a.done)
		a.value, a.err = c.ask(key)
		a.at = time.Now()
		if a.err != nil && before != nil {
			a.last = before.good()
		}
	}()
	return a
}

// old says whether the answer has been there for too long. Errors age as other answers do.
func (c *cache[K, T]) old(a *answer[T]) bool { return a.isDone() && time.Since(a.at) >= c.fresh }

// forget makes everybody ask anew, and nobody get an answer to what was asked before.
func (c *cache[K, T]) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.asked)
}

func (a *answer[T]) isDone() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// wait is false if who asks does not wait any more.
func (a *answer[T]) wait(ctx context.Context) bool {
	select {
	case <-a.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// good is the answer, or the last one without an error, or nil.
func (a *answer[T]) good() *answer[T] {
	if a.err == nil {
		return a
	}
	return a.last
}

// age is how long ago the answer came.
func (a *answer[T]) age() time.Duration { return time.Since(a.at) }
