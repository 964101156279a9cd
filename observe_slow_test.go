package dbmutex_test

import (
	"context"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// tellers is how many goroutines of leases there are that tell observers.
func tellers() int {
	stacks := make([]byte, 1<<20)
	for n := runtime.Stack(stacks, true); ; n = runtime.Stack(stacks, true) {
		if n < len(stacks) {
			return strings.Count(string(stacks[:n]), "dbmutex.(*Lease).tellQueued(")
		}
		stacks = make([]byte, 2*len(stacks))
	}
}

func requireNoTellers(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return tellers() == 0 }, time.Minute, time.Millisecond)
}

// heldUp is an Observer that waits at the lease's own events until it is let go.
type heldUp struct {
	recorder
	inside atomic.Int32
	letGo  chan struct{}
}

func (h *heldUp) Observe(ctx context.Context, e dbmutex.Event) context.Context {
	switch e.Kind {
	case dbmutex.LeaseRenewed, dbmutex.RenewalFailed, dbmutex.LeaseRanOut, dbmutex.LeaseLost:
		h.inside.Add(1)
		<-h.letGo
	}
	return h.recorder.Observe(ctx, e)
}

func TestASlowObserverHoldsUpNobodyElse(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		slow := &heldUp{letGo: make(chan struct{})}
		const n = 20
		lease := acquire(t, db, "job", dbmutex.WithObserver(slow))
		require.Zero(t, tellers(), "nothing is to be told yet")
		for range n {
			require.NoError(t, lease.Renew())
		}
		require.Eventually(t, func() bool { return slow.inside.Load() == 1 }, time.Minute, time.Millisecond)
		require.Equal(t, 1, tellers(), "one goroutine tells")
		require.NoError(t, lease.Release())
		ended := slow.last(t, dbmutex.LeaseEnded)
		require.Equal(t, dbmutex.OutcomeReleased, ended.Outcome)
		require.Equal(t, n-1, ended.Dropped, "all but the one that it is at")
		close(slow.letGo)
		requireNoTellers(t)
		require.EqualValues(t, 1, slow.inside.Load(), "nothing of the lease is told after its end")

		quick := &recorder{}
		lease = acquire(t, db, "job", dbmutex.WithObserver(quick))
		require.NoError(t, lease.Renew())
		require.NoError(t, lease.Release())
		require.Zero(t, quick.last(t, dbmutex.LeaseEnded).Dropped)
		require.Len(t, quick.all(), 5)
	})
}

func TestNoneOfManyObserversIsToldAfterTheEnd(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		slow, quick := &heldUp{letGo: make(chan struct{})}, &recorder{}
		lease := acquire(t, db, "job", dbmutex.WithObserver(dbmutex.Observers(slow, quick)))
		require.NoError(t, lease.Renew())
		require.Eventually(t, func() bool { return slow.inside.Load() == 1 }, time.Minute, time.Millisecond)
		require.NoError(t, lease.Release())
		close(slow.letGo)
		requireNoTellers(t)
		require.Equal(t, uneventful, quick.told("job"))
	})
}

// What is queued is told in its order, and no more than that is kept.
func TestAtMostEightEventsOfALeaseWait(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		slow := &heldUp{letGo: make(chan struct{})}
		lease := acquire(t, db, "job", dbmutex.WithObserver(slow))
		require.NoError(t, lease.Renew())
		require.Eventually(t, func() bool { return slow.inside.Load() == 1 }, time.Minute, time.Millisecond)
		var until []time.Time
		for range 20 {
			require.NoError(t, lease.Renew())
			at, _ := lease.ExpiresAt()
			until = append(until, at)
		}
		close(slow.letGo)
		require.NoError(t, lease.Release())
		require.Equal(t, 12, slow.last(t, dbmutex.LeaseEnded).Dropped)
		var told []time.Time
		for _, e := range slow.all() {
			if e.Kind == dbmutex.LeaseRenewed {
				told = append(told, e.ExpiresAt)
			}
		}
		require.Len(t, told, 9)
		require.Equal(t, until[:8], told[1:])
		requireNoTellers(t)
	})
}

