package dbmutex_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestAnAcquireUnderItsOwnLeaseFailsAtOnce(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		limited := db.WithContext(limited(t))
		forever := dbmutex.WithWait(dbmutex.Forever)
		nested := func(ctx context.Context) error {
			inner := db.WithContext(ctx)
			for _, opt := range []dbmutex.Option{nil, forever, dbmutex.WithRenewal()} {
				m := inner.Mutex("job", opt)
				_, acquired := m.Acquire()
				for _, err := range []error{
					acquired, m.Do(nothing), m.Transaction(func(*gorm.DB) error { return nil }), m.Decorate(nothing)(ctx),
				} {
					require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
					require.ErrorContains(t, err, "not reentrant")
					require.NotErrorIs(t, err, context.DeadlineExceeded)
				}
			}
			_, err := inner.Mutex("job").Holder()
			return err
		}
		require.NoError(t, limited.Mutex("job").Do(nested))
		require.NoError(t, limited.Mutex("job").Do(func(ctx context.Context) error {
			return db.WithContext(ctx).Mutex("other", forever).Do(nested) // with another lease in between
		}))
		require.NoError(t, limited.Mutex("job").Transaction(func(tx *gorm.DB) error {
			return nested(context.WithoutCancel(tx.Statement.Context))
		}))
		lease := acquire(t, db, "job")
		require.NoError(t, nested(lease.Context()))
		require.NoError(t, lease.Release())
		ended := context.WithoutCancel(lease.Context())
		require.NoError(t, db.WithContext(ended).Mutex("job", forever).Do(nothing), "that lease has ended")
		lease = acquire(t, db, "job", dbmutex.WithTTL(10*time.Millisecond))
		requireEnds(t, lease.Context())
		require.NoError(t, db.WithContext(context.WithoutCancel(lease.Context())).Mutex("job", forever).Do(nothing))
		require.NoError(t, db.Mutex("job").Do(func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			require.NoError(t, db.Gorm.Transaction(lease.ReleaseIn))
			return db.WithContext(ctx).Mutex("job").Do(nothing) // that lease has nothing left to do
		}))
		another := open(t, d.Another(t))
		require.NoError(t, db.Mutex("job").Do(func(ctx context.Context) error {
			return another.WithContext(ctx).Mutex("job").Do(nothing) // in another database
		}))
	})
}

func TestAWaitThatTheContextEndsNamesTheHolder(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		acquire(t, db, "job", dbmutex.WithHolder("the one"))
		wait := func(limit time.Duration) error {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			errs := make([]error, 2)
			atOnce(len(errs), func(i int) { // the head of the queue, and the next
				_, errs[i] = db.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
			})
			for _, err := range errs {
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
				if !strings.Contains(err.Error(), "held by the one since") {
					return err
				}
			}
			return nil
		}
		limit := 300 * time.Millisecond
		err := wait(limit)
		for err != nil && limit < time.Minute { // the first answer had not come
			limit *= 2
			err = wait(limit)
		}
		require.NoError(t, err)
	})
}

// Others have the row of a lease that ran out locked, and are about to take it over.
func TestNobodyWhoseLeaseHasEndedIsNamed(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.ManyWriters, func(t *testing.T, d *testdb.Database) {
		db := open(t, d)
		acquire(t, db, "job", dbmutex.WithHolder("the dead"))
		testdb.Expire(t, db, "job")
		tx := open(t, d).Begin()
		require.NoError(t, tx.Exec(`SELECT 1 FROM db_mutexes FOR UPDATE`).Error)
		for _, wait := range []time.Duration{0, 50 * time.Millisecond} {
			_, err := db.WithContext(limited(t)).Mutex("job", dbmutex.WithWait(wait)).Acquire()
			held := &dbmutex.HeldError{}
			require.ErrorAs(t, err, &held)
			require.Equal(t, dbmutex.HeldError{LockID: "job"}, *held)
			require.NotContains(t, err.Error(), "the dead")
		}
		require.NoError(t, tx.Rollback().Error)
		requireFree(t, db, "job")
	})
}

