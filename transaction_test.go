package dbmutex_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestTransactionCommitsOnlyWhileHeld(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
		insert := func(tx *gorm.DB, id int) error { return tx.Exec(`INSERT INTO made VALUES (?)`, id).Error }
		made := func(id int) bool {
			var n int
			require.NoError(t, db.Raw(`SELECT count(*) FROM made WHERE id = ?`, id).Scan(&n).Error)
			return n == 1
		}
		require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error {
			lease, ok := dbmutex.LeaseFrom(tx.Statement.Context)
			require.True(t, ok)
			require.Equal(t, "job", lease.LockID())
			return insert(tx, 1)
		}))
		require.True(t, made(1))
		require.Nil(t, row(t, db, "job"), "released in the same commit")

		require.Equal(t, errWork, db.Mutex("job").Transaction(func(tx *gorm.DB) error {
			require.NoError(t, insert(tx, 2))
			return errWork
		}))
		require.False(t, made(2))
		requireFree(t, db, "job")

		// A deadline alone does not abort it.
		require.NoError(t, db.Mutex("job", dbmutex.WithTTL(20*time.Millisecond)).Transaction(func(tx *gorm.DB) error {
			lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
			requireEnds(t, lease.Context())
			require.NoError(t, tx.Statement.Context.Err())
			return insert(tx, 3)
		}))
		require.True(t, made(3))

		// A loss does. (If nobody else can write meanwhile, the row goes in the transaction itself.)
		err := db.Mutex("job").Transaction(func(tx *gorm.DB) error {
			if d.OneWriter {
				require.NoError(t, tx.Exec(`DELETE FROM db_mutexes`).Error)
			} else {
				testdb.Expire(t, db, "job")
				acquire(t, db, "job")
			}
			return insert(tx, 4)
		})
		require.ErrorIs(t, err, dbmutex.ErrTimeout)
		require.False(t, made(4))
		require.NoError(t, db.Mutex("job").ForceRelease())

		// The context's end does, too.
		ctx, cancel := context.WithCancel(context.Background())
		err = db.WithContext(ctx).Mutex("job").Transaction(func(tx *gorm.DB) error {
			require.NoError(t, insert(tx, 5))
			cancel()
			return nil
		})
		require.ErrorIs(t, err, context.Canceled)
		require.False(t, made(5))
		requireFree(t, db, "job")

		require.ErrorIs(t, db.Mutex("job").Transaction(func(*gorm.DB) error { return nil }, &sql.TxOptions{ReadOnly: true}),
			dbmutex.ErrInvalidSettings)
	})
}

func TestTransactionsDoNotOverlap(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		ctx := limited(t)
		require.NoError(t, db.Exec(`CREATE TABLE counters (n integer)`).Error)
		require.NoError(t, db.Exec(`INSERT INTO counters VALUES (0)`).Error)
		var committed atomic.Int32
		var wg sync.WaitGroup
		for range 4 {
			own := open(t, d).WithContext(ctx)
			wg.Go(func() {
				for range 10 {
					// Leases run out at once, so that the transactions do overlap in time.
					err := own.Mutex("job", dbmutex.WithTTL(time.Millisecond), dbmutex.WithWait(dbmutex.Forever)).
						Transaction(func(tx *gorm.DB) error {
							var n int
							if err := tx.Raw(`SELECT n FROM counters`).Scan(&n).Error; err != nil {
								return err
							}
							time.Sleep(time.Millisecond)
							return tx.Exec(`UPDATE counters SET n = ?`, n+1).Error
						})
					switch {
					case err == nil:
						committed.Add(1)
					case !errors.Is(err, dbmutex.ErrTimeout):
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		var n int32
		require.NoError(t, db.Raw(`SELECT n FROM counters`).Scan(&n).Error)
		require.Equal(t, committed.Load(), n)
		require.Positive(t, n)
	})
}

func TestATransactionOnSQLiteWritesFirst(t *testing.T) {
	t.Parallel()
	d := testdb.SQLite(t)
	db, other := open(t, d), open(t, d)
	pool, err := other.DB()
	require.NoError(t, err)
	pool.SetMaxOpenConns(1)
	require.NoError(t, other.Exec(`CREATE TABLE made (id integer)`).Error)
	require.NoError(t, other.Exec(`PRAGMA busy_timeout = 0`).Error)
	require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error {
		var n int
		require.NoError(t, tx.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
		require.ErrorContains(t, other.Exec(`INSERT INTO made VALUES (1)`).Error, "locked")
		return tx.Exec(`INSERT INTO made VALUES (2)`).Error // would fail if another had written since the SELECT
	}))
}

func TestTransactionIsolationLevels(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.ManyWriters, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		db := open(t, d)
		for _, level := range []sql.IsolationLevel{
			sql.LevelDefault, sql.LevelReadUncommitted, sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable,
		} {
			t.Run(level.String(), func(t *testing.T) {
				renewed := slices.Contains(d.RenewedAt, level)
				ttl := 300 * time.Millisecond
				if renewed {
					ttl = 3 * time.Second // time enough for a renewal
				}
				mutex := db.Mutex("job", dbmutex.WithTTL(ttl), dbmutex.WithRenewal())
				require.NoError(t, mutex.Transaction(func(tx *gorm.DB) error {
					lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
					first, _ := lease.ExpiresAt()
					require.NoError(t, tx.Exec(`SELECT 1`).Error)
					if renewed {
						require.Eventually(
							t, func() bool { now, _ := lease.ExpiresAt(); return now.After(first) }, time.Minute, time.Millisecond,
						)
					} else {
						requireEnds(t, lease.Context())
					}
					return nil
				}, &sql.TxOptions{Isolation: level}))

				err := mutex.Transaction(func(tx *gorm.DB) error {
					require.NoError(t, tx.Exec(`SELECT count(*) FROM db_mutexes`).Error)
					return db.Mutex("job").ForceRelease()
				}, &sql.TxOptions{Isolation: level})
				require.ErrorIs(t, err, dbmutex.ErrTimeout)
			})
		}
	})
}

