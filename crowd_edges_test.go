package dbmutex_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// after runs a function after each statement for many of a verb.
func after(t *testing.T, db *dbmutex.DB, d *testdb.Database, verb string, run func(tx *gorm.DB)) {
	require.NoError(t, db.Callback().Row().After("gorm:row").Register("after "+verb, func(tx *gorm.DB) {
		if text := tx.Statement.SQL.String(); d.Verb(text) == verb && strings.Contains(text, "ROWS FROM") {
			run(tx)
		}
	}))
}

// codeOf is PostgreSQL's code for an error.
func codeOf(err error) string {
	var refusal *pgconn.PgError
	if errors.As(err, &refusal) {
		return refusal.Code
	}
	return ""
}

// Two processes want the same mutexes, in opposite order. The server looks for a deadlock long before the wait of a
// statement for many is over.
func TestCrowdsOfTwoProcessesDoNotDeadlock(t *testing.T) {
	combiningOf(t, manyWriters, func(t *testing.T, _ *dbmutex.DB, d *testdb.Database) {
		server := d.NewServer(t, "deadlock_timeout = 10ms").Database()
		const many = 48
		id := func(p, i int) string { return crowdID([]int{i, many - 1 - i}[p]) }
		var pools [2]*dbmutex.DB
		var meet atomic.Pointer[sync.WaitGroup]
		var shared, deadlocks atomic.Int32
		for p := range pools {
			pools[p] = server.Mutexes(t, dbmutex.DefaultSettings())
			pool, err := pools[p].DB()
			require.NoError(t, err)
			pool.SetMaxOpenConns(30)
			requireFree(t, pools[p], "warm")
			before(t, pools[p], d, "acquire", func(*gorm.DB) {
				if both := meet.Load(); both != nil {
					both.Done()
					both.Wait()
				}
			})
			for _, verb := range []string{"acquire", "release"} {
				after(t, pools[p], d, verb, func(tx *gorm.DB) {
					shared.Add(1)
					if codeOf(tx.Error) == "40P01" {
						deadlocks.Add(1)
					}
				})
			}
		}
		for range 20 {
			both := &sync.WaitGroup{}
			both.Add(2)
			meet.Store(both)
			gather(t, many)
			var leases [2 * many]*dbmutex.Lease
			var lost atomic.Int32
			atOnce(2*many, func(n int) {
				p, i := n%2, n/2
				lease, err := pools[p].Mutex(id(p, i)).Acquire()
				if leases[n] = lease; err != nil {
					lost.Add(1)
					if !errors.Is(err, dbmutex.ErrNotAcquired) {
						t.Error(err)
					}
				}
			})
			require.EqualValues(t, many, lost.Load(), "one of two has each")
			meet.Store(nil)
			atOnce(2*many, func(n int) {
				if leases[n] != nil {
					if err := leases[n].Release(); err != nil {
						t.Error(err)
					}
				}
			})
		}
		gather(t, 0)
		var inside [many]atomic.Int32
		atOnce(2*many, func(n int) { // acquires against releases
			for round := range 20 {
				i := (n/2 + round) % many
				if n%2 > 0 {
					i = many - 1 - i
				}
				err := pools[n%2].Mutex(crowdID(i)).Do(func(context.Context) error {
					if inside[i].Add(1) != 1 {
						t.Error("two at once")
					}
					defer inside[i].Add(-1)
					return nil
				})
				if err != nil && !errors.Is(err, dbmutex.ErrNotAcquired) {
					t.Error(err)
				}
			}
		})
		require.GreaterOrEqual(t, shared.Load(), int32(2*20))
		require.Zero(t, deadlocks.Load())
	})
}

