package dbmutex_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/faults"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

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
	faults.OnCluster(t, func(t *testing.T, c *testdb.Cluster, db *dbmutex.DB) {
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
	faults.OnCluster(t, func(t *testing.T, c *testdb.Cluster, db *dbmutex.DB) {
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
	faults.OnCluster(t, func(t *testing.T, _ *testdb.Cluster, db *dbmutex.DB) {
		require.NoError(t, db.Mutex("job", dbmutex.WithoutTTL()).Do(nothing))
		for range 50 {
			require.Zero(t, listening(t, db))
			time.Sleep(10 * time.Millisecond)
		}
	})
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
				acquired, _ := waiting(t, open(t, testdb.At(db.Name(), dsnOf(t, db))).WithContext(ctx))
				go func() {
					if lease := <-acquired; lease != nil { // it was quicker than what follows
						_ = lease.Release()
					}
				}()
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
		require.NoError(
			t,
			db.Raw(`SELECT query FROM pg_stat_activity WHERE query LIKE 'LISTEN%'
				AND client_port IS NOT NULL AND datname = current_database()`).
				Scan(&listening).
				Error,
		)
		return len(listening) > 0
	}
	require.Eventually(t, listening, time.Minute, time.Millisecond)
	require.NoError(t, lease.Release())
	require.NoError(t, <-acquired)
	require.Eventually(
		t, func() bool { return !listening() }, time.Minute, time.Millisecond, "the connection ends with the last waiter",
	)
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
		require.NoError(t, db.Exec(`SELECT pg_notify('dbmutex', '0 alone no more')`).Error)
		var heard []string
		for !slices.Contains(heard, "alone no more") {
			notification, err := conn.WaitForNotification(limited(t))
			require.NoError(t, err)
			_, id, _ := strings.Cut(notification.Payload, " ") // after the table's
			if strings.HasPrefix(id, "alone ") {               // and not another test's
				heard = append(heard, id)
			}
		}
		require.NoError(t, conn.Close(limited(t)))
		require.Equal(t, []string{"alone b", "alone c", "alone no more"}, heard, mode)
	}
}
