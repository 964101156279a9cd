package dbmutex_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// The tests of this file are named for the promises that they hold the package to.

func TestOneHolder(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		ctx := limited(t)
		const processes, goroutines, rounds = 3, 3, 10
		require.NoError(t, db.Exec(`CREATE TABLE counters (n integer)`).Error)
		require.NoError(t, db.Exec(`INSERT INTO counters VALUES (0)`).Error)
		var inside, overlaps atomic.Int32
		var wg sync.WaitGroup
		for range processes {
			own := open(t, d)
			for range goroutines {
				wg.Go(func() {
					for range rounds {
						err := own.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(func(context.Context) error {
							if inside.Add(1) > 1 {
								overlaps.Add(1)
							}
							defer inside.Add(-1)
							var n int
							if err := own.Raw(`SELECT n FROM counters`).Scan(&n).Error; err != nil {
								return err
							}
							return own.Exec(`UPDATE counters SET n = ?`, n+1).Error
						})
						if err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
		}
		wg.Wait()
		var n int
		require.NoError(t, db.Raw(`SELECT n FROM counters`).Scan(&n).Error)
		require.Equal(t, processes*goroutines*rounds, n)
		require.Zero(t, overlaps.Load())
	})
}

func TestOneHolderTakesOver(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		for range 20 {
			lost := acquire(t, db, "job")
			testdb.Expire(t, db, "job")
			var winners atomic.Int32
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					_, err := db.Mutex("job").Acquire()
					if err == nil {
						winners.Add(1)
					} else if !errors.Is(err, dbmutex.ErrNotAcquired) {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			require.EqualValues(t, 1, winners.Load())
			require.ErrorIs(t, lost.Renew(), dbmutex.ErrTimeout)
			require.ErrorIs(t, lost.Release(), dbmutex.ErrTimeout)
			requireHeld(t, db, "job")
			require.NoError(t, db.Mutex("job").ForceRelease())
		}
	})
}

func TestOnlyTheDatabasesClock(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		sane := open(t, d)
		for _, years := range []int{-50, 50} {
			off := open(t, d, &gorm.Config{
				Logger:  logger.Discard,
				NowFunc: func() time.Time { return time.Now().AddDate(years, 0, 0) },
			})
			lease := acquire(t, sane, "job")
			requireHeld(t, off, "job")
			require.NoError(t, lease.Release())

			lease = acquire(t, off, "job")
			stored := row(t, sane, "job")
			require.InDelta(t, time.Now().Unix(), stored.CreationTime.Unix(), 60)
			requireHeld(t, sane, "job")
			require.NoError(t, lease.Release())
		}
	})
}

func TestOnlyTheWantedRow(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		other := acquire(t, db, "other")
		testdb.Expire(t, db, "other")
		before := row(t, db, "other")
		lease := acquire(t, db, "job")
		testdb.Expire(t, db, "job")
		acquire(t, db, "job")
		require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)
		require.NoError(t, db.Mutex("job").ForceRelease())
		require.Equal(t, before, row(t, db, "other"))
		require.NoError(t, other.Release(), "nobody has taken it over")
	})
}

func TestATryIsCheapAndSilent(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out := &logs{}
		db := open(t, d, &gorm.Config{Logger: out.logger(logger.Warn)})
		acquire(t, db, "job")
		expiredLease := acquire(t, db, "pinned")
		testdb.Expire(t, db, "pinned")

		// While a transaction pins one lease (and, on SQLite, the file), tries neither wait nor fail.
		tx := open(t, d).Begin()
		require.NoError(t, expiredLease.Guard(tx))
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		waiting := db.WithContext(ctx)
		requireHeld(t, waiting, "job")
		requireHeld(t, waiting, "pinned")
		require.NoError(t, tx.Rollback().Error)
		require.NoError(t, waiting.Mutex("pinned").Do(nothing))
		require.NotContains(t, strings.ToLower(out.String()), "duplicate")
		require.NotContains(t, strings.ToLower(out.String()), "constraint")
	})
}

