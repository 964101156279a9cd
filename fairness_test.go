package dbmutex_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/faults"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
	"github.com/gorm-dbmutex/dbmutex/internal/wake"
)

// loop has clients that take the mutex again and again until the test ends, and counts how often they had it.
func loop(t *testing.T, db *dbmutex.DB, clients int, hold, think time.Duration, opts ...dbmutex.Option) *atomic.Int64 {
	ctx, stop := context.WithCancel(context.Background())
	var runs atomic.Int64
	var wg sync.WaitGroup
	mutex := db.WithContext(ctx).Mutex("job", append([]dbmutex.Option{dbmutex.WithWait(dbmutex.Forever)}, opts...)...)
	for range clients {
		wg.Go(func() {
			for {
				lease, err := mutex.Acquire()
				if ctx.Err() != nil {
					_ = lease.Release()
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				runs.Add(1)
				time.Sleep(hold)
				if err := lease.Release(); err != nil {
					t.Error(err)
				}
				time.Sleep(think)
			}
		})
	}
	t.Cleanup(func() { stop(); wg.Wait() })
	return &runs
}

func TestAWaiterOfAnotherProcessIsPassedAHandfulOfTimesPerRival(t *testing.T) {
	t.Parallel()
	for _, delay := range []time.Duration{0, 40 * time.Millisecond} {
		for _, rivals := range []int{1, 2, 4, 8} {
			t.Run(fmt.Sprintf("%d rivals, %v away", rivals, delay), func(t *testing.T) {
				d := testdb.Postgres(t)
				db := open(t, d)
				network := proxy.New(t, d)
				waiter := openDSN(t, network.Database.DSN).WithContext(limited(t))
				requireFree(t, waiter, "warm")
				network.Drag(delay)
				runs := loop(t, db, rivals, 20*time.Millisecond+3*delay, time.Millisecond)
				mutex := waiter.Mutex("job", dbmutex.WithWait(dbmutex.Forever))
				require.NoError(t, mutex.Do(nothing)) // they have heard of each other
				for range 5 {
					acquired, failed := make(chan *dbmutex.Lease), make(chan error, 1)
					go func() {
						lease, err := mutex.Acquire()
						failed <- err
						acquired <- lease
					}()
					for dbmutex.Strangers(db.Mutex("job")) == 0 && len(failed) == 0 {
						time.Sleep(time.Millisecond)
					}
					heard := runs.Load()
					require.NoError(t, <-failed)
					passed := runs.Load() - heard
					require.LessOrEqual(t, passed, int64(min(rivals, 4)+1), "its turn comes after four runs, and one had begun")
					require.NoError(t, (<-acquired).Release())
				}
			})
		}
	}
}

// The end of a transaction gives the mutex to nobody, so who acquires it next does.
func TestAWaiterHasItsTurnAmongTransactions(t *testing.T) {
	d := testdb.Postgres(t)
	db := open(t, d)
	ctx, stop := context.WithCancel(context.Background())
	var runs atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for ctx.Err() == nil {
				err := db.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Transaction(func(*gorm.DB) error {
					runs.Add(1)
					time.Sleep(100 * time.Millisecond)
					return nil
				})
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	defer wg.Wait()
	defer stop()
	network := proxy.New(t, d)
	far := openDSN(t, network.Database.DSN).WithContext(limited(t))
	requireFree(t, far, "warm")
	network.Drag(20 * time.Millisecond)
	waiter := far.Mutex("job", dbmutex.WithWait(dbmutex.Forever))
	require.NoError(t, waiter.Do(nothing)) // they have heard of each other
	for range 3 {
		before := runs.Load()
		lease, err := waiter.Acquire()
		require.NoError(t, err)
		require.LessOrEqual(t, runs.Load()-before, int64(25))
		require.NoError(t, lease.Release())
	}
}

// Two that take turns leave the mutex free for moments only, and nobody is heard of.
func TestAWaiterThatPollsHasItsTurn(t *testing.T) {
	listen := wake.Listen
	wake.Listen = nil
	t.Cleanup(func() { wake.Listen = listen })
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		for _, rivals := range []int{1, 2} {
			t.Run(fmt.Sprint(rivals), func(t *testing.T) {
				runs := loop(t, db, rivals, 200*time.Millisecond, 0)
				waiter := open(t, d).WithContext(limited(t))
				for range 2 {
					before := runs.Load()
					require.NoError(t, waiter.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing))
					require.LessOrEqual(t, runs.Load()-before, int64(15))
				}
			})
		}
	})
}