// The lease is renewed while LeaseBegan is being told, and what happens then is told after it.
func TestALeaseLivesWhileItsBeginningIsTold(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		db := open(t, d)
		for way, run := range map[string]func(m *dbmutex.Mutex) error{
			"Do":          func(m *dbmutex.Mutex) error { return m.Do(func(ctx context.Context) error { return ctx.Err() }) },
			"Transaction": func(m *dbmutex.Mutex) error { return m.Transaction(func(*gorm.DB) error { return nil }) },
		} {
			seen := &recorder{}
			other := d.Registered(t, dbmutex.DefaultSettings())
			slow := observe(func(ctx context.Context, e dbmutex.Event) context.Context {
				if e.Kind == dbmutex.AcquireEnded || e.Kind == dbmutex.LeaseBegan {
					first := row(t, other, way)
					require.Eventually(t, func() bool { return row(t, other, way).ExpiresAt.After(*first.ExpiresAt) },
						time.Minute, 10*time.Millisecond, way)
				}
				return seen.Observe(ctx, e)
			})
			m := db.Mutex(way, dbmutex.WithObserver(slow), dbmutex.WithTTL(3*time.Second), dbmutex.WithRenewal())
			require.NoError(t, run(m), way)
			told := seen.told(way)
			require.Equal(t, uneventful[:3], told[:3])
			require.Equal(t, "lease renewed", told[3], way)
			require.Equal(t, uneventful[3], told[len(told)-1])
		}
		requireNoTellers(t)
	})
}

func TestNoGoroutineTellsAboutALeaseThatIsForgotten(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		seen := &recorder{}
		lease, err := db.Mutex("job", dbmutex.WithObserver(seen), dbmutex.WithTTL(10*time.Millisecond)).Acquire()
		require.NoError(t, err)
		requireEnds(t, lease.Context())
		seen.waitFor(t, dbmutex.LeaseRanOut, 1)
		requireNoTellers(t)
	})
}

// A lease may be released by the observer itself, at any of its events.
func TestAnObserverMayReleaseTheLease(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		for _, kind := range []dbmutex.EventKind{dbmutex.LeaseBegan, dbmutex.LeaseRenewed, dbmutex.LeaseEnded} {
			released := make(chan error, 1)
			seen := &recorder{}
			releases := observe(func(ctx context.Context, e dbmutex.Event) context.Context {
				if e.Kind == kind {
					lease, _ := dbmutex.LeaseFrom(ctx)
					released <- lease.Release()
				}
				return seen.Observe(ctx, e)
			})
			lease, err := db.Mutex("job", dbmutex.WithObserver(releases)).Acquire()
			require.NoError(t, err)
			if kind == dbmutex.LeaseRenewed {
				require.NoError(t, lease.Renew())
			} else {
				require.NoError(t, lease.Release())
			}
			require.NoError(t, <-released)
			require.NoError(t, lease.Release())
			seen.waitFor(t, dbmutex.LeaseEnded, 1)
			require.Equal(t, 1, strings.Count(strings.Join(seen.told("job"), ";"), "lease ended: released"))
		}
		requireNoTellers(t)
	})
}

func TestWithoutAnObserverNothingIsSpentOnIt(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		allocations := func(o dbmutex.Observer) float64 {
			return testing.AllocsPerRun(200, func() {
				lease, err := db.Mutex("job", dbmutex.WithObserver(o)).Acquire()
				require.NoError(t, err)
				require.NoError(t, lease.Release())
			})
		}
		without := allocations(nil)
		idle := allocations(observe(func(ctx context.Context, _ dbmutex.Event) context.Context { return ctx }))
		t.Logf("%v allocations a cycle without an observer, %v with one that does nothing", without, idle)
		require.Less(t, without, idle)
		require.LessOrEqual(t, idle, without+8)
		require.Zero(t, tellers())
	})
}
