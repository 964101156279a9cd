package dbmutex_test

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// item is what Watch yields.
type item struct {
	info *dbmutex.LeaseInfo
	err  error
}

// watch ranges over Watch in the background until stop, which waits for its end. ended is closed then.
func watch(t *testing.T, db *dbmutex.DB) (items <-chan item, ended <-chan struct{}, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(limited(t))
	all, end := make(chan item, 100), make(chan struct{})
	go func() {
		defer close(end)
		for info, err := range db.Mutex("job").Watch(ctx) {
			all <- item{info, err}
		}
	}()
	stop = func() { cancel(); <-end }
	t.Cleanup(stop)
	return all, end, stop
}

// requireHolder waits for an item: of the lease, or for nil that the mutex is free.
func requireHolder(t *testing.T, items <-chan item, lease *dbmutex.Lease) {
	t.Helper()
	seen := soon(t, items)
	require.NoError(t, seen.err)
	if lease == nil {
		require.Nil(t, seen.info)
		return
	}
	require.NotNil(t, seen.info)
	require.Equal(t, "job", seen.info.LockID)
	require.False(t, seen.info.Expired())
}

func TestWatchTellsEachChangeOfHolder(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		items, _, stop := watch(t, open(t, d))
		requireHolder(t, items, nil)
		first := acquire(t, db, "job", dbmutex.WithHolder("the first"))
		requireHolder(t, items, first)
		for range 3 {
			require.NoError(t, first.Renew())
			time.Sleep(300 * time.Millisecond) // it looks meanwhile
		}
		require.Empty(t, items)
		require.NoError(t, first.Release())
		requireHolder(t, items, nil)

		crashed := acquire(t, db, "job", dbmutex.WithTTL(2*time.Second), dbmutex.WithHolder("crashed"))
		seen := soon(t, items)
		require.NoError(t, seen.err)
		require.Equal(t, "crashed", seen.info.Holder)
		require.Positive(t, seen.info.Left)
		requireHolder(t, items, nil)
		require.ErrorIs(t, crashed.Release(), dbmutex.ErrTimeout)

		resting := acquire(t, db, "job", dbmutex.WithMinHold(3*time.Second))
		requireHolder(t, items, resting)
		require.NoError(t, resting.Release()) // the mutex is still taken
		requireHolder(t, items, nil)
		require.Nil(t, currentHolder(t, db))
		stop()
		require.Empty(t, items)
	})
}

func currentHolder(t *testing.T, db *dbmutex.DB) *dbmutex.DBMutex {
	holder, err := db.Mutex("job").Holder()
	require.NoError(t, err)
	return holder
}

func TestWatchBeginsWithTheHolder(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		first := acquire(t, db, "job", dbmutex.WithHolder("the first"))
		next, stop := iterPull(db.Mutex("job").Watch(limited(t)))
		defer stop()
		seen := next()
		require.NoError(t, seen.err)
		require.Equal(t, "the first", seen.info.Holder)

		// Nothing looks between the items: so it does not see that the mutex was free.
		require.NoError(t, first.Release())
		acquire(t, db, "job", dbmutex.WithHolder("the second"))
		require.Equal(t, "the second", next().info.Holder)

		// The row of a lease that ran out may be there still.
		testdb.Expire(t, db, "job")
		require.Nil(t, next().info)
	})
}

func iterPull(all func(func(*dbmutex.LeaseInfo, error) bool)) (next func() item, stop func()) {
	items, goOn := make(chan item), make(chan bool)
	go func() {
		defer close(items)
		if !<-goOn {
			return
		}
		for info, err := range all {
			items <- item{info, err}
			if !<-goOn {
				return
			}
		}
	}()
	return func() item { goOn <- true; return <-items }, func() { goOn <- false; <-items }
}