// A statement for many waits for one row, while somebody else has another of its rows, and releases it. The token must be
// greater nevertheless.
func TestATokenOfACrowdIsDrawnOnceItsRowIsWon(t *testing.T) {
	combiningOf(t, manyWriters, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		others := d.Registered(t, dbmutex.DefaultSettings())
		requireFree(t, others, "warm")
		ctx := limited(t)
		var failed atomic.Bool
		ended := make(chan struct{}, 1)
		after(t, db, d, "acquire", func(tx *gorm.DB) {
			failed.Store(tx.Error != nil)
			ended <- struct{}{}
		})
		for seen := false; !seen; {
			require.NoError(t, ctx.Err())
			stranger := others.Begin()
			var pid int
			require.NoError(t, stranger.Raw(`SELECT pg_backend_pid()`).Scan(&pid).Error)
			require.NoError(t, stranger.Exec(`INSERT INTO db_mutexes (lock_id, creation_time, holder, lease_id)
				VALUES (?, now(), '', 'x')`, crowdID(0)).Error)
			gather(t, 2)
			var leases [2]*dbmutex.Lease
			var errs [2]error
			var both sync.WaitGroup
			for i := range leases {
				both.Go(func() { leases[i], errs[i] = db.Mutex(crowdID(i)).Acquire() })
			}
			over, waits := false, false
			for !over && !waits {
				require.NoError(t, others.Raw(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE ? = ANY (pg_blocking_pids(pid)))`,
					pid).Scan(&waits).Error)
				select {
				case <-ended:
					over = true
				default:
				}
			}
			gather(t, 0)
			other, err := others.Mutex(crowdID(1)).Acquire()
			if err == nil {
				require.NoError(t, other.Release())
			}
			require.NoError(t, stranger.Rollback().Error)
			if !over {
				<-ended
			}
			both.Wait()
			seen = other != nil && !failed.Load() // else the machine was too slow
			for i, lease := range leases {
				if errs[i] != nil {
					require.ErrorIs(t, errs[i], dbmutex.ErrNotAcquired)
					seen = false
					continue
				}
				if i == 1 && other != nil {
					require.Greater(t, lease.Token(), other.Token())
				}
				require.NoError(t, lease.Release())
			}
		}
	})
}

func TestACrowdRestsOnceItsStatementHasFailed(t *testing.T) {
	combining(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		var shared atomic.Int32
		before(t, db, d, "acquire", func(tx *gorm.DB) {
			shared.Add(1)
			_ = tx.AddError(errors.New("refused"))
		})
		start := time.Now()
		atOnce(40, func(i int) {
			for range 40 {
				if err := db.Mutex(crowdID(i)).Do(nothing); err != nil {
					t.Error(err)
				}
			}
		})
		require.Positive(t, shared.Load())
		require.LessOrEqual(t, shared.Load(), int32(2+2*time.Since(start).Seconds()))
	})
}

func TestACrowdsStatementThatHangs(t *testing.T) {
	combining(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		leases := crowdLeases(t, db, crowdSize)
		hang := make(chan struct{})
		before(t, db, d, "release", func(*gorm.DB) { <-hang })
		gather(t, crowdSize)
		atOnce(crowdSize, func(i int) {
			if err := leases[i].Release(); err != nil {
				t.Error(err)
			}
		})
		for i := range leases {
			require.Nil(t, row(t, db, crowdID(i)), "the callback hangs still")
		}
		requireFree(t, db, crowdID(0))
		close(hang)
		requireNoFlight(t)
	})
}

// requireNoFlight waits until no goroutine runs statements for many.
func requireNoFlight(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		stacks := make([]byte, 1<<20)
		return !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "locktable.(*crowd)")
	}, time.Minute, 10*time.Millisecond, "no goroutine is left")
}

// Whose context ends while the crowd waits for a connection is not in its statement.
func TestOneOfACrowdThatHasNoConnectionLeavesAtOnce(t *testing.T) {
	combining(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1)
		ids := make(chan string, 1)
		before(t, db, d, "acquire", func(tx *gorm.DB) { ids <- tx.Statement.Vars[0].(string) })
		conn, err := pool.Conn(context.Background())
		require.NoError(t, err)
		gather(t, 2)
		ctx, cancel := context.WithCancel(context.Background())
		left, stays := make(chan error, 1), make(chan error, 1)
		waits := pool.Stats().WaitCount
		go func() {
			_, err := db.WithContext(ctx).Mutex(crowdID(0)).Acquire()
			left <- err
		}()
		go func() { stays <- db.Mutex(crowdID(1)).Do(nothing) }()
		require.Eventually(t, func() bool { return pool.Stats().WaitCount > waits }, time.Minute, time.Millisecond)
		cancel()
		require.ErrorIs(t, <-left, context.Canceled)
		require.NoError(t, conn.Close())
		require.NoError(t, <-stays)
		require.NotContains(t, <-ids, "crowd 0")
		require.Nil(t, row(t, db, crowdID(0)))
	})
}

// The last who waits for a crowd's next statement may leave before that begins.
func TestACrowdOfNobodyIsNone(t *testing.T) {
	combining(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		begun, goOn := make(chan struct{}), make(chan struct{})
		before(t, db, d, "acquire", func(*gorm.DB) {
			close(begun)
			<-goOn
		})
		gather(t, 2)
		first := make(chan error, 2)
		for i := range 2 {
			go func() { first <- db.Mutex(crowdID(i)).Do(nothing) }()
		}
		<-begun
		ctx, cancel := context.WithCancel(context.Background())
		left := make(chan error, 1)
		go func() { left <- db.WithContext(ctx).Mutex("next").Do(nothing) }()
		awaitMembers(t, db, 1)
		cancel()
		require.ErrorIs(t, <-left, context.Canceled)
		close(goOn)
		require.NoError(t, <-first)
		require.NoError(t, <-first)
		requireNoFlight(t)
	})
}

// Handles with one plugin and one pool may have callbacks of their own. Each call runs under those of its handle.
func TestACrowdHasTheCallbacksOfAll(t *testing.T) {
	combining(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		pool, err := db.DB()
		require.NoError(t, err)
		other := dbmutex.Wrap(d.OpenOn(t, pool))
		require.NoError(t, other.Use(db.Plugins[dbmutex.PluginName]))
		seen := statements(t, other, d, "acquire")
		gather(t, 2)
		first := make(chan error, 1)
		go func() { first <- db.Mutex(crowdID(0)).Do(nothing) }()
		awaitMembers(t, db, 1)
		second := acquire(t, other, crowdID(1))
		require.EqualValues(t, 1, seen.Load())
		require.NoError(t, db.Mutex(crowdID(2)).Do(nothing), "the second of those who share a statement")
		require.NoError(t, <-first)
		require.NoError(t, second.Release())
	})
}

// Rows of two partitions may be in the same place of each.
func TestACrowdOnAPartitionedTable(t *testing.T) {
	combiningOf(t, manyWriters, func(t *testing.T, _ *dbmutex.DB, d *testdb.Database) {
		d = d.Another(t)
		db := madeByHand(t, d, d.HandMade["partitions"]...)
		requireFree(t, db, "warm")
		const many = 16
		gather(t, many)
		leases := crowdLeases(t, db, many)
		gather(t, many/2)
		errs := make([]error, many/2)
		atOnce(many/2, func(i int) { errs[i] = leases[i].Release() })
		for i := range leases {
			if i < many/2 {
				require.NoError(t, errs[i])
				require.Nil(t, row(t, db, crowdID(i)))
				continue
			}
			require.NotNil(t, row(t, db, crowdID(i)), "somebody else's lease")
			require.NoError(t, leases[i].Renew())
		}
	})
}

// What a crowd's statement sets for itself does not outlast it, and the sessions may be of any level.
func TestACrowdInSessionsOfAnyLevel(t *testing.T) {
	combiningOf(t, manyWriters, func(t *testing.T, _ *dbmutex.DB, d *testdb.Database) {
		for _, level := range []string{"repeatable read", "serializable"} {
			db := d.AtLevel(t, level).Registered(t, dbmutex.DefaultSettings()).WithContext(limited(t))
			pool, err := db.DB()
			require.NoError(t, err)
			settings := func() (all string) {
				require.NoError(t, db.Raw(`SELECT concat_ws(' ', current_setting('lock_timeout'),
					current_setting('synchronous_commit'), current_setting('transaction_isolation'))`).Scan(&all).Error)
				return all
			}
			pool.SetMaxOpenConns(1)
			requireFree(t, db, "warm")
			was := settings()
			gather(t, crowdSize)
			for _, lease := range crowdLeases(t, db, crowdSize) {
				require.NoError(t, lease.Release())
			}
			require.Equal(t, was, settings())
			pool.SetMaxOpenConns(8)
			atOnce(24, func(i int) {
				for range 5 {
					if err := db.Mutex(crowdID(i)).Do(nothing); err != nil {
						t.Error(err)
					}
				}
			})
		}
	})
}

func TestACrowdWithPreparedStatements(t *testing.T) {
	combining(t, func(t *testing.T, _ *dbmutex.DB, d *testdb.Database) {
		db := open(t, d, &gorm.Config{PrepareStmt: true})
		requireFree(t, db, "warm")
		acquires := statements(t, db, d, "acquire")
		gather(t, crowdSize)
		for _, lease := range crowdLeases(t, db, crowdSize) {
			require.NoError(t, lease.Release())
		}
		require.EqualValues(t, 1, acquires.Load())
	})
}
