package dbmutex

import (
	"context"
	"iter"
	"math/rand/v2"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// Watch looks again after watchFirst, then after twice as long, up to watchLast, or watchFailing while the database fails.
// After a change it begins with watchFirst again.
const (
	watchFirst   = 25 * time.Millisecond
	watchLast    = 500 * time.Millisecond
	watchFailing = 5 * time.Second
)

// Watch tells who holds the mutex: first who does so at the beginning, then each change. nil, nil means that it is free; a
// lease that ran out holds nothing. Renewals are no change, and neither is a release after which MinHold keeps the mutex.
// The sequence ends with ctx, or with the handle's context, without another item.
//
// It looks with one SELECT: every 25 milliseconds after a change, then more and more rarely, up to every half second (0.25
// to 0.75 seconds), and when the lease that it has seen runs out. It also looks when this process releases the mutex and,
// with pgnotify, when another does. (With pgnotify this process then keeps its connection that listens.) It may miss what
// lasts no longer than its pause, such as a moment in which the mutex is free. With pgnotify an item may also be a waiter,
// for which the mutex is kept for a moment.
//
// A look that fails gives nil and the error, which is the database's; one that has taken 5 seconds counts as failed. Watch
// goes on, with pauses of up to 7.5 seconds. It tells only the first of several failures in a row. The next item then is
// the state, also if that has not changed. Two errors end the sequence: that of the handle or of the id, as for all verbs,
// and the database's if the pool is closed.
//
// Watch runs in the goroutine of the loop. Between two looks it keeps no connection of the pool, and after the loop nothing
// is left of it. It may be called again, and the sequence may be ranged over many times.
func (m *Mutex) Watch(ctx context.Context) iter.Seq2[*LeaseInfo, error] {
	return func(yield func(*LeaseInfo, error) bool) {
		if err := m.check(); err != nil {
			yield(nil, err)
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(m.ctx, cancel)()
		news, stop := queues.watch(m)
		defer stop()
		m.watch(ctx, news, yield)
	}
}

func (m *Mutex) watch(ctx context.Context, news <-chan struct{}, yield func(*LeaseInfo, error) bool) {
	var last sight
	known, failing := false, false
	for pause := watchFirst; ; {
		info, err := m.look(ctx)
		now, most := sightOf(info), watchLast
		switch {
		case locktable.Done(ctx) != nil || locktable.Done(m.ctx) != nil:
			return
		case err != nil:
			closed := m.closed()
			if (!failing || closed) && !yield(nil, err) || closed {
				return
			}
			known, failing, most = false, true, watchFailing
		case !known || !now.same(last):
			known, failing, last, pause = true, false, now, watchFirst
			if !yield(info, nil) {
				return
			}
		}
		rest := pause/2 + rand.N(pause)
		if now.left > 0 && now.left < rest {
			rest = now.left + time.Millisecond
		}
		if pause = min(2*pause, most); waitFor(ctx, news, rest) {
			pause = watchFirst
			_ = locktable.Sleep(ctx, pause) // as anybody may send notifications
		}
	}
}

// look sees the lease that holds the mutex, or nil.
func (m *Mutex) look(ctx context.Context) (*LeaseInfo, error) {
	limited, cancel := context.WithTimeout(ctx, locktable.Limit)
	defer cancel()
	info, err := m.see(limited, locktable.Live)
	if err != nil {
		return nil, m.failed(ctx, "watch", err)
	}
	return info, nil
}

// waitFor waits for news, for d at the most.
func waitFor(ctx context.Context, news <-chan struct{}, d time.Duration) (heard bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-news:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// sight is what Watch remembers of a lease; zero if there was none.
type sight struct {
	id, token int64  // together they are those of one lease, whose id may change while it is acquired
	lease     string // its id, but for the first letter, which MinHold changes
	left      time.Duration
}

func sightOf(info *LeaseInfo) (s sight) {
	if info != nil {
		s = sight{info.ID, info.Token, "", info.Left}
		if info.LeaseID != "" {
			s.lease = info.LeaseID[1:]
		}
	}
	return s
}

// same says whether both are of the same lease, or of none.
func (s sight) same(other sight) bool {
	return s.id == other.id && s.token == other.token || s.lease != "" && s.lease == other.lease
}