func TestATryWritesNothing(t *testing.T) {
	db := open(t, testdb.Postgres(t))
	acquire(t, db, "job")
	requireHeld(t, db, "job")
	type state struct {
		Xid string
		Lsn string
	}
	look := func() (s state) {
		require.NoError(t, db.Raw(`SELECT pg_snapshot_xmax(pg_current_snapshot())::text AS xid, pg_current_wal_insert_lsn()::text AS lsn`).Scan(&s).Error)
		return s
	}
	for giveUp := time.Now().Add(time.Minute); time.Now().Before(giveUp); { // others write now and then
		before := look()
		for range 10 {
			requireHeld(t, db, "job")
		}
		if look() == before {
			return
		}
	}
	require.Fail(t, "failed tries wrote to the log, or took transaction ids")
}

func TestTheHolderKnowsInTime(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		t.Run("at its deadline", func(t *testing.T) {
			lease := acquire(t, db, "deadline", dbmutex.WithTTL(50*time.Millisecond))
			deadline, expires := lease.ExpiresAt()
			require.True(t, expires)
			requireEnds(t, lease.Context())
			require.False(t, time.Now().Before(deadline))
			require.ErrorIs(t, context.Cause(lease.Context()), dbmutex.ErrTimeout)
			stored := row(t, db, "deadline")
			require.GreaterOrEqual(t, stored.ExpiresAt.Sub(stored.CreationTime), 50*time.Millisecond)
			require.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout)
			requireTimeout(t, lease.Release(), "deadline", false)
		})
		t.Run("while the database hangs", func(t *testing.T) {
			lease := acquire(t, db, "hangs", dbmutex.WithTTL(time.Second), dbmutex.WithRenewal())
			letGo := d.Hang(t)
			requireEnds(t, lease.Context())
			require.ErrorIs(t, context.Cause(lease.Context()), dbmutex.ErrTimeout)
			letGo()
		})
		t.Run("as soon as a renewal finds it gone", func(t *testing.T) {
			lease := acquire(t, db, "gone", dbmutex.WithTTL(time.Minute))
			require.NoError(t, db.Mutex("gone").ForceRelease())
			require.NoError(t, lease.Context().Err())
			require.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout)
			require.ErrorIs(t, context.Cause(lease.Context()), dbmutex.ErrTimeout)
			require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)
		})
		t.Run("by its own renewals", func(t *testing.T) {
			lease := acquire(t, db, "renewed", dbmutex.WithTTL(3*time.Second), dbmutex.WithRenewal())
			first, _ := lease.ExpiresAt()
			require.Eventually(t, func() bool { now, _ := lease.ExpiresAt(); return now.After(first) },
				time.Minute, 10*time.Millisecond)
			require.NoError(t, db.Mutex("renewed").ForceRelease())
			requireEnds(t, lease.Context())
			deadline, _ := lease.ExpiresAt()
			require.True(t, time.Now().Before(deadline), "the renewal came first")
		})
	})
}

func TestNobodyTakesOverBeforeTheHolderKnows(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		other := open(t, d)
		for range 40 {
			lease, err := db.Mutex("job", dbmutex.WithTTL(4*time.Millisecond)).Acquire()
			require.NoError(t, err)
			deadline, _ := lease.ExpiresAt()
			var next *dbmutex.Lease
			for next == nil {
				if next, err = other.Mutex("job").Acquire(); err != nil {
					require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
				}
			}
			require.False(t, time.Now().Before(deadline))
			require.NoError(t, next.Release())
		}
	})
}

func TestOneFailedRenewalIsNoLoss(t *testing.T) {
	db, pool := openFaulty(t, testdb.Postgres(t))
	lease := acquire(t, db, "job", dbmutex.WithTTL(3*time.Second), dbmutex.WithRenewal())
	first, _ := lease.ExpiresAt()
	var failed atomic.Int32
	pool.setLose(func(statement string) error {
		if strings.HasPrefix(statement, "UPDATE") && failed.Add(1) <= 3 {
			return &sqlError{"42501"} // permission denied, for a while
		}
		return nil
	})
	require.Eventually(t, func() bool { return failed.Load() > 3 }, time.Minute, 10*time.Millisecond)
	require.Eventually(t, func() bool { now, _ := lease.ExpiresAt(); return now.After(first) }, time.Minute, time.Millisecond)
	require.NoError(t, lease.Context().Err())
	require.NoError(t, lease.Release())
}

