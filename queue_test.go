package dbmutex_test

import (
	"context"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// A hand-on that is tried again finds the waiter's row. But the waiter may have got it from somebody else.
func TestAHandOnThatIsTriedAgainIsNoProof(t *testing.T) {
	t.Parallel()
	for name, failure := range map[string]error{"it failed": &sqlError{"40001"}, "nobody knows": io.ErrUnexpectedEOF} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			handOnTwice(t, failure)
		})
	}
}

func handOnTwice(t *testing.T, failure error) {
	db, pool := openFaulty(t, testdb.Postgres(t))
	direct := open(t, testdb.At(db.Name(), dsnOf(t, db)))
	var refuse atomic.Pointer[func() error]
	pool.refuse = func(statement string) error {
		if call := refuse.Load(); call != nil && strings.HasPrefix(statement, handOn) {
			refuse.Store(nil)
			return (*call)()
		}
		return nil
	}
	lease := acquire(t, db, "job", dbmutex.WithTTL(shortLease))
	requireEnds(t, lease.Context())
	other, err := direct.WithContext(limited(t)).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
	require.NoError(t, err)
	acquired := make(chan *dbmutex.Lease, 1)
	mutex := db.WithContext(limited(t)).Mutex("job", dbmutex.WithWait(5*time.Second))
	go func() {
		next, err := mutex.Acquire()
		if err != nil {
			t.Error(err)
		}
		acquired <- next
	}()
	require.Eventually(t, func() bool { return dbmutex.Receivable(mutex) }, time.Minute, time.Millisecond)
	failing := func() error {
		if err := other.Release(); err != nil {
			t.Error(err)
		}
		next := <-acquired // its time is over, and it asks by itself
		acquired <- next
		return failure
	}
	refuse.Store(&failing)
	requireTimeout(t, lease.Release(), "job", true)
	require.NoError(t, (<-acquired).Release())
}

func TestWaitersGetItInOrder(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		db = db.WithContext(limited(t))
		lease := acquire(t, db, "job")
		const n = 8
		var order []int
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				if err := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(func(context.Context) error {
					order = append(order, i)
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
			require.Eventually(t, func() bool { return dbmutex.Waiters(db.Mutex("job")) == i+1 }, time.Minute, time.Millisecond)
		}
		require.NoError(t, lease.Release())
		wg.Wait()
		require.Equal(t, []int{0, 1, 2, 3, 4, 5, 6, 7}, order)
	})
}

// hiddenPool is one that does not show what is beneath it.
type hiddenPool struct{ gorm.ConnPool }

func TestPoolsThatHideTheirDatabaseAreKeptApart(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		plugin := dbmutex.New(dbmutex.DefaultSettings())
		hidden := func() *dbmutex.DB {
			d := d.Another(t)
			db := d.OpenOn(t, hiddenPool{open(t, d).ConnPool})
			require.NoError(t, db.Use(plugin))
			return dbmutex.Wrap(db)
		}
		a, b := hidden(), hidden()
		inA, inB := acquire(t, a, "job"), acquire(t, b, "job")
		ctx, cancel := context.WithCancel(limited(t))
		waiting := make(chan error)
		go func() {
			_, err := a.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
			waiting <- err
		}()
		require.Eventually(t, func() bool { return dbmutex.Waiters(a.Mutex("job")) == 1 }, time.Minute, time.Millisecond)
		require.Zero(t, dbmutex.Waiters(b.Mutex("job")))
		require.NoError(t, inB.Release())
		requireHeld(t, a, "job")
		cancel()
		require.ErrorIs(t, <-waiting, context.Canceled)
		require.NoError(t, inA.Release())
	})
}

// handOn begins the statement by which a releaser hands the mutex to a waiter of its own process.
const handOn = "UPDATE \"db_mutexes\"\nSET id = DEFAULT"

// waiting starts a waiter, and returns when it waits and does not ask, so that it can be handed the mutex.
func waiting(t *testing.T, db *dbmutex.DB, opts ...dbmutex.Option) (acquired chan *dbmutex.Lease, failed chan error) {
	acquired, failed = make(chan *dbmutex.Lease, 1), make(chan error, 1)
	mutex := db.Mutex("job", append(opts, dbmutex.WithWait(dbmutex.Forever))...)
	go func() {
		lease, err := mutex.Acquire()
		acquired <- lease
		failed <- err
	}()
	require.Eventually(t, func() bool { return dbmutex.Receivable(mutex) }, time.Minute, time.Millisecond)
	return acquired, failed
}