func TestTransactionRunsOnWhatGORMWouldBegin(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		pool, err := db.DB()
		require.NoError(t, err)
		for _, prepare := range []bool{false, true} {
			handle := db.Session(&gorm.Session{})
			if prepare {
				handle.Config.ConnPool = gorm.NewPreparedStmtDB(pool, 100, time.Hour)
				handle.Statement.ConnPool = handle.Config.ConnPool
			}
			plain := handle.Gorm.Begin()
			require.NoError(t, plain.Rollback().Error)
			require.NoError(t, handle.Mutex("job").Transaction(func(tx *gorm.DB) error {
				require.IsType(t, plain.Statement.ConnPool, tx.Statement.ConnPool)
				beneath, err := tx.DB()
				require.NoError(t, err)
				require.Same(t, pool, beneath)
				return tx.Transaction(func(tx *gorm.DB) error { return tx.Exec(`SELECT 1`).Error })
			}))
			if prepare {
				require.Contains(t, handle.Config.ConnPool.(*gorm.PreparedStmtDB).Stmts.Keys(), `SELECT 1`)
			}
		}
	})
}

// staleConnector makes connections that turn out to be dead at the next BEGIN, as often as stale says.
type staleConnector struct {
	driver.Connector
	stale *atomic.Int32
}

func (c staleConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &staleConn{conn.(testdb.SQLConn), c.stale}, nil
}

type staleConn struct {
	testdb.SQLConn
	stale *atomic.Int32
}

func (c *staleConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if c.stale.Add(-1) >= 0 {
		return nil, driver.ErrBadConn
	}
	return c.SQLConn.BeginTx(ctx, opts)
}

func TestTransactionBeginsOnAnotherConnection(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		open(t, d)
		var stale atomic.Int32
		pool := sql.OpenDB(staleConnector{d.Connector(t), &stale})
		defer func() { require.NoError(t, pool.Close()) }()
		pool.SetMaxOpenConns(1)
		db := d.MutexesOn(t, pool, dbmutex.DefaultSettings())
		stale.Store(2)
		require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error { return tx.Exec(`SELECT 1`).Error }))
		require.Negative(t, stale.Load())
	})
}

func TestAContextThatEndsAtTheTransactionsBeginning(t *testing.T) {
	t.Parallel()
	for _, prepare := range []bool{false, true} {
		each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
			ctx, cancel := context.WithCancel(limited(t))
			cut := d.Registered(t, dbmutex.DefaultSettings(), &gorm.Config{PrepareStmt: prepare})
			pool, err := cut.DB()
			require.NoError(t, err)
			cut.ConnPool = &beginning{DB: pool, end: cancel}
			if prepare {
				cut.ConnPool = gorm.NewPreparedStmtDB(cut.ConnPool, 100, time.Hour)
			}
			cut.Statement.ConnPool = cut.ConnPool
			err = cut.WithContext(ctx).Mutex("job").Transaction(func(*gorm.DB) error { return nil })
			require.ErrorIs(t, err, context.Canceled)
			requireFree(t, db, "job")
			require.Eventually(t, func() bool { return pool.Stats().InUse == 0 }, time.Minute, time.Millisecond) // soon
		})
	}
}

// beginning is a pool that ends a lease's context when the first transaction has begun under it, which is then over.
type beginning struct {
	*sql.DB
	end   func()
	ended bool
}

func (p *beginning) GetDBConn() (*sql.DB, error) { return p.DB, nil }

