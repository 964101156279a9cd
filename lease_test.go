package dbmutex_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestALeaseFromAcquireToRelease(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		lease := acquire(t, db, "job", dbmutex.WithTTL(time.Hour))
		require.Equal(t, "job", lease.LockID())
		require.Positive(t, lease.Token())
		before := row(t, db, "job")
		first, _ := lease.ExpiresAt()
		time.Sleep(2 * time.Millisecond)
		require.NoError(t, lease.Renew())
		second, _ := lease.ExpiresAt()
		require.True(t, second.After(first))
		after := row(t, db, "job")
		require.True(t, after.ExpiresAt.After(*before.ExpiresAt))
		require.Equal(t, before.CreationTime, after.CreationTime)
		require.Equal(t, before.LeaseID, after.LeaseID)

		_, ok := dbmutex.LeaseFrom(context.Background())
		require.False(t, ok)
		from, ok := dbmutex.LeaseFrom(lease.Context())
		require.True(t, ok)
		require.Same(t, lease, from)

		require.NoError(t, lease.Release())
		require.Equal(t, context.Canceled, context.Cause(lease.Context()))
		require.NoError(t, lease.Release(), "again")
		require.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout)
		requireFree(t, db, "job")
	})
}

// requirePinned says what others see of a mutex whose lease has run out, but is pinned. On SQLite they cannot tell that from
// any other writer, so they wait.
func requirePinned(t *testing.T, db *dbmutex.DB, d *testdb.Database, id string) {
	t.Helper()
	if !d.OneWriter {
		requireHeld(t, db.WithContext(limited(t)), id)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	err := db.WithContext(ctx).Mutex(id).Do(func(context.Context) error {
		require.Fail(t, "the work ran without the mutex")
		return nil
	})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
}

func TestGuard(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
		lease := acquire(t, db, "job", dbmutex.WithTTL(20*time.Millisecond))
		require.Eventually(t, func() bool { // by the database's clock, too
			holder, err := db.Mutex("job").Holder()
			return err == nil && holder == nil
		}, time.Minute, time.Millisecond)
		require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error {
			require.NoError(t, lease.Guard(tx))
			requirePinned(t, open(t, d), d, "job") // though it has run out
			return tx.Exec(`INSERT INTO made VALUES (1)`).Error
		}))
		acquire(t, db, "job") // not pinned any more
		err := db.Gorm.Transaction(func(tx *gorm.DB) error {
			require.ErrorIs(t, lease.Guard(tx), dbmutex.ErrTimeout)
			require.ErrorIs(t, tx.Exec(`INSERT INTO made VALUES (2)`).Error, dbmutex.ErrTimeout, "the handle has failed")
			return tx.Error
		})
		require.ErrorIs(t, err, dbmutex.ErrTimeout)
		var made []int
		require.NoError(t, db.Raw(`SELECT id FROM made`).Scan(&made).Error)
		require.Equal(t, []int{1}, made)
	})
}

func TestGuardLetsRenewalsPass(t *testing.T) {
	t.Parallel()
	db := open(t, testdb.Postgres(t))
	lease := acquire(t, db, "job")
	require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error {
		require.NoError(t, lease.Guard(tx))
		return lease.Renew()
	}))
}

func TestReleasesWaitForAGuard(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		for name, test := range map[string]struct {
			opts    []dbmutex.Option
			release func(*dbmutex.Lease) error
			held    bool // afterwards
		}{
			"Release":      {release: (*dbmutex.Lease).Release},
			"ForceRelease": {release: func(l *dbmutex.Lease) error { return db.Mutex(l.LockID()).ForceRelease() }},
			"ForceReleaseLease": {release: func(l *dbmutex.Lease) error {
				_, err := db.Mutex(l.LockID()).ForceReleaseLease(row(t, db, l.LockID()).LeaseID)
				return err
			}},
			"MinHold release": {
				release: (*dbmutex.Lease).Release, opts: []dbmutex.Option{dbmutex.WithMinHold(time.Minute)}, held: true,
			},
		} {
			lease := acquire(t, db, name, test.opts...)
			tx := open(t, d).Begin()
			require.NoError(t, lease.Guard(tx))
			released := make(chan error, 1)
			go func() { released <- test.release(lease) }()
			select {
			case err := <-released:
				require.Fail(t, "it did not wait", "%s: %v", name, err)
			case <-time.After(100 * time.Millisecond):
			}
			require.NoError(t, tx.Commit().Error)
			require.NoError(t, <-released)
			require.Equal(t, test.held, row(t, db, name) != nil)
		}
	})
}

func TestReleaseSaysThatItIsPinned(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		lease := acquire(t, db, "job")
		tx := open(t, d).Begin()
		require.NoError(t, lease.Guard(tx))
		forced := make(chan error, 1)
		go func() { forced <- db.Mutex("job").ForceRelease() }()
		for _, err := range []error{lease.Release(), <-forced} {
			require.ErrorContains(t, err, "a transaction open that guards the lease?")
			require.NotErrorIs(t, err, context.DeadlineExceeded)
			require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		}
		require.NoError(t, tx.Rollback().Error)
		require.NoError(t, lease.Release(), "it may be called again")
	})
}

