package dbmutex_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/pgproxy"
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
				network := pgproxy.New(t, d.DSN)
				waiter := openDSN(t, network.DSN()).WithContext(limited(t))
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
	network := pgproxy.New(t, d.DSN)
	far := openDSN(t, network.DSN()).WithContext(limited(t))
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

// told is what processes tell each other, as far as the test wants to know.
type told struct {
	ID, Turn, Gone string
	Wait           struct{ Ticket, Holder string }
}

// overhear gives what is told of waiters on a server.
func overhear(t *testing.T, d *testdb.Database) (next func() told) {
	conn, err := pgx.Connect(limited(t), d.DSN)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	_, err = conn.Exec(limited(t), `LISTEN "dbmutex turns"`)
	require.NoError(t, err)
	return func() (m told) {
		for {
			m = told{}
			notification, err := conn.WaitForNotification(limited(t))
			require.NoError(t, err)
			if json.Unmarshal([]byte(notification.Payload), &m) == nil && m.ID == "job" {
				return m
			}
		}
	}
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

func TestAWaiterThatLeavesTellsOfIt(t *testing.T) {
	d := testdb.Postgres(t)
	db, other := open(t, d), open(t, d)
	next := overhear(t, d)
	lease := acquire(t, db, "job")
	waiting(t, db.WithContext(limited(t)))
	require.Eventually(t, func() bool { return dbmutex.Hears(db.Mutex("job")) }, time.Minute, time.Millisecond)
	ctx, cancel := context.WithCancel(context.Background())
	left := make(chan error)
	go func() {
		_, err := other.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
		left <- err
	}()
	m := next()
	require.Eventually(t, func() bool { return dbmutex.Strangers(db.Mutex("job")) == 1 }, time.Minute, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-left, context.Canceled)
	gone := next()
	for gone.Wait.Ticket != "" { // it may have told of itself again
		gone = next()
	}
	require.Equal(t, m.Wait.Ticket, gone.Gone)
	require.Eventually(t, func() bool { return dbmutex.Strangers(db.Mutex("job")) == 0 }, time.Minute, time.Millisecond)
	require.NoError(t, lease.Release())
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
	positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		lease := acquire(t, proxied, "job")
		arm(func() {})
		_, err := dbmutex.Reserve(lease, "the waiter's")
		require.NoError(t, err)
		require.Equal(t, "the waiter's", row(t, direct, "job").LeaseID)
		require.NoError(t, direct.Mutex("job").ForceRelease())
	})
}

func TestWaitersOfTheSameIDInAnotherSchemaAreOthers(t *testing.T) {
	here, there := testdb.Postgres(t), testdb.Postgres(t)
	next := overhear(t, here)
	known := map[string]*dbmutex.DB{}
	for name, d := range map[string]*testdb.Database{"here": here, "there": there} {
		db := open(t, d).WithContext(limited(t))
		acquire(t, db, "job")
		ctx, cancel := context.WithCancel(limited(t))
		t.Cleanup(cancel)
		waiting(t, db.WithContext(ctx))
		require.Eventually(t, func() bool { return dbmutex.Hears(db.Mutex("job")) }, time.Minute, time.Millisecond)
		known[name] = db
	}
	ctx, cancel := context.WithCancel(limited(t))
	defer cancel()
	left := make(chan struct{})
	go func() {
		defer close(left)
		_, _ = open(t, there).WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
	}()
	require.NotEmpty(t, next().Wait.Ticket)
	knows := func() bool { return dbmutex.Strangers(known["there"].Mutex("job")) == 1 }
	require.Eventually(t, knows, time.Minute, time.Millisecond)
	require.Zero(t, dbmutex.Strangers(known["here"].Mutex("job")))
	cancel()
	<-left
}

// listening is how many sessions of a test's own server listen.
func listening(t *testing.T, db *dbmutex.DB) (n int) {
	require.NoError(t, db.Raw(`SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'`).Scan(&n).Error)
	return n
}

func TestTheListenerOutlivesShortWaits(t *testing.T) {
	t.Parallel()
	onCluster(t, func(t *testing.T, c *testdb.Cluster, db *dbmutex.DB) {
		acquire(t, db, "job")
		sessions := map[int]bool{}
		for range 50 {
			time.Sleep(50 * time.Millisecond)
			_, err := db.Mutex("job", dbmutex.WithWait(5*time.Millisecond)).Acquire()
			require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
			var ids []int
			require.NoError(t, db.Raw(`SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%'`).Scan(&ids).Error)
			for _, id := range ids {
				sessions[id] = true
			}
		}
		require.NotEmpty(t, sessions)
		require.LessOrEqual(t, len(sessions), 3)
		require.Eventually(t, func() bool { return listening(t, db) == 0 }, time.Minute, 10*time.Millisecond)
	})
}

