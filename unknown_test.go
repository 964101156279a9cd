package dbmutex_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

type sqlError struct{ code string }

func (e *sqlError) Error() string { return "SQLSTATE " + e.code }

func (e *sqlError) SQLState() string { return e.code }

func TestAnUnknownOutcomeIsSettled(t *testing.T) {
	t.Parallel()
	// once loses the answer to the first statement that begins so.
	once := func(pool *faultyPool, begins string, lost error) *atomic.Int32 {
		var n atomic.Int32
		pool.setLose(func(statement string) error {
			if strings.HasPrefix(statement, begins) && n.Add(1) == 1 {
				return lost
			}
			return nil
		})
		return &n
	}
	for name, lost := range map[string]error{
		"the connection died":    io.ErrUnexpectedEOF,
		"database/sql gave up":   driver.ErrBadConn,
		"it was terminated":      &sqlError{"57P01"},
		"the transaction failed": &sqlError{"40001"},
	} {
		t.Run(name, func(t *testing.T) {
			db, pool := openFaulty(t, testdb.Postgres(t))
			for _, opts := range [][]dbmutex.Option{nil, {dbmutex.WithoutTTL()}} {
				calls := once(pool, "WITH other", lost)
				lease, err := db.Mutex("job", opts...).Acquire()
				require.NoError(t, err)
				require.EqualValues(t, 2, calls.Load())
				require.Equal(t, row(t, db, "job").ID, lease.Token(), "a fresh token, by a take-over of its own row")
				requireHeld(t, db, "job")

				testdb.Expire(t, db, "job")
				calls = once(pool, "WITH stale", lost)
				successor, err := db.Mutex("job", opts...).Acquire()
				require.NoError(t, err)
				require.EqualValues(t, 2, calls.Load())
				require.Greater(t, successor.Token(), lease.Token())
				require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)
				lease = successor

				calls = once(pool, "UPDATE", lost)
				require.NoError(t, lease.Renew())
				require.EqualValues(t, 2, calls.Load())

				calls = once(pool, "DELETE", lost)
				if strings.HasPrefix(lost.Error(), "SQLSTATE 40") { // it has had its effect here, against what it says
					require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)
				} else {
					require.NoError(t, lease.Release())
				}
				require.EqualValues(t, 2, calls.Load())
				require.Nil(t, row(t, db, "job"))
			}
		})
	}
	t.Run("a statement that database/sql would repeat", func(t *testing.T) {
		config, err := pgx.ParseConfig(testdb.Postgres(t).DSN)
		require.NoError(t, err)
		var lose atomic.Bool
		pool := sql.OpenDB(losingConnector{stdlib.GetConnector(*config), &lose})
		defer func() { require.NoError(t, pool.Close()) }()
		db := testdb.PostgresAt("").MutexesOn(t, pool, dbmutex.DefaultSettings())
		require.NoError(t, db.Mutex("job").Do(func(context.Context) error { lose.Store(true); return nil }))
		require.False(t, lose.Load())
		require.Nil(t, row(t, db, "job"))
	})
	t.Run("a release that is called again", func(t *testing.T) {
		db, pool := openFaulty(t, testdb.Postgres(t))
		lease := acquire(t, db, "job")
		pool.setLose(func(statement string) error {
			if strings.HasPrefix(statement, "DELETE") {
				return io.ErrUnexpectedEOF
			}
			return nil
		})
		require.ErrorIs(t, lease.Release(), io.ErrUnexpectedEOF)
		pool.setLose(nil)
		require.NoError(t, lease.Release(), "nobody overlapped")
	})
	t.Run("a late answer", func(t *testing.T) {
		db, pool := openFaulty(t, testdb.Postgres(t))
		lease := acquire(t, db, "job", dbmutex.WithTTL(20*time.Millisecond))
		requireEnds(t, lease.Context())
		once(pool, "DELETE", io.ErrUnexpectedEOF)
		require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout, "past the deadline it may have been another's work")
	})
	t.Run("cancelled in the middle", func(t *testing.T) {
		db, pool := openFaulty(t, testdb.Postgres(t))
		ctx, cancel := context.WithCancel(context.Background())
		pool.setLose(func(statement string) error {
			if strings.HasPrefix(statement, "WITH other") {
				cancel()
				return context.Canceled
			}
			return nil
		})
		_, err := db.WithContext(ctx).Mutex("job", dbmutex.WithoutTTL()).Acquire()
		require.ErrorIs(t, err, context.Canceled)
		pool.setLose(nil)
		require.Nil(t, row(t, db, "job"), "nothing is left behind")
	})
	t.Run("COMMIT", func(t *testing.T) {
		db, pool := openFaulty(t, testdb.Postgres(t))
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
		once(pool, "COMMIT", io.ErrUnexpectedEOF)
		require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error {
			return tx.Exec(`INSERT INTO made VALUES (1)`).Error
		}), "it had committed")
		require.Nil(t, row(t, db, "job"))
	})
	t.Run("COMMIT that did not happen", func(t *testing.T) {
		db, pool := openFaulty(t, testdb.Postgres(t))
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
		once(pool, "ROLLBACK", io.ErrUnexpectedEOF)
		err := db.Mutex("job").Transaction(func(tx *gorm.DB) error {
			return tx.Exec(`INSERT INTO made VALUES (1)`).Error
		})
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		require.NotContains(t, err.Error(), "unknown")
		var n int
		require.NoError(t, db.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
		require.Zero(t, n)
		require.Nil(t, row(t, db, "job"))
	})
	t.Run("COMMIT, and nobody to ask", func(t *testing.T) {
		db, pool := openFaulty(t, testdb.Postgres(t))
		pool.setLose(func(statement string) error {
			if statement == "COMMIT" || strings.Contains(statement, "pg_xact_status") {
				return io.ErrUnexpectedEOF
			}
			return nil
		})
		err := db.Mutex("job").Transaction(func(tx *gorm.DB) error { return nil })
		require.ErrorContains(t, err, "whether it committed is unknown")
		require.NotErrorIs(t, err, dbmutex.ErrTimeout)
	})
	t.Run("ReleaseIn's COMMIT", func(t *testing.T) {
		db, pool := openFaulty(t, testdb.Postgres(t))
		err := db.Mutex("job").Do(func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			once(pool, "COMMIT", io.ErrUnexpectedEOF)
			return db.Gorm.Transaction(func(tx *gorm.DB) error { return lease.ReleaseIn(tx) })
		})
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		require.NotErrorIs(t, err, dbmutex.ErrTimeout)
	})
}