type sqlError struct{ code string }

func (e *sqlError) Error() string    { return "SQLSTATE " + e.code }
func (e *sqlError) SQLState() string { return e.code }

func TestDoTellsTheTruth(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		short := dbmutex.WithTTL(20 * time.Millisecond)
		pastDeadline := func(ctx context.Context) { requireEnds(t, ctx) }
		for _, test := range []struct {
			name    string
			opts    []dbmutex.Option
			work    func(ctx context.Context) error
			timeout bool
			workErr bool // the error is the work's, too
		}{
			{name: "all is well", work: nothing},
			{name: "the work fails", work: func(context.Context) error { return errWork }, workErr: true},
			{name: "past the deadline, the row still there", opts: []dbmutex.Option{short},
				work: func(ctx context.Context) error { pastDeadline(ctx); return nil }, timeout: true},
			{name: "past the deadline, the work fails", opts: []dbmutex.Option{short},
				work: func(ctx context.Context) error { pastDeadline(ctx); return errWork }, timeout: true, workErr: true},
			{name: "the row is gone", work: func(context.Context) error { return db.Mutex("job").ForceRelease() }, timeout: true},
			{name: "the row is gone, the work fails", timeout: true, workErr: true,
				work: func(context.Context) error { return errors.Join(db.Mutex("job").ForceRelease(), errWork) }},
			{name: "released in a transaction, past the deadline, the work fails", opts: []dbmutex.Option{short}, workErr: true,
				work: func(ctx context.Context) error {
					lease, _ := dbmutex.LeaseFrom(ctx)
					if err := db.Gorm.Transaction(func(tx *gorm.DB) error { return lease.ReleaseIn(tx) }); err != nil {
						return err
					}
					pastDeadline(ctx)
					return errWork
				}},
			{name: "released by the work, past the deadline, the work fails", opts: []dbmutex.Option{short}, workErr: true,
				work: func(ctx context.Context) error {
					lease, _ := dbmutex.LeaseFrom(ctx)
					deadline, _ := lease.ExpiresAt()
					if err := lease.Release(); err != nil {
						return err
					}
					time.Sleep(time.Until(deadline))
					return errWork
				}},
			{name: "released by the work", work: func(ctx context.Context) error {
				lease, _ := dbmutex.LeaseFrom(ctx)
				return lease.Release()
			}},
		} {
			t.Run(test.name, func(t *testing.T) {
				err := db.Mutex("job", test.opts...).Do(test.work)
				require.Equal(t, test.timeout, errors.Is(err, dbmutex.ErrTimeout), "%v", err)
				require.Equal(t, test.workErr, errors.Is(err, errWork), "%v", err)
				require.Equal(t, test.timeout || test.workErr, err != nil, "%v", err)
				requireFree(t, db, "job")
			})
		}
	})
}

func TestWaitingAndHoldingHaveLimitsOfTheirOwn(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.NoError(t, db.Mutex("job", dbmutex.WithWait(20*time.Millisecond)).Do(func(ctx context.Context) error {
			time.Sleep(60 * time.Millisecond)
			return context.Cause(ctx)
		}))
	})
}

func TestReleaseHappensAfterCancellation(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		ctx, cancel := context.WithCancelCause(context.Background())
		err := db.WithContext(ctx).Mutex("job").Do(func(ctx context.Context) error {
			cancel(errWork)
			<-ctx.Done()
			lease, _ := dbmutex.LeaseFrom(ctx)
			require.NoError(t, lease.Renew(), "the work is winding down")
			return context.Cause(ctx)
		})
		require.Equal(t, errWork, err)
		require.Nil(t, row(t, db, "job"))
	})
}

