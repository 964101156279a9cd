package dbmutex_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/wake"
)

// queueFor has so many wait for a semaphore, each for a permit that it keeps until letGo.
func queueFor(t *testing.T, s *dbmutex.Semaphore, waiters int) (acquired <-chan *dbmutex.Lease) {
	t.Helper()
	leases := make(chan *dbmutex.Lease, waiters)
	before := dbmutex.Waiters(dbmutex.MutexOf(s))
	for range waiters {
		go func() {
			lease, err := s.Acquire()
			if err != nil {
				t.Error(err)
			}
			leases <- lease
		}()
	}
	all := func() bool { return dbmutex.Waiters(dbmutex.MutexOf(s)) == before+waiters }
	require.Eventually(t, all, time.Minute, time.Millisecond)
	return leases
}

func TestWaitersOfASemaphoreAreServed(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		const n = 3
		s := db.WithContext(limited(t)).Semaphore("api", n, dbmutex.WithWait(dbmutex.Forever))
		other := open(t, d).WithContext(limited(t)).Semaphore("api", n, dbmutex.WithWait(dbmutex.Forever))
		held := permits(t, s, n)
		here, there := queueFor(t, s, 2*n), queueFor(t, other, 2*n)
		for _, lease := range held { // all at once
			require.NoError(t, lease.Release())
		}
		for range 4 * n {
			select {
			case lease := <-here:
				require.NoError(t, lease.Release())
			case lease := <-there:
				require.NoError(t, lease.Release())
			}
		}
		require.Empty(t, slotsOf(t, s))
	})
}

func TestTheNextWaiterOfASemaphoreAsksAtOnce(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		opts := []dbmutex.Option{dbmutex.WithWait(dbmutex.Forever)}
		m, s := db.Mutex("api", opts...), db.Semaphore("api", 2, opts...)
		for range 3 { // the third is served by a release
			if len(slotsOf(t, s)) == 2 {
				require.NoError(t, s.ForceRelease())
			}
			permit(t, s)
			require.LessOrEqual(t, dbmutex.FirstPause(dbmutex.MutexOf(s)), 32*time.Millisecond, "others may go first for so long")
		}
		_, err := m.Acquire()
		require.NoError(t, err)
		require.Greater(t, dbmutex.FirstPause(m), 32*time.Millisecond, "the release is to reach it")
	})
}

func TestAWaiterSeesThatAPermitIsAnother(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		s := db.Semaphore("api", 2, dbmutex.WithTTL(time.Hour))
		leases := permits(t, s, 2)
		before, left := dbmutex.SeenBy(t, s)
		require.NotZero(t, before)
		require.Positive(t, left)
		require.LessOrEqual(t, left, time.Hour)
		for _, lease := range leases {
			require.NoError(t, lease.Renew())
			now, _ := dbmutex.SeenBy(t, s)
			require.Equal(t, before, now, "it is the same, and may not be the one that ends first any more")
		}
		for _, lease := range leases {
			require.NoError(t, lease.Release())
			permit(t, s)
			now, _ := dbmutex.SeenBy(t, s)
			require.NotEqual(t, before, now)
			before = now
		}
	})
}

func TestAReleasedPermitWakesTheHead(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		s := db.Semaphore("api", 2)
		first, second := permit(t, s), permit(t, s)
		woken, asleep := dbmutex.HeadOf(t, dbmutex.MutexOf(s)), dbmutex.HeadOf(t, db.Mutex("api"))
		require.NoError(t, first.Release())
		require.True(t, woken())
		require.NoError(t, db.Gorm.Transaction(second.ReleaseIn))
		require.NoError(t, second.Release())
		require.True(t, woken())
		permit(t, s)
		require.NoError(t, s.ForceRelease())
		require.True(t, woken())
		require.NoError(t, s.Do(nothing))
		require.True(t, woken())
		require.False(t, asleep(), "it waits for the mutex of that id")
		require.NoError(t, db.Mutex("api").Do(nothing))
		require.True(t, asleep())
		require.False(t, woken())
	})
}

func TestAPermitThatIsReleasedElsewhereWakesTheHead(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Notifies, func(t *testing.T, d *testdb.Database) {
		db, elsewhere := open(t, d), open(t, d)
		s := db.Semaphore("api", 2)
		there := permits(t, elsewhere.Semaphore("api", 3), 3)
		acquire(t, db, "job")
		letListen(t, db)
		woken, asleep := dbmutex.HeadOf(t, dbmutex.MutexOf(s)), dbmutex.HeadOf(t, db.Mutex("api"))
		for _, lease := range there { // whichever slot
			require.NoError(t, lease.Release())
			require.Eventually(t, woken, time.Minute, time.Millisecond)
		}
		require.NoError(t, elsewhere.Mutex("api").Do(nothing))
		require.Eventually(t, asleep, time.Minute, time.Millisecond)
		require.False(t, woken())
	})
}

// Nobody hands a permit on, or keeps one for others: whoever asks may find another slot free.
func TestAPermitIsNotHandedOn(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		s := db.Semaphore("api", 1)
		lease := permit(t, s)
		handed := dbmutex.JoinAsHead(t, dbmutex.MutexOf(s))
		require.NoError(t, lease.Release())
		require.Nil(t, handed())
		require.Empty(t, slotsOf(t, s))
	})
}

// The waiters of two processes find the gaps that the others leave, also if nobody hears of releases.
func TestWaitersThatPollForASemaphoreAreServed(t *testing.T) {
	listen := wake.Listen
	wake.Listen = nil
	t.Cleanup(func() { wake.Listen = listen })
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		ctx, stop := context.WithCancel(limited(t))
		var wg sync.WaitGroup
		t.Cleanup(func() { stop(); wg.Wait() })
		for range 4 { // which want more than there is
			s := db.WithContext(ctx).Semaphore("api", 2, dbmutex.WithWait(dbmutex.Forever))
			wg.Go(func() {
				for ctx.Err() == nil {
					_ = s.Do(func(context.Context) error {
						time.Sleep(10 * time.Millisecond)
						return nil
					})
				}
			})
		}
		waiter := open(t, d).WithContext(limited(t)).Semaphore("api", 2, dbmutex.WithWait(dbmutex.Forever))
		for range 3 {
			require.NoError(t, waiter.Do(nothing))
		}
	})
}

func TestAWaiterOfASemaphoreGivesUp(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		permits(t, db.Semaphore("api", 2, dbmutex.WithHolder("somebody")), 2)
		dbmutex.HeadOf(t, dbmutex.MutexOf(db.Semaphore("api", 2))) // the waiters below ask only when their time is over
		for _, s := range []*dbmutex.Semaphore{
			db.Semaphore("api", 2, dbmutex.WithWait(10*time.Millisecond)),
			db.Semaphore("api", 1, dbmutex.WithWait(10*time.Millisecond)),
		} {
			held := requireFull(t, s)
			require.Equal(t, "somebody", held.Holder)
			require.Equal(t, "api", held.LockID)
		}
		free := permit(t, db.Semaphore("api", 3, dbmutex.WithWait(10*time.Millisecond)))
		require.Equal(t, 3, free.Slot(), "who does not come to its turn is refused no slot that is free")
		require.NoError(t, free.Release())
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		_, err := db.WithContext(ctx).Semaphore("api", 2, dbmutex.WithWait(dbmutex.Forever)).Acquire()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, `wait for "api"`)
		require.Len(t, slotsOf(t, db.Semaphore("api", 2)), 2)
	})
}