func TestAReleaserHandsTheMutexOn(t *testing.T) {
	testdb.EachOf(t, testdb.Notifies, func(t *testing.T, d *testdb.Database) {
		db, pool := openFaulty(t, d)
		db = db.WithContext(limited(t))
		first := acquire(t, db, "job")
		acquired, failed := waiting(t, db, dbmutex.WithHolder("the next"), dbmutex.WithTTL(time.Hour))
		var statements atomic.Int32
		pool.setLose(func(statement string) error {
			statements.Add(1)
			if !strings.HasPrefix(statement, handOn) {
				t.Errorf("%s", statement)
			}
			return nil
		})
		require.NoError(t, first.Release())
		lease := <-acquired
		require.NoError(t, <-failed)
		pool.setLose(nil)
		require.EqualValues(t, 1, statements.Load())
		require.Greater(t, lease.Token(), first.Token())
		stored := row(t, db, "job")
		require.Equal(t, "the next", stored.Holder)
		require.Equal(t, lease.Token(), stored.ID)
		require.InDelta(t, time.Hour, stored.ExpiresAt.Sub(stored.CreationTime), float64(time.Second))
		require.NoError(t, lease.Context().Err())
		require.ErrorIs(t, first.Renew(), dbmutex.ErrTimeout)
		require.NoError(t, lease.Renew())
		require.NoError(t, lease.Release())
		require.Nil(t, row(t, db, "job"))
	})
}

func TestAReleaserHandsTheMutexOnWhoseAnswerIsLost(t *testing.T) {
	testdb.EachOf(t, testdb.Notifies, func(t *testing.T, d *testdb.Database) {
		db, pool := openFaulty(t, d)
		db = db.WithContext(limited(t))
		first := acquire(t, db, "job")
		acquired, failed := waiting(t, db)
		pool.setLose(func(statement string) error {
			if strings.HasPrefix(statement, handOn) {
				pool.lose = nil
				return io.ErrUnexpectedEOF
			}
			return nil
		})
		require.NoError(t, first.Release())
		lease := <-acquired
		require.NoError(t, <-failed)
		require.Equal(t, lease.Token(), row(t, db, "job").ID)
		require.NoError(t, lease.Release())
		require.Nil(t, row(t, db, "job"))
	})
}

func TestAWaiterThatIsGoneWhenItIsHandedTheMutex(t *testing.T) {
	testdb.EachOf(t, testdb.Notifies, func(t *testing.T, d *testdb.Database) {
		db, pool := openFaulty(t, d)
		first := acquire(t, db, "job")
		ctx, cancel := context.WithCancel(context.Background())
		_, failed := waiting(t, db.WithContext(ctx))
		pool.setLose(func(statement string) error {
			if strings.HasPrefix(statement, handOn) {
				pool.lose = nil
				cancel()
				require.ErrorIs(t, <-failed, context.Canceled, "it does not wait for the releaser")
			}
			return nil
		})
		require.NoError(t, first.Release())
		require.Nil(t, row(t, db, "job"))
	})
}

// What a waiter that is gone was handed is undone, whether the answer came or not, and without its MinHold.
func TestNothingIsLeftOfAWaiterThatIsGone(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Notifies, func(t *testing.T, d *testdb.Database) {
		for _, lost := range []error{nil, io.ErrUnexpectedEOF} {
			db, pool := openFaulty(t, d)
			var first *dbmutex.Lease
			var err error
			for handed := false; !handed; {
				first = acquire(t, db, "job")
				ctx, cancel := context.WithCancel(context.Background())
				t.Cleanup(cancel)
				acquired, failed := waiting(t, db.WithContext(ctx), dbmutex.WithMinHold(10*time.Minute))
				pool.setLose(func(statement string) error {
					if !strings.HasPrefix(statement, handOn) {
						return nil
					}
					if !handed {
						handed = true
						cancel()
						require.ErrorIs(t, <-failed, context.Canceled)
					}
					return lost
				})
				if err = first.Release(); !handed { // the waiter was asking in that moment, and had the mutex by itself
					lease := <-acquired
					require.NoError(t, <-failed)
					require.NoError(t, db.Mutex("job").ForceRelease())
					require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)
				}
			}
			if lost != nil {
				require.ErrorIs(t, err, lost)
				require.NoError(t, first.Release(), "it may be called again, and nobody overlapped")
			} else {
				require.NoError(t, err)
			}
			require.Nil(t, row(t, db, "job"))
		}
	})
}

func TestAReleaserThatPanicsTakesNoWaiterWithIt(t *testing.T) {
	testdb.EachOf(t, testdb.Notifies, func(t *testing.T, d *testdb.Database) {
		db, pool := openFaulty(t, d)
		first := acquire(t, db, "job")
		acquired, failed := waiting(t, db.WithContext(limited(t)))
		pool.setLose(func(statement string) error {
			if strings.HasPrefix(statement, handOn) {
				pool.lose = nil
				panic("a plugin's")
			}
			return nil
		})
		require.PanicsWithValue(t, "a plugin's", func() { _ = first.Release() })
		lease := <-acquired
		require.NoError(t, <-failed, "the hand-on had its effect")
		require.NoError(t, lease.Release())
	})
}