func TestRenewalsOutlastTheCallersContext(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		ctx, cancel := context.WithCancel(context.Background())
		mutex := db.WithContext(ctx).Mutex("job", dbmutex.WithTTL(3*time.Second), dbmutex.WithRenewal())
		require.NoError(t, mutex.Do(func(ctx context.Context) error {
			cancel() // the work winds down, and still holds the mutex
			lease, _ := dbmutex.LeaseFrom(ctx)
			first, _ := lease.ExpiresAt()
			require.Eventually(t, func() bool { now, _ := lease.ExpiresAt(); return now.After(first) },
				time.Minute, 10*time.Millisecond)
			return nil
		}))
	})
}

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

func TestTokensStrictlyGrow(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		ctx := limited(t)
		var last atomic.Int64
		var wg sync.WaitGroup
		for i := range 8 { // tries that race for the row
			own := open(t, d).WithContext(ctx)
			wg.Go(func() {
				for n := 0; n < 30; {
					lease, err := own.Mutex("job").Acquire()
					if errors.Is(err, dbmutex.ErrNotAcquired) {
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					if before := last.Swap(lease.Token()); lease.Token() <= before {
						t.Errorf("%d after %d", lease.Token(), before)
					}
					end := lease.Release
					if i == 0 && n%3 == 0 {
						end = own.Mutex("job").ForceRelease
					}
					if err := end(); err != nil {
						t.Error(err)
					}
					n++
				}
			})
		}
		wg.Wait()
		lease := acquire(t, db, "job")
		require.Greater(t, lease.Token(), last.Load())
		testdb.Expire(t, db, "job")
		require.Greater(t, acquire(t, db, "job").Token(), lease.Token(), "a take-over")
	})
}

// A try that waited for the row may have drawn its id before a lease that ended meanwhile drew its token.
func TestATokenIsDrawnOnceTheRowIsWon(t *testing.T) {
	t.Parallel()
	db := open(t, testdb.Postgres(t))
	first := db.Begin()
	require.NoError(t, first.Exec(`INSERT INTO db_mutexes (lock_id, creation_time, holder, lease_id)
		VALUES ('job', now(), '', '')`).Error)
	acquired := make(chan *dbmutex.Lease, 1)
	go func() {
		lease, err := db.WithContext(limited(t)).Mutex("job").Acquire()
		if err != nil {
			t.Error(err)
		}
		acquired <- lease
	}()
	require.Eventually(t, func() bool {
		var waiting int
		require.NoError(t, db.Raw(`SELECT count(*) FROM pg_locks WHERE NOT granted AND transactionid::text = (
			SELECT transactionid::text FROM pg_locks WHERE pid = ? AND locktype = 'transactionid' AND granted)`,
			backend(t, first)).Scan(&waiting).Error)
		return waiting == 1
	}, time.Minute, time.Millisecond)
	var token int64
	require.NoError(t, first.Raw(`SELECT nextval(pg_get_serial_sequence('db_mutexes', 'id'))`).Scan(&token).Error)
	require.NoError(t, first.Exec(`DELETE FROM db_mutexes`).Error)
	require.NoError(t, first.Commit().Error)
	lease := <-acquired
	require.Greater(t, lease.Token(), token)
	require.NoError(t, lease.Release())
}

// backend is a session's process on the server.
func backend(t *testing.T, tx *gorm.DB) (pid int) {
	require.NoError(t, tx.Raw(`SELECT pg_backend_pid()`).Scan(&pid).Error)
	return pid
}