func TestReleaseIn(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		other := open(t, d)
		require.NoError(t, db.Mutex("job").Do(func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			require.Equal(t, errWork, db.Gorm.Transaction(func(tx *gorm.DB) error {
				require.NoError(t, lease.ReleaseIn(tx))
				return errWork
			}))
			requireHeld(t, other, "job") // it was rolled back
			require.NoError(t, lease.Renew())
			require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error {
				require.NoError(t, lease.ReleaseIn(tx))
				requireHeld(t, other.WithContext(limited(t)), "job") // until the commit
				return nil
			}))
			requireFree(t, other, "job")
			acquire(t, other, "job")
			return nil
		}))
		requireHeld(t, db, "job") // the successor's

		lease := acquire(t, db, "lost")
		testdb.Expire(t, db, "lost")
		acquire(t, db, "lost")
		require.ErrorIs(t, db.Gorm.Transaction(func(tx *gorm.DB) error { return lease.ReleaseIn(tx) }), dbmutex.ErrTimeout)

		lease = acquire(t, db, "hold", dbmutex.WithMinHold(time.Minute))
		require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error { return lease.ReleaseIn(tx) }))
		requireHeld(t, db, "hold")
		require.NoError(t, lease.Release())
	})
}

func TestALossAfterARollbackOfReleaseIn(t *testing.T) {
	t.Parallel()
	remembers := func(k *testdb.Kind) bool { return k.Remembers }
	testdb.EachOf(t, remembers, func(t *testing.T, d *testdb.Database) {
		db := open(t, d)
		err := db.Mutex("job").Do(func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			require.Equal(t, errWork, db.Gorm.Transaction(func(tx *gorm.DB) error {
				require.NoError(t, lease.ReleaseIn(tx))
				return errWork
			}))
			testdb.Expire(t, db, "job")
			acquire(t, db, "job")
			return nil
		})
		require.ErrorIs(t, err, dbmutex.ErrTimeout)
	})
}

func TestGuardAndReleaseInWantATransaction(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		lease := acquire(t, db, "job")
		for _, verb := range []func(*gorm.DB) error{lease.Guard, lease.ReleaseIn} {
			require.ErrorIs(t, verb(db.Gorm), gorm.ErrInvalidTransaction)
			require.ErrorIs(t, verb(nil), gorm.ErrInvalidTransaction)
			require.ErrorIs(t, verb(&gorm.DB{}), gorm.ErrInvalidTransaction)
			require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error {
				dry := tx.Session(&gorm.Session{DryRun: true})
				require.ErrorIs(t, verb(dry), dbmutex.ErrDryRun)
				failed := tx.Session(&gorm.Session{})
				_ = failed.AddError(errWork)
				require.Equal(t, errWork, verb(failed))
				require.NoError(t, lease.Guard(tx.Where("1 = 0")), "a condition left on the handle")
				return nil
			}))
		}
	})
}

func TestAFailedTransactionIsNoLoss(t *testing.T) {
	t.Parallel()
	db := open(t, testdb.Postgres(t))
	err := db.Mutex("job").Transaction(func(tx *gorm.DB) error {
		_ = tx.Exec(`SELECT 1 / 0`).Error // the server gives the transaction up
		return nil
	})
	require.ErrorContains(t, err, "25P02")
	require.NotErrorIs(t, err, dbmutex.ErrTimeout)
	requireFree(t, db, "job")

	require.NoError(t, db.Exec(`CREATE TABLE checked (id integer UNIQUE DEFERRABLE INITIALLY DEFERRED)`).Error)
	err = db.Mutex("job").Transaction(func(tx *gorm.DB) error {
		return tx.Exec(`INSERT INTO checked VALUES (1), (1)`).Error // fails at the commit
	})
	require.ErrorContains(t, err, "23505")
	require.NotErrorIs(t, err, dbmutex.ErrTimeout)
	requireFree(t, db, "job")
}

func TestARenewalDoesNotForgetReleaseIn(t *testing.T) {
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		require.NoError(t, db.Mutex("job").Do(func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			renewals := pool.after("renew", func() error { // before its answer arrives
				return db.Gorm.Transaction(lease.ReleaseIn)
			})
			err := lease.Renew()
			require.EqualValues(t, 1, renewals.Load())
			return err
		}))
	})
}

func TestAnIgnoredGuardCommitsNothing(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
		lease := acquire(t, db, "job")
		require.NoError(t, db.Mutex("job").ForceRelease())
		require.Error(t, db.Gorm.Transaction(func(tx *gorm.DB) error {
			require.NoError(t, tx.Exec(`INSERT INTO made VALUES (1)`).Error)
			_ = lease.Guard(tx.WithContext(context.Background()))
			return nil
		}))
		var n int
		require.NoError(t, db.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
		require.Zero(t, n)
	})
}

