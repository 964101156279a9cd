package dbmutex_test

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/faults"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

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
			require.NotNil(t, row, "it is kept for the one that was told of")
			require.Less(t, row.ExpiresAt.Sub(row.CreationTime), 6*time.Second)
		})
	}
}

func TestATakeOverIsNoKnock(t *testing.T) {
	t.Parallel()
	faults.OnCluster(t, func(t *testing.T, _ *testdb.Cluster, db *dbmutex.DB) {
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
	faults.OnCluster(t, func(t *testing.T, c *testdb.Cluster, db *dbmutex.DB) {
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