func TestTransactionCommitsOnlyWhileHeld(t *testing.T) {
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
					err := own.Mutex("job", dbmutex.WithTTL(time.Microsecond), dbmutex.WithWait(dbmutex.Forever)).Transaction(func(tx *gorm.DB) error {
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
	db := open(t, testdb.Postgres(t))
	for _, level := range []sql.IsolationLevel{sql.LevelDefault, sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
		t.Run(level.String(), func(t *testing.T) {
			ttl := 300 * time.Millisecond
			if level <= sql.LevelReadCommitted {
				ttl = 3 * time.Second // time enough for a renewal
			}
			mutex := db.Mutex("job", dbmutex.WithTTL(ttl), dbmutex.WithRenewal())
			require.NoError(t, mutex.Transaction(func(tx *gorm.DB) error {
				lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
				first, _ := lease.ExpiresAt()
				require.NoError(t, tx.Exec(`SELECT 1`).Error)
				if level <= sql.LevelReadCommitted {
					require.Eventually(t, func() bool { now, _ := lease.ExpiresAt(); return now.After(first) }, time.Minute, time.Millisecond)
				} else {
					requireEnds(t, lease.Context())
				}
				return nil
			}, &sql.TxOptions{Isolation: level}))

			err := mutex.Transaction(func(tx *gorm.DB) error {
				require.NoError(t, tx.Exec(`SELECT 1`).Error)
				return db.Mutex("job").ForceRelease()
			}, &sql.TxOptions{Isolation: level})
			require.ErrorIs(t, err, dbmutex.ErrTimeout)
		})
	}
}

func TestNeverInsideACallersTransaction(t *testing.T) {
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

func TestNoConnectionIsKept(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1)
		db = db.WithContext(limited(t))
		require.NoError(t, db.Mutex("job", dbmutex.WithRenewal()).Do(func(context.Context) error {
			require.Zero(t, pool.Stats().InUse)
			requireHeld(t, db, "job")
			return db.Exec(`SELECT 1`).Error
		}))
		require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error { return tx.Exec(`SELECT 1`).Error }))
		require.Equal(t, errWork, db.Mutex("job").Transaction(func(*gorm.DB) error { return errWork }))
		require.NoError(t, db.Migrate(&dbmutex.DBMutex{}))

		lease := acquire(t, db, "job", dbmutex.WithTTL(30*time.Millisecond))
		waiter := acquire(t, db, "job", dbmutex.WithWait(dbmutex.Forever))
		require.Greater(t, waiter.Token(), lease.Token())
		require.Eventually(t, func() bool { return pool.Stats().InUse == 0 }, time.Minute, time.Millisecond)
	})
}

func TestDryRunAndErrorsOnTheHandle(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		dry := db.Session(&gorm.Session{DryRun: true})
		require.ErrorIs(t, dry.Mutex("job").Do(func(context.Context) error { panic("ran") }), dbmutex.ErrDryRun)
		require.ErrorIs(t, dry.Migrate(), dbmutex.ErrDryRun)

		broken := dbmutex.Wrap(db.Gorm.WithContext(context.Background()))
		_ = broken.AddError(errWork)
		require.Equal(t, errWork, broken.Mutex("job").Do(func(context.Context) error { panic("ran") }))
	})
}

func TestItSurvivesACrash(t *testing.T) {
	t.Parallel()
	// What a commit waits for is in force when its deferred triggers run.
	d := testdb.Postgres(t)
	for _, setting := range []string{"off", "on", "remote_apply", "local"} {
		t.Run(setting, func(t *testing.T) {
			db := openDSN(t, withSetting(d.DSN, "synchronous_commit", setting))
			require.NoError(t, db.Migrate())
			require.NoError(t, db.Exec(`
				CREATE TABLE commits (n serial, setting text);
				CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
					INSERT INTO commits (setting) VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;
				CREATE CONSTRAINT TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON db_mutexes
					DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note()`).Error)
			defer func() {
				require.NoError(t, db.Exec(`DROP TABLE commits; DROP FUNCTION note() CASCADE`).Error)
			}()
			lease := acquire(t, db, "job")
			require.NoError(t, lease.Renew())
			testdb.Expire(t, db, "job") // under the session's setting
			lease = acquire(t, db, "job")
			require.NoError(t, lease.Release())
			lease = acquire(t, db, "job", dbmutex.WithoutTTL())
			require.NoError(t, lease.Release(), "if a crash undid this, the lock would be held for good")
			acquire(t, db, "job", dbmutex.WithoutTTL())
			require.NoError(t, db.Mutex("job").ForceRelease(), "nor this")
			var got []string
			require.NoError(t, db.Raw(`SELECT setting FROM commits ORDER BY n`).Scan(&got).Error)
			lasting := setting
			if setting == "off" {
				lasting = "on"
			}
			require.Equal(t, []string{lasting, lasting, setting, lasting, "off", lasting, lasting, lasting, lasting}, got)
		})
	}
}