func TestNestedLeases(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		var inner error
		outer := db.Mutex("outer", dbmutex.WithTTL(2*time.Second)).Do(func(ctx context.Context) error {
			inner = db.WithContext(ctx).Mutex("inner").Do(func(ctx context.Context) error {
				requireEnds(t, ctx)
				return errWork
			})
			return inner
		})
		require.Equal(t, errWork, inner, "the inner lease was not lost")
		require.ErrorIs(t, outer, dbmutex.ErrTimeout)
		require.ErrorIs(t, outer, errWork)
	})
}

func TestNoLease(t *testing.T) {
	t.Parallel()
	for _, lease := range []*dbmutex.Lease{nil, {}} {
		require.ErrorIs(t, lease.Release(), dbmutex.ErrInvalidSettings)
		require.ErrorIs(t, lease.Renew(), dbmutex.ErrInvalidSettings)
		require.ErrorIs(t, lease.Guard(nil), dbmutex.ErrInvalidSettings)
		require.ErrorIs(t, lease.ReleaseIn(nil), dbmutex.ErrInvalidSettings)
	}
	for _, mutex := range []*dbmutex.Mutex{nil, {}} {
		require.ErrorIs(t, mutex.Do(nothing), dbmutex.ErrNotRegistered)
		require.ErrorIs(t, mutex.Decorate(nothing)(context.Background()), dbmutex.ErrNotRegistered)
		require.ErrorIs(t, mutex.ForceRelease(), dbmutex.ErrNotRegistered)
		_, err := mutex.Acquire()
		require.ErrorIs(t, err, dbmutex.ErrNotRegistered)
		_, err = mutex.Holder()
		require.ErrorIs(t, err, dbmutex.ErrNotRegistered)
	}
}

func TestARenewalCountsFromWhenItWasAskedFor(t *testing.T) {
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		lease := acquire(t, db, "job", dbmutex.WithTTL(time.Hour))
		var done time.Time
		pool.after("renew", func() error { // its answer takes a while
			done = time.Now()
			time.Sleep(50 * time.Millisecond)
			return nil
		})
		require.NoError(t, lease.Renew())
		require.NotZero(t, done)
		deadline, _ := lease.ExpiresAt()
		require.False(t, deadline.After(done.Add(time.Hour)))
	})
}

func TestALateAnswerBringsAnEndedContext(t *testing.T) {
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		requireFree(t, db, "warm")
		pool.after("acquire", func() error { time.Sleep(20 * time.Millisecond); return nil })
		lease := acquire(t, db, "job", dbmutex.WithTTL(10*time.Millisecond))
		require.ErrorIs(t, context.Cause(lease.Context()), dbmutex.ErrTimeout)
	})
}

func TestDoUnderALeaseThatIsThere(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		failure := errors.New("the work's own")
		unexpected := func(context.Context) error {
			t.Error("it ran without the mutex")
			return nil
		}

		lease := acquire(t, db, "job")
		require.ErrorIs(t, lease.Do(func(ctx context.Context) error {
			known, ok := dbmutex.LeaseFrom(ctx)
			require.True(t, ok)
			require.Same(t, lease, known)
			requireHeld(t, db, "job")
			return failure
		}), failure)
		requireFree(t, db, "job")
		require.ErrorIs(t, lease.Do(unexpected), dbmutex.ErrTimeout, "it was released")

		lost := acquire(t, db, "job")
		err := lost.Do(func(context.Context) error {
			require.NoError(t, db.Mutex("job").ForceRelease())
			return failure
		})
		require.ErrorIs(t, err, failure)
		require.ErrorIs(t, err, dbmutex.ErrTimeout)

		late := acquire(t, db, "job", dbmutex.WithTTL(20*time.Millisecond))
		requireEnds(t, late.Context())
		require.ErrorIs(t, late.Do(unexpected), dbmutex.ErrTimeout)
		require.Nil(t, row(t, db, "job"), "it is released all the same")

		panics := acquire(t, db, "job")
		require.PanicsWithValue(t, "oops", func() { _ = panics.Do(func(context.Context) error { panic("oops") }) })
		requireFree(t, db, "job")

		require.Error(t, acquire(t, db, "job").Do(nil))
		require.Error(t, (*dbmutex.Lease)(nil).Do(unexpected))
	})
}

// A shutdown that comes first does not hide that the lease ran out.
func TestDoUnderALeaseThatRunsOutAfterItsContext(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		ctx, cancel := context.WithCancel(limited(t))
		lease := acquire(t, db.WithContext(ctx), "job", dbmutex.WithTTL(time.Second))
		failure := errors.New("the work's own")
		err := lease.Do(func(context.Context) error {
			cancel()
			deadline, _ := lease.ExpiresAt()
			time.Sleep(time.Until(deadline))
			return failure
		})
		require.ErrorIs(t, err, failure)
		require.ErrorIs(t, err, dbmutex.ErrTimeout)
	})
}