func TestAMutexThatCannotBeHandedOn(t *testing.T) {
	testdb.EachOf(t, testdb.Notifies, func(t *testing.T, d *testdb.Database) {
		db, pool := openFaulty(t, d)
		db = db.WithContext(limited(t))
		first := acquire(t, db, "job")
		acquired, failed := waiting(t, db)
		pool.setLose(func(statement string) error {
			if strings.HasPrefix(statement, handOn) { // it has its effect, against what it says
				return &sqlError{"42501"}
			}
			return nil
		})
		require.ErrorContains(t, first.Release(), "42501")
		lease := <-acquired
		require.NoError(t, <-failed, "the waiter finds its own lease by asking")
		pool.setLose(nil)
		require.ErrorIs(t, first.Release(), dbmutex.ErrTimeout)
		require.NoError(t, lease.Release())

		first = acquire(t, db, "job")
		acquired, failed = waiting(t, db)
		require.NoError(t, db.Mutex("job").ForceRelease())
		require.ErrorIs(t, first.Release(), dbmutex.ErrTimeout)
		lease = <-acquired
		require.NoError(t, <-failed)
		require.NoError(t, lease.Release())
	})
}

func TestAWaiterWhoseTimeIsOverWhenItIsHandedTheMutex(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Notifies, func(t *testing.T, d *testdb.Database) {
		for name, lost := range map[string]error{"in the end": nil, "in vain": &sqlError{"42501"}} {
			db, pool := openFaulty(t, d)
			db = db.WithContext(limited(t))
			first := acquire(t, db, "job")
			acquired, failed := make(chan *dbmutex.Lease, 1), make(chan error, 1)
			mutex := db.Mutex("job", dbmutex.WithWait(2*time.Second))
			go func() {
				lease, err := mutex.Acquire()
				acquired <- lease
				failed <- err
			}()
			require.Eventually(t, func() bool { return dbmutex.Receivable(mutex) }, time.Minute, time.Millisecond)
			pool.setLose(func(statement string) error {
				if strings.HasPrefix(statement, handOn) {
					pool.lose = nil
					time.Sleep(3 * time.Second)
					return lost
				}
				return nil
			})
			_ = first.Release()
			lease := <-acquired
			require.NoError(t, <-failed, name)
			require.NoError(t, lease.Release())
			require.Nil(t, row(t, db, "job"))
		}
	})
}

func TestALeaseIsHandedToAWaiterOnce(t *testing.T) {
	testdb.EachOf(t, testdb.Notifies, func(t *testing.T, d *testdb.Database) {
		db := open(t, d).WithContext(limited(t))
		mutex := db.Mutex("job")
		first := acquire(t, db, "job")
		w := dbmutex.JoinAsHead(t, mutex)
		require.NoError(t, first.Release())
		require.NoError(t, mutex.ForceRelease()) // the waiter has not noticed yet that it had the mutex
		second := acquire(t, db, "job")
		require.NoError(t, second.Release())
		require.Nil(t, row(t, db, "job"))
		require.ErrorIs(t, w().Release(), dbmutex.ErrTimeout)
	})
}

// What wakes the head of a queue cannot be seen from outside, as the head also wakes by itself.
func TestWhatWakesAQueue(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		mutex := db.Mutex("job")
		woken, otherWoken := dbmutex.HeadOf(t, mutex), dbmutex.HeadOf(t, db.Mutex("other"))
		requireWoken := func(want bool) {
			t.Helper()
			require.Equal(t, want, woken())
			require.False(t, otherWoken())
		}
		requireWoken(false)

		lease, err := mutex.Acquire()
		require.NoError(t, err)
		requireWoken(false)
		require.NoError(t, lease.Release())
		requireWoken(true)
		require.NoError(t, mutex.Transaction(func(*gorm.DB) error { return nil }))
		requireWoken(true)
		require.NoError(t, mutex.ForceRelease())
		requireWoken(true)
		if d.Notifies {
			dbmutex.Notify(mutex)
			requireWoken(true)
		}
	})
}

func TestAHandOnThatIsRefusedFreesTheMutex(t *testing.T) {
	testdb.EachOf(t, testdb.Notifies, func(t *testing.T, d *testdb.Database) {
		db := open(t, d).WithContext(limited(t))
		require.NoError(t, db.Exec(`ALTER TABLE db_mutexes ALTER holder TYPE varchar(64)`).Error)
		first := acquire(t, db, "job")
		_, failed := waiting(t, db, dbmutex.WithHolder(strings.Repeat("x", 100)))
		require.NoError(t, first.Release(), "it is the waiter's fault")
		require.ErrorContains(t, <-failed, "22001")
		requireFree(t, db, "job")
	})
}
