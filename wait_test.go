package dbmutex_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestWaitRunsOut(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		acquire(t, db, "job", dbmutex.WithHolder("the holder"))
		var wg sync.WaitGroup
		for range 3 { // those that never come to ask learn who holds it, too
			wg.Go(func() {
				_, err := db.Mutex("job", dbmutex.WithWait(100*time.Millisecond)).Acquire()
				var held *dbmutex.HeldError
				if !errors.As(err, &held) || held.Holder != "the holder" {
					t.Errorf("%v", err)
				}
			})
		}
		wg.Wait()
	})
}

func TestAShortWaitAsksOnce(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		for range 50 {
			require.NoError(t, db.Mutex("free", dbmutex.WithWait(1)).Do(nothing))
		}
	})
}

func TestWaitEndsWithTheContext(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		acquire(t, db, "job")
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		_, err := db.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
	})
}

func TestWaitTakesOverAnExpiredLease(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		crashed := acquire(t, db, "job", dbmutex.WithTTL(50*time.Millisecond))
		lease, err := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
		require.NoError(t, err)
		require.NoError(t, lease.Release())
		require.ErrorIs(t, crashed.Release(), dbmutex.ErrTimeout)
	})
}

func TestAThousandWaitersCancelledAtOnce(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		lease := acquire(t, db, "job")
		before := runtime.NumGoroutine()
		ctx, cancel := context.WithCancel(context.Background())
		var cancelled atomic.Int32
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				_, err := db.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
				if errors.Is(err, context.Canceled) {
					cancelled.Add(1)
				}
			})
		}
		require.Eventually(t, func() bool { return dbmutex.Waiters(db.Mutex("job")) == 1000 }, time.Minute, time.Millisecond)
		cancel()
		wg.Wait()
		require.EqualValues(t, 1000, cancelled.Load())
		require.NoError(t, lease.Release())
		require.Nil(t, row(t, db, "job"), "none acquired afterwards")
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxIdleConns(-1) // pgx may have left a goroutine with one
		for giveUp := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			require.True(t, time.Now().Before(giveUp), "goroutines are left")
		}
	})
}

func TestClosingThePoolEndsAWait(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		acquire(t, open(t, d), "job")
		db := open(t, d)
		pool, err := db.DB()
		require.NoError(t, err)
		failed := make(chan error, 1)
		go func() {
			_, err := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
			failed <- err
		}()
		require.Eventually(t, func() bool { return dbmutex.Waiters(db.Mutex("job")) == 1 }, time.Minute, time.Millisecond)
		require.NoError(t, pool.Close())
		select {
		case err := <-failed:
			require.ErrorContains(t, err, "database is closed")
			require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
		case <-time.After(time.Minute):
			require.Fail(t, "it hangs")
		}
	})
}

func TestADoneContextReturnsAtOnce(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1)
		requireFree(t, db, "job")
		ctx, cancel := context.WithCancel(context.Background())
		require.NoError(t, db.Gorm.Connection(func(*gorm.DB) error { // there is no other connection
			time.AfterFunc(20*time.Millisecond, cancel)
			_, err := db.WithContext(ctx).Mutex("job").Acquire()
			require.ErrorIs(t, err, context.Canceled)
			return nil
		}))
	})
}

func TestACancelledTryKeepsItsConnection(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		db := open(t, d)
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1)
		requireFree(t, db, "job")
		for _, statement := range d.Delay {
			require.NoError(t, db.Exec(statement).Error)
		}
		before := session(t, db)
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		_, err = db.WithContext(ctx).Mutex("job", dbmutex.WithoutTTL()).Acquire()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Nil(t, row(t, db, "job"))
		require.Equal(t, before, session(t, db))
	})
}