func TestTheListenerEndsWithThePool(t *testing.T) {
	dbmutex.Linger(t, time.Hour)
	onCluster(t, func(t *testing.T, c *testdb.Cluster, db *dbmutex.DB) {
		other := openDSN(t, c.DSN())
		acquire(t, db, "job")
		ctx, cancel := context.WithCancel(limited(t))
		defer cancel()
		_, failed := waiting(t, other.WithContext(ctx))
		require.Eventually(t, func() bool { return listening(t, db) == 1 }, time.Minute, time.Millisecond)
		pool, err := other.DB()
		require.NoError(t, err)
		require.NoError(t, pool.Close())
		require.Error(t, <-failed)
		require.Eventually(t, func() bool { return listening(t, db) == 0 }, time.Minute, time.Millisecond, "it does not linger")
	})
}

func TestAReleaseWithoutATTLStartsNoListener(t *testing.T) {
	onCluster(t, func(t *testing.T, _ *testdb.Cluster, db *dbmutex.DB) {
		require.NoError(t, db.Mutex("job", dbmutex.WithoutTTL()).Do(nothing))
		for range 50 {
			require.Zero(t, listening(t, db))
			time.Sleep(10 * time.Millisecond)
		}
	})
}

func TestTheEndOfALeaseWithoutATTLIsTold(t *testing.T) {
	for name, opts := range map[string][]dbmutex.Option{"TTL": nil, "no TTL": {dbmutex.WithoutTTL()}} {
		t.Run(name, func(t *testing.T) {
			d := testdb.Postgres(t)
			db, other := open(t, d), open(t, d)
			next := overhear(t, d)
			lease := acquire(t, db, "job")
			got := make(chan *dbmutex.Lease)
			go func() {
				l, _ := other.WithContext(limited(t)).Mutex("job", append(opts, dbmutex.WithWait(dbmutex.Forever))...).Acquire()
				got <- l
			}()
			m := next()
			require.NoError(t, lease.Release())
			require.NoError(t, (<-got).Release())
			require.NoError(t, db.Exec(`SELECT pg_notify('dbmutex turns', '{"id":"job","gone":"the end"}')`).Error)
			for {
				n := next()
				require.NotEqual(t, "the end", n.Gone, "nobody was told")
				if n.Gone == m.Wait.Ticket {
					return
				}
			}
		})
	}
}