func (p *beginning) BeginTx(ctx context.Context, opts *sql.TxOptions) (gorm.ConnPool, error) {
	tx, err := p.DB.BeginTx(ctx, opts)
	if _, leased := dbmutex.LeaseFrom(ctx); !leased || p.ended {
		return tx, err
	}
	p.ended = true
	p.end()
	for err == nil {
		if _, over := tx.Exec(`SELECT 1`); errors.Is(over, sql.ErrTxDone) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return tx, err
}

// A commit is not taken back because it came late: nobody had the mutex meanwhile.
func TestALateCommitIsNoTimeout(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.NoError(t, db.Mutex("job", dbmutex.WithTTL(shortLease)).Transaction(func(tx *gorm.DB) error {
			lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
			requireEnds(t, lease.Context())
			return nil
		}))

		releaseIn := func(ctx context.Context, end error) error {
			requireEnds(t, ctx)
			lease, _ := dbmutex.LeaseFrom(ctx)
			err := db.Gorm.Transaction(func(tx *gorm.DB) error { return errors.Join(lease.ReleaseIn(tx), end) })
			if end != nil {
				require.ErrorIs(t, err, end)
				return nil
			}
			return err
		}
		short := db.Mutex("job", dbmutex.WithTTL(shortLease))
		require.NoError(t, short.Do(func(ctx context.Context) error { return releaseIn(ctx, nil) }))
		requireTimeout(t, short.Do(func(ctx context.Context) error { return releaseIn(ctx, errWork) }), "job", false)

		lease := acquire(t, db, "job", dbmutex.WithTTL(shortLease))
		requireEnds(t, lease.Context())
		require.NoError(t, db.Gorm.Transaction(lease.ReleaseIn))
		require.NoError(t, lease.Release())
		require.NoError(t, lease.Release())
		requireTimeout(t, lease.Do(func(context.Context) error {
			t.Error("it ran without the mutex")
			return nil
		}), "job", true)
	})
}

func TestATransactionThatLostItsLeaseSaysSo(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.ManyWriters, func(t *testing.T, d *testdb.Database) {
		db := open(t, d)
		for _, workErr := range []error{nil, errWork} {
			err := db.Mutex("job").Transaction(func(tx *gorm.DB) error {
				require.NoError(t, db.Mutex("job").ForceRelease())
				return workErr
			})
			require.Zero(t, timeoutOf(t, err, "job", true).Late)
			require.Equal(t, workErr != nil, errors.Is(err, errWork))
			require.Equal(t, 1, strings.Count(err.Error(), dbmutex.ErrTimeout.Error()), "it is told once: %v", err)
		}
	})
}

func TestATransactionThatRemovesItsOwnLeaseIsRolledBack(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
		err := db.Mutex("job").Transaction(func(tx *gorm.DB) error {
			require.NoError(t, tx.Exec(`INSERT INTO made VALUES (1)`).Error)
			return tx.Exec(`DELETE FROM db_mutexes`).Error
		})
		require.ErrorIs(t, err, dbmutex.ErrTimeout)
		var n int
		require.NoError(t, db.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
		require.Zero(t, n)
		requireFree(t, db, "job")
	})
}

func TestTransactionCarriesTheHandlesSettings(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		handle := dbmutex.Wrap(db.Set("tenant", "acme").Session(&gorm.Session{SkipHooks: true}))
		require.NoError(t, handle.Mutex("job").Transaction(func(tx *gorm.DB) error {
			for range 2 {
				tenant, _ := tx.Get("tenant")
				require.Equal(t, "acme", tenant)
				require.True(t, tx.Exec(`SELECT 1`).Statement.SkipHooks)
			}
			return nil
		}))
		require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error {
			_, set := tx.Get("tenant")
			require.False(t, set)
			return nil
		}))
	})
}

func TestTransactionReleasesItsLeaseItself(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error {
			lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
			require.NoError(t, lease.Guard(tx))
			require.ErrorIs(t, lease.ReleaseIn(tx), dbmutex.ErrInvalidSettings)
			return nil
		}))
		requireFree(t, db, "job")
	})
}

func TestNeverInsideACallersTransaction(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		for _, config := range []*gorm.Config{{}, {PrepareStmt: true}} {
			out := &logs{}
			config.Logger = out.logger(logger.Info)
			db := open(t, d, config)
			require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error {
				before := out.String()
				mutex := dbmutex.Wrap(tx).Mutex("job")
				_, err := mutex.Acquire()
				require.ErrorIs(t, err, dbmutex.ErrInTransaction)
				require.ErrorIs(t, mutex.Do(nothing), dbmutex.ErrInTransaction)
				require.ErrorIs(t, mutex.Transaction(func(*gorm.DB) error { return nil }), dbmutex.ErrInTransaction)
				require.ErrorIs(t, dbmutex.Wrap(tx).Migrate(), dbmutex.ErrInTransaction)
				require.Equal(t, before, out.String(), "no SQL")
				return nil
			}))
		}
	})
}

func TestATransactionsOwnStatementsAreLogged(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out := &logs{}
		db := open(t, d, &gorm.Config{Logger: out.logger(logger.Error)})
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer PRIMARY KEY)`).Error)
		err := db.Mutex("job").Transaction(func(tx *gorm.DB) error {
			require.Same(t, db.Logger, tx.Logger)
			return errors.Join(tx.Exec(`INSERT INTO made VALUES (1)`).Error, tx.Exec(`INSERT INTO made VALUES (1)`).Error)
		})
		require.Error(t, err)
		require.Contains(t, out.String(), "INSERT INTO made")
	})
}
