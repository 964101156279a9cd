package dbmutex_test

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out := &logs{}
		db := open(t, d, &gorm.Config{Logger: out.logger(logger.Warn)})
		acquire(t, db, "job")
		expiredLease := acquire(t, db, "pinned")
		testdb.Expire(t, db, "pinned")

		// While a transaction pins one lease (and, on SQLite, the file), tries neither wait nor fail; but on SQLite those of a
		// lease that has run out wait, as nobody can tell whether it is pinned.
		tx := open(t, d).Begin()
		require.NoError(t, expiredLease.Guard(tx))
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		waiting := db.WithContext(ctx)
		requireHeld(t, waiting, "job")
		requirePinned(t, waiting, d, "pinned")
		require.NoError(t, tx.Rollback().Error)
		require.NoError(t, waiting.Mutex("pinned").Do(nothing))
		require.NotContains(t, strings.ToLower(out.String()), "duplicate")
		require.NotContains(t, strings.ToLower(out.String()), "constraint")
	})
}

func TestATryWritesNothing(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		observer := d.Open(t)
		pool, err := observer.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1) // it stays the same session
		look := func() (seen []map[string]any) {
			require.NoError(t, observer.Raw(d.Written).Scan(&seen).Error)
			require.NotEmpty(t, seen)
			return seen
		}
		before := look()
		acquire(t, db, "job")
		require.Eventually(t, func() bool { return !assert.ObjectsAreEqual(before, look()) },
			time.Minute, 10*time.Millisecond, "an acquire writes") // MySQL counts some of it later
		requireHeld(t, db, "job")
		for giveUp := time.Now().Add(time.Minute); time.Now().Before(giveUp); { // others write now and then
			before := look()
			for range 10 {
				requireHeld(t, db, "job")
			}
			if reflect.DeepEqual(before, look()) {
				return
			}
		}
		require.Fail(t, "failed tries wrote")
	})
}

func TestTheHolderKnowsInTime(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		lease := acquire(t, db, "job", dbmutex.WithTTL(3*time.Second), dbmutex.WithRenewal())
		first, _ := lease.ExpiresAt()
		var failed atomic.Int32
		pool.setLose(func(statement string) error {
			if pool.Verb(statement) == "renew" && failed.Add(1) <= 3 {
				return pool.Errors.Forbidden // for a while
			}
			return nil
		})
		require.Eventually(t, func() bool { return failed.Load() > 3 }, time.Minute, 10*time.Millisecond)
		require.Eventually(t, func() bool { now, _ := lease.ExpiresAt(); return now.After(first) }, time.Minute, time.Millisecond)
		require.NoError(t, lease.Context().Err())
		require.NoError(t, lease.Release())
	})
}

func TestDoTellsTheTruth(t *testing.T) {
	t.Parallel()
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
			{name: "released by the work, past the deadline, the work fails", workErr: true,
				opts: []dbmutex.Option{dbmutex.WithTTL(time.Second)},
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
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.NoError(t, db.Mutex("job", dbmutex.WithWait(20*time.Millisecond)).Do(func(ctx context.Context) error {
			time.Sleep(60 * time.Millisecond)
			return context.Cause(ctx)
		}))
	})
}

func TestReleaseHappensAfterCancellation(t *testing.T) {
	t.Parallel()
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

func TestNoConnectionIsKept(t *testing.T) {
	t.Parallel()
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
					DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note();
				CREATE CONSTRAINT TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON db_onces
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
			noted := func() (got []string) {
				require.NoError(t, db.Raw(`SELECT setting FROM commits ORDER BY n`).Scan(&got).Error)
				require.NoError(t, db.Exec(`DELETE FROM commits`).Error)
				return got
			}
			lasting := setting
			if setting == "off" {
				lasting = "on"
			}
			require.Equal(t, []string{lasting, lasting, setting, lasting, "off", lasting, lasting, lasting, lasting}, noted())

			once := db.Once("job", time.Hour)
			require.ErrorIs(t, once.Do(func(context.Context) error { return errWork }), errWork)
			require.Equal(t, []string{lasting, "off"}, noted(), "a run that failed")
			require.NoError(t, once.Do(nothing))
			require.NoError(t, once.Forget())
			require.Equal(t, []string{lasting, lasting, lasting}, noted(), "a record and its end")
			require.NoError(t, once.Transaction(func(*gorm.DB) error { return nil }))
			require.Equal(t, []string{lasting, setting}, noted(), "a record that is as durable as the transaction")
			require.NoError(t, once.Forget())
		})
	}
}
