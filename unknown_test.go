package dbmutex_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	for name, of := range map[string]func(testdb.Errors) error{
		"the connection died":    func(testdb.Errors) error { return io.ErrUnexpectedEOF },
		"database/sql gave up":   func(testdb.Errors) error { return driver.ErrBadConn },
		"it was terminated":      func(e testdb.Errors) error { return e.Killed },
		"the transaction failed": func(e testdb.Errors) error { return e.Conflict },
	} {
		t.Run(name, func(t *testing.T) {
			eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
				lost := of(pool.Errors)
				direct := open(t, pool.Database)
				loseEffect := func() { // of the acquire that takes the row
					before := row(t, direct, "job")
					pool.setLose(func(statement string) error {
						if pool.Verb(statement) != "acquire" || reflect.DeepEqual(row(t, direct, "job"), before) {
							return nil
						}
						pool.lose = nil
						return lost
					})
				}
				for _, opts := range [][]dbmutex.Option{nil, {dbmutex.WithoutTTL()}} {
					loseEffect()
					lease, err := db.Mutex("job", opts...).Acquire()
					require.NoError(t, err)
					require.Nil(t, pool.lose)
					stored := row(t, db, "job")
					require.Equal(t, max(stored.ID, stored.Token), lease.Token(), "a fresh token, by a take-over of its own row")
					requireHeld(t, db, "job")

					testdb.Expire(t, db, "job")
					loseEffect()
					successor, err := db.Mutex("job", opts...).Acquire()
					require.NoError(t, err)
					require.Nil(t, pool.lose)
					require.Greater(t, successor.Token(), lease.Token())
					require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)
					lease = successor

					renewals := pool.loseFirst("renew", lost)
					require.NoError(t, lease.Renew())
					if len(opts) == 0 { // a renewal of one that never expires may do nothing
						require.Greater(t, renewals.Load(), int32(1), "it was tried again")
					}

					releases := pool.loseFirst("release", lost)
					if errors.Is(lost, pool.Errors.Conflict) { // it has had its effect here, against what it says
						require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)
					} else {
						require.NoError(t, lease.Release())
					}
					require.Greater(t, releases.Load(), int32(1), "it was tried again")
					require.Nil(t, row(t, db, "job"))
				}
			})
		})
	}
	t.Run("a statement that database/sql would repeat", func(t *testing.T) {
		testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
			var lose atomic.Bool
			pool := sql.OpenDB(losingConnector{d.Connector(t), d, &lose})
			defer func() { require.NoError(t, pool.Close()) }()
			db := d.MutexesOn(t, pool, dbmutex.DefaultSettings())
			require.NoError(t, db.Mutex("job").Do(func(context.Context) error { lose.Store(true); return nil }))
			require.False(t, lose.Load())
			require.Nil(t, row(t, db, "job"))
		})
	})
	t.Run("a release that is called again", func(t *testing.T) {
		eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
			lease := acquire(t, db, "job")
			pool.setLose(func(statement string) error {
				if pool.Verb(statement) == "release" {
					return io.ErrUnexpectedEOF
				}
				return nil
			})
			require.ErrorContains(t, lease.Release(), "it goes on in the background")
			pool.setLose(nil)
			require.NoError(t, lease.Release(), "nobody overlapped")
		})
	})
	t.Run("a late answer", func(t *testing.T) {
		eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
			lease := acquire(t, db, "job", dbmutex.WithTTL(20*time.Millisecond))
			requireEnds(t, lease.Context())
			calls := pool.loseFirst("release", io.ErrUnexpectedEOF)
			require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout, "past the deadline it may have been another's work")
			require.Greater(t, calls.Load(), int32(1), "it was tried again")
		})
	})
	t.Run("cancelled in the middle", func(t *testing.T) {
		eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
			ctx, cancel := context.WithCancel(context.Background())
			pool.setLose(func(statement string) error {
				if pool.Verb(statement) == "acquire" {
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
	})
	t.Run("COMMIT", func(t *testing.T) {
		eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
			require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
			commits := pool.loseFirst("COMMIT", io.ErrUnexpectedEOF)
			require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error {
				return tx.Exec(`INSERT INTO made VALUES (1)`).Error
			}), "it had committed")
			require.EqualValues(t, 1, commits.Load())
			require.Nil(t, row(t, db, "job"))
		})
	})
	t.Run("COMMIT that did not happen", func(t *testing.T) {
		eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
			require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
			pool.loseFirst("ROLLBACK", io.ErrUnexpectedEOF)
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
	})
	t.Run("COMMIT, and nobody to ask", func(t *testing.T) {
		eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
			committed := false
			pool.setLose(func(statement string) error {
				if committed = committed || statement == "COMMIT"; committed {
					return io.ErrUnexpectedEOF
				}
				return nil
			})
			err := db.Mutex("job").Transaction(func(tx *gorm.DB) error { return nil })
			require.ErrorContains(t, err, "whether it committed is unknown")
			require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		})
	})
	t.Run("ReleaseIn's COMMIT", func(t *testing.T) {
		eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
			err := db.Mutex("job").Do(func(ctx context.Context) error {
				lease, _ := dbmutex.LeaseFrom(ctx)
				pool.loseFirst("COMMIT", io.ErrUnexpectedEOF)
				return db.Gorm.Transaction(func(tx *gorm.DB) error { return lease.ReleaseIn(tx) })
			})
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		})
	})
}

// losingConnector makes connections that lose the answer to a release once, with an error that makes database/sql repeat it.
type losingConnector struct {
	driver.Connector
	d    *testdb.Database
	lose *atomic.Bool
}

func (c losingConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &losingConn{conn.(testdb.SQLConn), c}, nil
}

type losingConn struct {
	testdb.SQLConn
	losingConnector
}

func (c *losingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	res, err := c.SQLConn.ExecContext(ctx, query, args)
	if c.d.Verb(query) == "release" && c.lose.CompareAndSwap(true, false) {
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