func TestAHeldErrorIsOneLineWithMilliseconds(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		for _, holder := range []string{"me\n2026/11/25 FATAL: forged \x1b[31m", "me \u202e txt.exe", "me\u2028"} {
			lease := acquire(t, db, "job", dbmutex.WithHolder(holder), dbmutex.WithTTL(700*time.Millisecond))
			err := db.Mutex("job").Do(nothing)
			require.ErrorContains(t, err, fmt.Sprintf("%q", holder))
			require.NotContains(t, err.Error(), holder)
			require.Regexp(t, `since \S+:\d\d\.\d{3}\S* until \S+:\d\d\.\d{3}`, err.Error())
			_ = lease.Release()
		}
		acquire(t, db, "job", dbmutex.WithHolder("pod-7/12 (日本)"))
		require.ErrorContains(t, db.Mutex("job").Do(nothing), "held by pod-7/12 (日本) since")
	})
}

func TestAMutexOfATransactionIsNotToldToUseItself(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error {
			err := dbmutex.Wrap(tx).Mutex("job").Transaction(func(*gorm.DB) error { return nil })
			require.ErrorIs(t, err, dbmutex.ErrInTransaction)
			require.ErrorContains(t, err, "make the mutex from a handle that is not")
			return nil
		}))
	})
}

// alike is a pool that hides its database and cannot be compared with others.
type alike struct {
	gorm.ConnPool
	_ []int
}

func TestALeaseInAPoolThatLooksTheSameIsNoneOfThisMutex(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		var dbs []*dbmutex.DB
		for _, d := range []*testdb.Database{d, d.Another(t)} {
			own := open(t, d).Gorm.Session(&gorm.Session{NewDB: true})
			config := *own.Config
			config.ConnPool = alike{ConnPool: own.Config.ConnPool}
			own.Config, own.Statement.ConnPool = &config, config.ConnPool
			dbs = append(dbs, dbmutex.Wrap(own))
		}
		require.NoError(t, dbs[0].Mutex("job").Do(func(ctx context.Context) error {
			return dbs[1].WithContext(ctx).Mutex("job").Do(nothing)
		}))
	})
}

// What SQLite says of a file that is locked may also be a part of an id.
func TestAnIDThatReadsLikeAnErrorOfTheDatabase(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		for _, id := range []string{"interrupted-uploads", "database is locked"} {
			lease := acquire(t, db, id, dbmutex.WithHolder(id))
			_, err := db.Mutex(id, dbmutex.WithWait(300*time.Millisecond)).Acquire()
			require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
			require.NoError(t, lease.Release())
		}
		require.NoError(t, db.Migrator().DropTable("db_mutexes"))
		for _, id := range []string{"interrupted-uploads", "database is locked"} {
			err := db.WithContext(limited(t)).Mutex(id, dbmutex.WithWait(dbmutex.Forever)).Do(nothing)
			require.ErrorContains(t, err, "is missing")
		}
	})
}

func TestAWaitDoesNotHideWhatNoTimeMends(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		db = db.WithContext(limited(t))
		requireFree(t, db, "job")
		for _, statement := range d.Refuse {
			require.NoError(t, db.Exec(statement).Error)
		}
		err := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing)
		require.ErrorContains(t, err, "never")
		require.NotErrorIs(t, err, context.DeadlineExceeded)
	})
}

func TestAReleaseForgetsWhoWasSeen(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Notifies, func(t *testing.T, d *testdb.Database) {
		db := open(t, d)
		lease := acquire(t, db, "job", dbmutex.WithHolder("the one"))
		_, err := db.Mutex("job", dbmutex.WithWait(50*time.Millisecond)).Acquire()
		require.ErrorContains(t, err, "the one")
		require.NoError(t, lease.Release())
		letGo := d.Hang(t)
		defer letGo()
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		_, err = db.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotContains(t, err.Error(), "the one")
	})
}