func TestNothingStaysOfAWatch(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1)
		m := db.Mutex("another job")
		before := runtime.NumGoroutine()
		for name, end := range map[string]func(cancel context.CancelFunc) (goOn bool){
			"the loop breaks":        func(context.CancelFunc) bool { return false },
			"its context ends":       func(cancel context.CancelFunc) bool { cancel(); return true },
			"the loop's body panics": func(context.CancelFunc) bool { panic("the body's own") },
		} {
			ctx, cancel := context.WithCancel(limited(t))
			func() {
				defer func() { _ = recover() }()
				for info, err := range m.Watch(ctx) {
					require.NoError(t, err)
					require.Nil(t, info)
					watchers, _ := dbmutex.Watchers(m)
					require.Equal(t, 1, watchers)
					requireFree(t, db, "job") // the pool's only connection is free
					if !end(cancel) {
						break
					}
				}
			}()
			cancel()
			_, remembered := dbmutex.Watchers(m)
			require.False(t, remembered, name)
			free := func() bool { return pool.Stats().InUse == 0 } // the listener has had one for a moment
			require.Eventually(t, free, time.Minute, time.Millisecond, name)
		}
		for giveUp := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			require.True(t, time.Now().Before(giveUp), "goroutines are left")
		}
	})
}

func TestWatchEndsWithTheHandlesContext(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		ctx, cancel := context.WithCancel(limited(t))
		items, ended, _ := watch(t, db.WithContext(ctx))
		requireHolder(t, items, nil)
		cancel()
		soon(t, ended)
		require.Empty(t, items)
		for info, err := range db.Mutex("job").Watch(ctx) {
			require.Fail(t, "its context is done", "%v, %v", info, err)
		}
	})
}

func TestWatchGoesOnAfterAFailure(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		items, _, stop := watch(t, open(t, d))
		requireHolder(t, items, nil)
		for range 2 {
			require.NoError(t, db.Exec(`ALTER TABLE db_mutexes RENAME TO away`).Error)
			require.ErrorContains(t, soon(t, items).err, "run AutoMigrate")
			time.Sleep(500 * time.Millisecond) // it fails again
			require.Empty(t, items)
			require.NoError(t, db.Exec(`ALTER TABLE away RENAME TO db_mutexes`).Error)
			requireHolder(t, items, nil)
		}
		acquire(t, db, "job")
		require.NotNil(t, soon(t, items).info)
		stop()
		require.Empty(t, items)
	})
}

func TestWatchEndsAtAnErrorThatStays(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		closed := open(t, d)
		pool, err := closed.DB()
		require.NoError(t, err)
		require.NoError(t, pool.Close())
		for name, c := range map[string]struct {
			mutex *dbmutex.Mutex
			want  error
		}{
			"no id":         {db.Mutex(""), dbmutex.ErrInvalidLockID},
			"DryRun":        {db.Session(&gorm.Session{DryRun: true}).Mutex("job"), dbmutex.ErrDryRun},
			"no plugin":     {dbmutex.Wrap(d.Open(t)).Mutex("job"), dbmutex.ErrNotRegistered},
			"no mutex":      {nil, dbmutex.ErrNotRegistered},
			"a closed pool": {closed.Mutex("job"), nil},
		} {
			var errs []error
			for info, err := range c.mutex.Watch(limited(t)) {
				require.Nil(t, info, name)
				errs = append(errs, err)
			}
			require.Len(t, errs, 1, name)
			require.Error(t, errs[0], name)
			require.True(t, c.want == nil || errors.Is(errs[0], c.want), "%s: %v", name, errs[0])
		}
	})
}

func TestAWatcherHearsOfReleases(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		told, others := dbmutex.Watch(t, db.Mutex("job")), dbmutex.Watch(t, db.Mutex("another job"))
		hears := func() bool {
			return !d.Notifies || dbmutex.Hears(db.Mutex("job")) && dbmutex.Hears(db.Mutex("another job"))
		}
		require.Eventually(t, hears, time.Minute, time.Millisecond)
		told()
		others()
		lease := acquire(t, db, "job")
		require.False(t, told())
		require.NoError(t, lease.Release())
		require.True(t, told())
		acquire(t, db, "job")
		require.NoError(t, db.Mutex("job").ForceRelease())
		require.True(t, told())
		require.False(t, others())
	})
}

// The other process is another pool.
func TestAWatcherHearsOfReleasesElsewhere(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Notifies, func(t *testing.T, d *testdb.Database) {
		db, other := open(t, d), open(t, d)
		told := dbmutex.Watch(t, db.Mutex("job"))
		require.Eventually(t, func() bool { return dbmutex.Hears(db.Mutex("job")) }, time.Minute, time.Millisecond)
		told()
		requireFree(t, other, "job")
		require.Eventually(t, told, time.Minute, time.Millisecond)
	})
}