// losingConnector makes connections that lose the answer to a DELETE once, with an error that makes database/sql repeat it.
type losingConnector struct {
	driver.Connector
	lose *atomic.Bool
}

func (c losingConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &losingConn{conn.(*stdlib.Conn), c.lose}, nil
}

type losingConn struct {
	*stdlib.Conn
	lose *atomic.Bool
}

func (c *losingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	res, err := c.Conn.ExecContext(ctx, query, args)
	if strings.HasPrefix(query, "DELETE") && c.lose.CompareAndSwap(true, false) {
		return nil, driver.ErrBadConn
	}
	return res, err
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

// A crash undoes a transaction whose COMMIT it cuts off, and its number is given to another, which commits.
func TestANumberThatIsGivenOutAgainIsNoCommit(t *testing.T) {
	t.Parallel()
	cluster := testdb.NewCluster(t)
	d := testdb.PostgresAt(cluster.DSN())
	db, pool := openFaulty(t, d)
	require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
	next := func(on *gorm.DB) (number int64) {
		require.NoError(t, on.Raw(`SELECT pg_current_xact_id()::text::bigint`).Scan(&number).Error)
		return number
	}
	err := db.Mutex("job").Transaction(func(tx *gorm.DB) error {
		ours := next(tx)
		pool.setLose(func(statement string) error {
			if statement != "ROLLBACK" {
				return nil
			}
			pool.lose = nil
			cluster.Stop(t, "immediate")
			cluster.Start(t)
			for other := d.Open(t); next(other) < ours; {
			}
			return io.ErrUnexpectedEOF
		})
		return tx.Exec(`INSERT INTO made VALUES (1)`).Error
	})
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NotContains(t, err.Error(), "unknown")
	var n int
	require.Eventually(t, func() bool { return db.Raw(`SELECT count(*) FROM made`).Scan(&n).Error == nil },
		time.Minute, time.Millisecond)
	require.Zero(t, n)
	requireFree(t, db, "job")
}