// A hand-on that is tried again finds the waiter's row. But the waiter may have got it from somebody else.
func TestAHandOnThatIsTriedAgainIsNoProof(t *testing.T) {
	for name, failure := range map[string]error{"it failed": &sqlError{"40001"}, "nobody knows": io.ErrUnexpectedEOF} {
		t.Run(name, func(t *testing.T) { handOnTwice(t, failure) })
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
	mutex := db.WithContext(limited(t)).Mutex("job", dbmutex.WithWait(2*time.Second))
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

func TestAReleaseThatMayNotNotifyIsDone(t *testing.T) {
	for _, turn := range []bool{false, true} {
		t.Run(fmt.Sprint("a waiter's turn: ", turn), func(t *testing.T) {
			db, pool := openFaulty(t, testdb.Postgres(t))
			var full atomic.Bool
			pool.refuse = func(statement string) error {
				if full.Load() && strings.Contains(statement, "pg_notify") {
					return &sqlError{"54000"} // too many notifications in the queue
				}
				return nil
			}
			lease := acquire(t, db, "job")
			if turn {
				letListen(t, db)
				ctx, cancel := context.WithCancel(limited(t))
				t.Cleanup(cancel)
				waiting(t, open(t, testdb.At(db.Name(), dsnOf(t, db))).WithContext(ctx))
				require.Eventually(t, func() bool { return dbmutex.Strangers(db.Mutex("job")) == 1 }, time.Minute, time.Millisecond)
			}
			full.Store(true)
			require.NoError(t, lease.Release())
			full.Store(false)
			require.NoError(t, db.WithContext(limited(t)).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing))
		})
	}
}

// letListen has a pool listen for a while.
func letListen(t *testing.T, db *dbmutex.DB) {
	ctx, cancel := context.WithCancel(limited(t))
	_, failed := waiting(t, db.WithContext(ctx))
	require.Eventually(t, func() bool { return dbmutex.Hears(db.Mutex("job")) }, time.Minute, time.Millisecond)
	cancel()
	require.Error(t, <-failed)
}

// dsnOf is the DSN of the schema that a handle uses.
func dsnOf(t *testing.T, db *dbmutex.DB) string {
	d := testdb.Postgres(t)
	return strings.Replace(d.DSN, "search_path="+currentSchema(t, open(t, d)), "search_path="+currentSchema(t, db), 1)
}

// Anybody who can connect to the database may send a notification.
func TestForgedMessagesDoNoHarm(t *testing.T) {
	ticket := strings.Repeat("X", 26)
	for name, wait := range map[string]string{
		"a long reservation":    `{"ticket":"` + ticket + `","holder":"h","reserve":3600000000}`,
		"an endless one":        `{"ticket":"` + ticket + `","holder":"h","reserve":9223372036854775807}`,
		"a negative one":        `{"ticket":"` + ticket + `","holder":"h","reserve":-1}`,
		"a ticket that is none": `{"ticket":"` + strings.Repeat("x", 70) + `","holder":"h","reserve":1000}`,
		"no ticket":             `{"holder":"h","reserve":1000}`,
		"a NUL":                 `{"ticket":"` + ticket + `","holder":"a\u0000b","reserve":1000}`,
	} {
		t.Run(name, func(t *testing.T) {
			db := open(t, testdb.Postgres(t))
			lease := acquire(t, db, "job")
			letListen(t, db)
			require.NoError(t, db.Exec(`SELECT pg_notify('dbmutex turns', json_build_object('table',
'db_mutexes'::regclass::oid::bigint, 'id', 'job', 'from', 1, 'wait', ?::text::json)::text),
pg_notify('dbmutex turns', json_build_object('table', 'db_mutexes'::regclass::oid::bigint, 'id', 'job', 'from', 1,
'wait', json_build_object('ticket', 'YYYYYYYYYYYYYYYYYYYYYYYYYY'))::text)`, wait).Error)
			require.Eventually(t, func() bool { return dbmutex.Strangers(db.Mutex("job")) >= 1 }, time.Minute, time.Millisecond)
			require.NoError(t, lease.Release())
			row, err := db.Mutex("job").Holder()
			require.NoError(t, err)
			if row != nil {
				require.Less(t, row.ExpiresAt.Sub(row.CreationTime), 6*time.Second)
			}
		})
	}
}

func TestATakeOverIsNoKnock(t *testing.T) {
	t.Parallel()
	onCluster(t, func(t *testing.T, _ *testdb.Cluster, db *dbmutex.DB) {
		var out logs
		logged := db.Session(&gorm.Session{Logger: out.logger(logger.Info)})
		require.NoError(t, logged.Mutex("job", dbmutex.WithMinHold(time.Millisecond)).Do(nothing))
		testdb.Expire(t, db, "job")
		before := len(out.String())
		require.NoError(t, logged.Mutex("job").Do(nothing))
		require.Equal(t, 1, strings.Count(out.String()[before:], "DELETE"), "the release needs one statement")
		for range 50 {
			require.Zero(t, listening(t, db))
			time.Sleep(10 * time.Millisecond)
		}
	})
}

func TestACrowdOfProcessesTellsLittle(t *testing.T) {
	t.Parallel()
	onCluster(t, func(t *testing.T, c *testdb.Cluster, db *dbmutex.DB) {
		next := overhear(t, testdb.PostgresAt(c.DSN()))
		var runs []*atomic.Int64
		for range 20 {
			runs = append(runs, loop(t, openDSN(t, c.DSN()), 2, 20*time.Millisecond, 0))
		}
		sum := func() (n int64) {
			for _, r := range runs {
				n += r.Load()
			}
			return n
		}
		require.Eventually(t, func() bool { return sum() >= 100 }, time.Minute, 10*time.Millisecond) // they have met
		for sum() < 150 {
			next()
		}
		began, waits := sum(), int64(0)
		for sum() < began+100 {
			if m := next(); m.Wait.Ticket != "" && m.Turn == "" {
				waits++
			}
		}
		require.Less(t, waits, 4*(sum()-began))
	})
}
