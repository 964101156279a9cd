package proxy_test

import (
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// pools open a pool, by the kind's name. It must not dial again when its connection was cut: a driver may do so to cancel
// the statement.
var pools = map[string]func(t *testing.T, dsn string) *sql.DB{}

func open(t *testing.T, d *testdb.Database) *sql.DB {
	t.Helper()
	pool := pools[d.Name](t, d.DSN)
	pool.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = pool.Close() })
	return pool
}

func connect(t *testing.T, d *testdb.Database) *sql.DB {
	t.Helper()
	pool := open(t, d)
	require.NoError(t, pool.Ping())
	return pool
}

// onNetwork runs a test on every database that is reached by one, with a table.
func onNetwork(t *testing.T, test func(t *testing.T, direct *gorm.DB, network *proxy.Proxy)) {
	t.Helper()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		direct := d.Open(t)
		require.NoError(t, direct.Exec(`CREATE TABLE made (id integer, note text)`).Error)
		test(t, direct, proxy.New(t, d))
	})
}

func requireMade(t *testing.T, direct *gorm.DB, want int, why string) {
	t.Helper()
	var n int
	require.NoError(t, direct.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
	require.Equal(t, want, n, why)
}

const (
	insert  = `INSERT INTO made VALUES (1, NULL)`
	mistake = `INSERT INTO missing VALUES (1)`
	query   = `SELECT id, note FROM made`
)

func exec(pool *sql.DB, statement string) error {
	_, err := pool.Exec(statement)
	return err
}

func execPrepared(pool *sql.DB, statement string) error {
	prepared, err := pool.Prepare(statement)
	if err != nil {
		return err
	}
	_, err = prepared.Exec()
	return errors.Join(err, prepared.Close())
}

func ask(pool *sql.DB, statement string) error { return readAll(pool.Query(statement)) }

func askPrepared(pool *sql.DB, statement string) error {
	prepared, err := pool.Prepare(statement)
	if err != nil {
		return err
	}
	return errors.Join(readAll(prepared.Query()), prepared.Close())
}

func readAll(rows *sql.Rows, err error) error {
	if err != nil {
		return err
	}
	for rows.Next() || rows.NextResultSet() {
	}
	return errors.Join(rows.Err(), rows.Close())
}

// breakEverywhere runs something once for each position in the answer to a statement, and returns how many messages it has.
func breakEverywhere(
	t *testing.T, network *proxy.Proxy, at string, run func(pool *sql.DB, fault *proxy.Fault),
) (messages int) {
	t.Helper()
	for messages = -1; ; messages++ {
		fault := &proxy.Fault{Unsent: messages < 0, After: messages}
		pool := connect(t, network.Database)
		network.Choose(func(statement string) *proxy.Fault {
			if statement == at {
				return fault
			}
			return nil
		})
		run(pool, fault)
		network.Choose(nil)
		if fault.Missed.Load() {
			return messages
		}
	}
}

func TestANetworkBreaksAtEveryMessage(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		run       func(pool *sql.DB, statement string) error
		statement string
		prepare   bool // is where the network breaks
		messages  int  // that the answer has at the least
	}{
		"a change":                   {exec, insert, false, 1},
		"a prepared change":          {execPrepared, insert, false, 1},
		"a change, while prepared":   {execPrepared, insert, true, 1},
		"a query":                    {ask, query, false, 5},
		"a prepared query":           {askPrepared, query, false, 4},
		"a query, while prepared":    {askPrepared, query, true, 2},
		"a mistake":                  {exec, mistake, false, 1},
		"a mistake, while prepared":  {execPrepared, mistake, true, 1},
		"no rows":                    {ask, query + ` WHERE id = 2`, false, 2},
		"no rows, of a prepared one": {askPrepared, query + ` WHERE id = 2`, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			onNetwork(t, func(t *testing.T, direct *gorm.DB, network *proxy.Proxy) {
				made, at := 3, test.statement
				for range made {
					require.NoError(t, direct.Exec(insert).Error)
				}
				if test.prepare {
					at = "PREPARE " + at
				}
				messages := breakEverywhere(t, network, at, func(pool *sql.DB, fault *proxy.Fault) {
					err := test.run(pool, test.statement)
					missed := fault.Missed.Load()
					if !missed || test.statement == mistake {
						require.Error(t, err)
					} else {
						require.NoError(t, err)
						require.NoError(t, test.run(pool, test.statement), "the connection can still be used")
					}
					if test.statement == insert {
						switch {
						case missed:
							made += 2
						case !test.prepare && !fault.Unsent:
							made++
						}
					}
					requireMade(t, direct, made, "after "+fmt.Sprint(fault.After)+" messages")
				})
				require.GreaterOrEqual(t, messages, test.messages)
			})
		})
	}
}

func TestALateRequestArrivesWhenItsClientHasGone(t *testing.T) {
	t.Parallel()
	onNetwork(t, func(t *testing.T, direct *gorm.DB, network *proxy.Proxy) {
		network.Choose(func(statement string) *proxy.Fault {
			if statement == insert {
				return &proxy.Fault{Late: time.Hour}
			}
			return nil
		})
		require.Error(t, exec(connect(t, network.Database), insert))
		requireMade(t, direct, 0, "it is late")
		network.Deliver()
		requireMade(t, direct, 1, "it has been delivered")

		require.Error(t, exec(connect(t, network.Database), insert))
		network.Reset()
		network.Deliver()
		requireMade(t, direct, 1, "a connection that is cut takes its request along")
	})
}

func TestANetworkRefusesConnections(t *testing.T) {
	t.Parallel()
	onNetwork(t, func(t *testing.T, _ *gorm.DB, network *proxy.Proxy) {
		pool := connect(t, network.Database)
		network.Refuse()
		require.Error(t, exec(pool, `SELECT 1`))
		require.Error(t, open(t, network.Database).Ping())
		network.Admit()
		require.NoError(t, exec(connect(t, network.Database), `SELECT 1`))
	})
}