func TestAWaiterThatIsKilledCostsOneReservation(t *testing.T) {
	d := testdb.Postgres(t)
	db := open(t, d).WithContext(limited(t))
	next := overhear(t, d)
	runs := loop(t, db, 2, 100*time.Millisecond, 0)
	require.Eventually(t, func() bool { return dbmutex.Hears(db.Mutex("job")) }, time.Minute, time.Millisecond)
	child := testprocess.Start(t, d, "wait")
	dead := ""
	for dead == "" {
		dead = next().Wait.Ticket
	}
	child.Kill(t)
	for next().Turn != dead {
	}
	before := runs.Load()
	lease, err := open(t, d).WithContext(limited(t)).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
	require.NoError(t, err)
	require.NoError(t, lease.Release())
	for runs.Load() < before+10 {
		time.Sleep(time.Millisecond)
	}
	require.NoError(t, db.Exec(`SELECT pg_notify('dbmutex turns', '{"id":"job","gone":"the end"}')`).Error)
	for m := next(); m.Gone != "the end"; m = next() {
		require.NotEqual(t, dead, m.Turn)
	}
}

func TestWhatIsKeptForAWaiterIsGivenBackWhenItLeaves(t *testing.T) {
	db := open(t, testdb.Postgres(t))
	lease := acquire(t, db, "job")
	found, err := dbmutex.Reserve(lease, "the waiter's")
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "the waiter's", row(t, db, "job").LeaseID)
	require.Equal(t, "the waiter", row(t, db, "job").Holder)
	dbmutex.Withdraw(db.Mutex("job"), "another's")
	requireHeld(t, db, "job")
	dbmutex.Withdraw(db.Mutex("job"), "the waiter's")
	require.Nil(t, row(t, db, "job"))
}

// By the time of the second try the waiter has made the row its lease.
func TestALostAnswerDoesNotTouchWhatIsKeptForAWaiter(t *testing.T) {
	for name, opts := range map[string][]dbmutex.Option{"TTL": nil, "no TTL": {dbmutex.WithoutTTL()}} {
		t.Run(name, func(t *testing.T) {
			db, pool := openFaulty(t, testdb.Postgres(t))
			lease := acquire(t, db, "job", opts...)
			pool.setLose(func(statement string) error {
				if strings.HasPrefix(statement, `UPDATE "db_mutexes" SET id = DEFAULT`) {
					pool.lose = nil
					_, err := pool.DB.Exec(`UPDATE db_mutexes SET id = DEFAULT, expires_at = NULL WHERE lease_id = 'the waiter''s'`)
					require.NoError(t, err)
					return io.ErrUnexpectedEOF
				}
				return nil
			})
			found, err := dbmutex.Reserve(lease, "the waiter's")
			require.NoError(t, err)
			require.False(t, found)
			require.Nil(t, row(t, db, "job").ExpiresAt)
		})
	}
}

// What is kept for a waiter does not bring back the lease that it had before, and lost.
func TestALostLeaseStaysLostWhateverIsKeptForItsWaiter(t *testing.T) {
	d := testdb.Postgres(t)
	db, other := open(t, d).WithContext(limited(t)), open(t, d)
	next := overhear(t, d)
	first := acquire(t, other, "job")
	acquired, failed := waiting(t, db)
	ticket := next().Wait.Ticket
	require.NoError(t, first.Release())
	lease := <-acquired
	require.NoError(t, <-failed)
	testdb.Expire(t, db, "job")
	found, err := dbmutex.Reserve(acquire(t, other, "job"), ticket) // by one who has not heard that it waits no more
	require.NoError(t, err)
	require.True(t, found)
	require.ErrorIs(t, db.Gorm.Transaction(lease.Guard), dbmutex.ErrTimeout)
	requireTimeout(t, lease.Renew(), "job", true)
	requireTimeout(t, lease.Release(), "job", true)
}

func TestAReservationIsMadeWhereverItBreaks(t *testing.T) {
	t.Parallel()
	faults.PositionsOf(t, testdb.Notifies, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		lease := acquire(t, proxied, "job")
		arm(func() {})
		_, err := dbmutex.Reserve(lease, "the waiter's")
		require.NoError(t, err)
		require.Equal(t, "the waiter's", row(t, direct, "job").LeaseID)
		require.NoError(t, direct.Mutex("job").ForceRelease())
	})
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
