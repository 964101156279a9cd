package gocronmutex_test

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	gocronmutex "github.com/gorm-dbmutex/dbmutex/contrib/gocron"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

type observer func(e dbmutex.Event)

func (o observer) Observe(ctx context.Context, e dbmutex.Event) context.Context {
	o(e)
	return ctx
}

// TestAnObserverThatPanicsChangesNoTick, as none changes a mutex.
func TestAnObserverThatPanicsChangesNoTick(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		handle, lines := gocronmutex.Logged(open())
		panics := dbmutex.WithObserver(observer(func(dbmutex.Event) { panic("the observer's") }))
		job, outcomes := newTickJob(t, atNoon(t, handle, 0, panics), func(context.Context) error { return nil })
		require.NoError(t, outcomes.run(t, job))
		requireLockError(t, outcomes.run(t, job), gocronmutex.ErrTickDone)
		require.Contains(t, next(t, lines), "an observer panicked")
	})
}

// TestWhatBreaksATick breaks neither the program nor the next try: a tick that has not run is not called done.
func TestWhatBreaksATick(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, open func() *dbmutex.DB) {
		var ends atomic.Int32 // the dbmutex.EventKind whose observer ends the goroutine
		exits := dbmutex.WithObserver(observer(func(e dbmutex.Event) {
			if e.Kind == dbmutex.EventKind(ends.Load()) {
				runtime.Goexit()
			}
		}))
		var panics atomic.Value // the verb whose statement does
		panics.Store("none")
		handle, lines := gocronmutex.Logged(open())
		fail := func(tx *gorm.DB) {
			if d.Verb(tx.Statement.SQL.String()) == panics.Load() {
				panic(errOwn)
			}
		}
		require.NoError(t, handle.Callback().Row().Before("gorm:row").Register("fail", fail))
		require.NoError(t, handle.Callback().Raw().Before("gorm:raw").Register("fail", fail))
		var runs atomic.Int32
		job, outcomes := newTickJob(t, atNoon(t, handle, 0, exits), func(context.Context) error { runs.Add(1); return nil })

		panics.Store("acquire")
		err := outcomes.run(t, job)
		requireLockError(t, err, gocron.ErrPanicRecovered)
		require.ErrorContains(t, err, errOwn.Error())
		require.Contains(t, next(t, lines), "tick_broken_test.go", "the stack")
		panics.Store("none")
		for _, kind := range []dbmutex.EventKind{dbmutex.AcquireBegan, dbmutex.AcquireEnded, dbmutex.LeaseBegan} {
			ends.Store(int32(kind))
			err := outcomes.run(t, job)
			requireLockError(t, err, err)
			require.ErrorContains(t, err, "has ended the goroutine")
		}
		require.Zero(t, runs.Load())
		ends.Store(int32(dbmutex.LeaseEnded))
		require.ErrorContains(t, outcomes.run(t, job), "has ended the goroutine")
		ends.Store(0)
		requireLockError(t, outcomes.run(t, job), gocronmutex.ErrTickDone)
		require.EqualValues(t, 1, runs.Load())
	})
}

// TestATickWhoseLeaseEndedBeforeTheRun does not begin there.
func TestATickWhoseLeaseEndedBeforeTheRun(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		began, before, goOn := make(outcomes, 10), make(chan bool), make(chan bool)
		var runs atomic.Int32
		locker := atNoon(t, open(), 0, dbmutex.WithTTL(200*time.Millisecond))
		job, err := locker.NewJob(start(t), rarely, "job", func(context.Context) error { runs.Add(1); return nil },
			began.listener(), gocron.WithEventListeners(gocron.BeforeJobRuns(func(uuid.UUID, string) {
				before <- true
				<-goOn
			})))
		require.NoError(t, err)
		require.NoError(t, job.RunNow())
		next(t, before)
		time.Sleep(250 * time.Millisecond)
		goOn <- true
		requireTimeout(t, next(t, began), "job@2030-01-01T12:00:00Z", false)
		require.Zero(t, runs.Load())
		other, outcomes := newTickJob(t, atNoon(t, open(), 0), func(context.Context) error { return nil })
		require.NoError(t, outcomes.run(t, other), "nobody has run it")
	})
}
