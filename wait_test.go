package dbmutex_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
	_ "github.com/gorm-dbmutex/dbmutex/pgnotify"
)

func TestWaitRunsOut(t *testing.T) {
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
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		for range 50 {
			require.NoError(t, db.Mutex("free", dbmutex.WithWait(1)).Do(nothing))
		}
	})
}

func TestWaitEndsWithTheContext(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		acquire(t, db, "job")
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		_, err := db.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
	})
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

func TestWaitTakesOverAnExpiredLease(t *testing.T) {
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

// The other process is another pool: neither knows of the other's queue.
func TestWaitersListenForOtherProcesses(t *testing.T) {
	d := testdb.Postgres(t)
	db, other := open(t, d), open(t, d)
	lease := acquire(t, db, "job")
	ctx := limited(t)
	acquired := make(chan error, 1)
	go func() {
		lease, err := other.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
		if err == nil {
			err = lease.Release()
		}
		acquired <- err
	}()
	listening := func() bool {
		var listening []string
		require.NoError(t, db.Raw(`SELECT query FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND client_port IS NOT NULL AND datname = current_database()`).Scan(&listening).Error)
		return len(listening) > 0
	}
	require.Eventually(t, listening, time.Minute, time.Millisecond)
	require.NoError(t, lease.Release())
	require.NoError(t, <-acquired)
	require.Eventually(t, func() bool { return !listening() }, time.Minute, time.Millisecond, "the connection ends with the last waiter")
}

// compete runs for a mutex with three goroutines until the handle's context is done.
func compete(db *dbmutex.DB, process string) error {
	ctx := db.Statement.Context
	failed := make(chan error, 3)
	for range cap(failed) {
		go func() {
			for {
				err := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(func(ctx context.Context) error {
					time.Sleep(2 * time.Millisecond)
					return db.WithContext(ctx).Exec(`INSERT INTO runs VALUES (?)`, process).Error
				})
				if ctx.Err() != nil {
					err = nil
				}
				if err != nil || ctx.Err() != nil {
					failed <- err
					return
				}
			}
		}()
	}
	var err error
	for range cap(failed) {
		err = errors.Join(err, <-failed)
	}
	return err
}

func TestNoProcessStarves(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		require.NoError(t, db.Exec(`CREATE TABLE runs (process text)`).Error)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		child := testprocess.Start(t, d, "compete")
		runs := func(process string) (n int64) {
			require.NoError(t, db.Table("runs").Where("process = ?", process).Count(&n).Error)
			return n
		}
		ended := make(chan error, 1)
		go func() { ended <- compete(open(t, d).WithContext(ctx), "parent") }()
		until := func(enough func() bool) {
			for !enough() {
				require.NoError(t, ctx.Err(), "parent: %d, child: %d", runs("parent"), runs("child"))
				time.Sleep(5 * time.Millisecond)
			}
		}
		until(func() bool { return min(runs("parent"), runs("child")) >= 10 }) // they have met
		require.NoError(t, db.Exec(`DELETE FROM runs`).Error)
		until(func() bool { return runs("parent")+runs("child") >= 200 })
		least, most := min(runs("parent"), runs("child")), max(runs("parent"), runs("child"))
		child.End(t)
		cancel()
		require.NoError(t, <-ended)
		t.Logf("shares: parent %d, child %d", runs("parent"), runs("child"))
		require.Greater(t, 4*least, most)
	})
}

func TestAReleaseNotifiesOfItsRowAlone(t *testing.T) {
	t.Parallel()
	d := testdb.Postgres(t)
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		db := openDSN(t, withSetting(d.DSN, "plan_cache_mode", mode))
		require.NoError(t, db.Migrate())
		var held []*dbmutex.Lease
		for _, id := range []string{"alone a", "alone b", "alone c"} {
			held = append(held, acquire(t, db, id))
		}
		require.NoError(t, db.Exec(`ANALYZE db_mutexes`).Error) // so few rows are scanned one after the other

		conn, err := pgx.Connect(limited(t), d.DSN)
		require.NoError(t, err)
		_, err = conn.Exec(limited(t), `LISTEN dbmutex`)
		require.NoError(t, err)
		require.NoError(t, held[1].Release())
		require.NoError(t, db.Exec(`UPDATE db_mutexes SET lease_id = 'another' WHERE lock_id = 'alone a'`).Error)
		require.ErrorIs(t, held[0].Release(), dbmutex.ErrTimeout)
		require.NoError(t, held[2].Release())
		require.NoError(t, db.Exec(`DELETE FROM db_mutexes`).Error)
		require.NoError(t, db.Exec(`SELECT pg_notify('dbmutex', 'alone no more')`).Error)
		var heard []string
		for !slices.Contains(heard, "alone no more") {
			notification, err := conn.WaitForNotification(limited(t))
			require.NoError(t, err)
			if strings.HasPrefix(notification.Payload, "alone ") { // and not another test's
				heard = append(heard, notification.Payload)
			}
		}
		require.NoError(t, conn.Close(limited(t)))
		require.Equal(t, []string{"alone b", "alone c", "alone no more"}, heard, mode)
	}
}

// hiddenPool is one that does not show what is beneath it.
type hiddenPool struct{ gorm.ConnPool }

func TestPoolsThatHideTheirDatabaseAreKeptApart(t *testing.T) {
	t.Parallel()
	plugin := dbmutex.New(dbmutex.DefaultSettings())
	hidden := func() *dbmutex.DB {
		plain := open(t, testdb.Postgres(t))
		db, err := gorm.Open(postgres.New(postgres.Config{Conn: hiddenPool{plain.ConnPool}}), &gorm.Config{Logger: logger.Discard})
		require.NoError(t, err)
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
	db := open(t, testdb.Postgres(t))
	pool, err := db.DB()
	require.NoError(t, err)
	pool.SetMaxOpenConns(1)
	requireFree(t, db, "job")
	require.NoError(t, db.Exec(`
		CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN NEW; END $$;
		CREATE TRIGGER slow BEFORE INSERT ON db_mutexes FOR EACH ROW EXECUTE FUNCTION slow()`).Error)
	session := func() (pid int) {
		require.NoError(t, db.Raw(`SELECT pg_backend_pid()`).Scan(&pid).Error)
		return pid
	}
	before := session()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err = db.WithContext(ctx).Mutex("job", dbmutex.WithoutTTL()).Acquire()
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Nil(t, row(t, db, "job"))
	require.Equal(t, before, session())
}

func TestCancelledTriesLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(4)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 100 {
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.N(1500))*time.Microsecond)
					_ = db.WithContext(ctx).Mutex("job", dbmutex.WithoutTTL()).Do(nothing)
					cancel()
				}
			})
		}
		wg.Wait()
		require.Nil(t, row(t, db, "job"))
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
			first := acquire(t, db, "job")
			ctx, cancel := context.WithCancel(context.Background())
			_, failed := waiting(t, db.WithContext(ctx), dbmutex.WithMinHold(10*time.Minute))
			pool.setLose(func(statement string) error {
				if strings.HasPrefix(statement, handOn) {
					if ctx.Err() == nil {
						cancel()
						require.ErrorIs(t, <-failed, context.Canceled)
					}
					return lost
				}
				return nil
			})
			if err := first.Release(); lost != nil {
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
