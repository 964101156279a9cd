package dbmutex_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestDryRunAndErrorsOnTheHandle(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		dry := db.Session(&gorm.Session{DryRun: true})
		require.ErrorIs(t, dry.Mutex("job").Do(func(context.Context) error { panic("ran") }), dbmutex.ErrDryRun)
		require.ErrorIs(t, dry.Migrate(), dbmutex.ErrDryRun)

		broken := dbmutex.Wrap(db.Gorm.WithContext(context.Background()))
		_ = broken.AddError(errWork)
		require.Equal(t, errWork, broken.Mutex("job").Do(func(context.Context) error { panic("ran") }))
	})
}

// requireRefused says that every verb of a mutex gives an error, before any SQL and without running the work.
func requireRefused(t *testing.T, out *logs, m *dbmutex.Mutex, want error) {
	t.Helper()
	before := out.String()
	ran := func(context.Context) error { require.Fail(t, "the work ran"); return nil }
	_, err := m.Acquire()
	for _, err := range []error{
		err,
		m.Do(ran),
		m.Decorate(ran)(context.Background()),
		m.Transaction(func(*gorm.DB) error { return ran(context.Background()) }),
		m.ForceRelease(),
	} {
		require.ErrorIs(t, err, want)
		require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
		require.True(t, strings.HasPrefix(err.Error(), "dbmutex:"), err.Error())
	}
	_, err = dbmutex.DoValue(m, func(context.Context) (int, error) { return 0, ran(context.Background()) })
	require.ErrorIs(t, err, want)
	_, err = m.Holder()
	require.ErrorIs(t, err, want)
	_, err = m.Inspect()
	require.ErrorIs(t, err, want)
	_, err = m.ForceReleaseLease("lease")
	require.ErrorIs(t, err, want)
	require.Equal(t, before, out.String(), "no SQL")
}

func TestInvalidLockIDs(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out := &logs{}
		db := open(t, d, &gorm.Config{Logger: out.logger(logger.Info)})
		for _, id := range []string{"", "a\x00b", "\x00", "\xff", "job\xc3", strings.Repeat("a", 257), strings.Repeat("ö", 257)} {
			requireRefused(t, out, db.Mutex(id), dbmutex.ErrInvalidLockID)
		}
		for _, id := range []string{"a", strings.Repeat("a", 256), strings.Repeat("日", 256), "a\nb\t"} {
			acquire(t, db, id)
			require.NotNil(t, row(t, db, id))
		}
		long := strings.Repeat("a", 255)
		requireFree(t, db, long+"b") // ids are never cut
	})
}

func TestNotRegistered(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out := &logs{}
		gdb := d.Open(t, &gorm.Config{Logger: out.logger(logger.Info)})
		requireRefused(t, out, dbmutex.Wrap(gdb).Mutex("job"), dbmutex.ErrNotRegistered)
		requireRefused(t, out, dbmutex.Wrap(nil).Mutex("job"), dbmutex.ErrNotRegistered)
		requireRefused(t, out, dbmutex.Wrap(&gorm.DB{}).Mutex("job"), dbmutex.ErrNotRegistered)
		require.ErrorIs(t, dbmutex.Wrap(gdb).Migrate(), dbmutex.ErrNotRegistered)
	})
}

func TestNoTable(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		db := d.Registered(t, dbmutex.DefaultSettings())
		check := func(err error) {
			t.Helper()
			require.ErrorContains(t, err, "run AutoMigrate(&dbmutex.DBMutex{})")
			require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
			require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		}
		check(db.Mutex("job").Do(func(context.Context) error { panic("ran") }))
		check(db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(func(context.Context) error { panic("ran") }))
		check(db.Mutex("job").Transaction(func(*gorm.DB) error { panic("ran") }))
		check(db.Mutex("job").ForceRelease())
		_, err := db.Mutex("job").Holder()
		check(err)
		require.NoError(t, db.AutoMigrate(&dbmutex.DBMutex{}))
		requireFree(t, db, "job")
	})
}

func TestTheTableIsDroppedMeanwhile(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		drop := func() { require.NoError(t, db.Exec(`DROP TABLE db_mutexes`).Error) }
		err := db.Mutex("job").Do(func(ctx context.Context) error {
			drop()
			lease, _ := dbmutex.LeaseFrom(ctx)
			require.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout)
			require.ErrorIs(t, context.Cause(ctx), dbmutex.ErrTimeout)
			return errWork
		})
		require.ErrorIs(t, err, dbmutex.ErrTimeout)
		require.ErrorIs(t, err, errWork)

		require.NoError(t, db.AutoMigrate(&dbmutex.DBMutex{}))
		lease := acquire(t, db, "job")
		drop()
		require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)

		require.NoError(t, db.AutoMigrate(&dbmutex.DBMutex{}))
		err = db.Mutex("job").Transaction(func(tx *gorm.DB) error { return tx.Exec(`DROP TABLE db_mutexes`).Error })
		if d.DDLCommits {
			require.ErrorIs(t, err, dbmutex.ErrTimeout)
			require.ErrorIs(t, err, gorm.ErrInvalidTransaction)
			return
		}
		require.ErrorContains(t, err, "is missing")
		requireFree(t, db, "job") // that was rolled back
	})
}

func TestPermissionDenied(t *testing.T) {
	t.Parallel()
	d := testdb.Postgres(t)
	open(t, d)
	require.ErrorContains(t, refusedBy(t, d.Granted(t, `SELECT ON db_mutexes`)), "42501")
	require.ErrorContains(t, refusedBy(t, d.With("default_transaction_read_only", "on")), "25006")
}

// refusedBy is the error of a database that does not let us write.
func refusedBy(t *testing.T, d *testdb.Database) error {
	t.Helper()
	err := d.Registered(t, dbmutex.DefaultSettings()).Mutex("job").Do(func(context.Context) error { panic("ran") })
	require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
	require.NotErrorIs(t, err, dbmutex.ErrTimeout)
	require.ErrorContains(t, err, "dbmutex: acquire")
	return err
}

func TestReadOnlySQLite(t *testing.T) {
	t.Parallel()
	db := open(t, testdb.SQLite(t))
	pool, err := db.DB()
	require.NoError(t, err)
	pool.SetMaxOpenConns(1)
	lease := acquire(t, db, "held")
	require.NoError(t, db.Exec(`PRAGMA query_only = ON`).Error)
	requireHeld(t, db, "held")
	err = db.Mutex("job").Do(func(context.Context) error { panic("ran") })
	require.ErrorContains(t, err, "readonly")
	require.ErrorContains(t, lease.Release(), "readonly")
	require.NoError(t, db.Exec(`PRAGMA query_only = OFF`).Error)
	require.NoError(t, lease.Release(), "it may be called again")
}

func TestADatabaseThatIsNotSupported(t *testing.T) {
	t.Parallel()
	gdb, err := gorm.Open(otherDialector{sqlite.Open(testdb.SQLite(t).DSN)}, &gorm.Config{Logger: logger.Discard})
	require.NoError(t, err)
	require.NoError(t, gdb.Use(dbmutex.New(dbmutex.DefaultSettings())))
	require.ErrorIs(t, dbmutex.Wrap(gdb).Mutex("job").Do(nothing), dbmutex.ErrInvalidSettings)
}

type otherDialector struct{ gorm.Dialector }

func (otherDialector) Name() string { return "sqlserver" }

// The lock's table is dropped, and made again, while leases are held and waited for.
func TestTheTableIsMadeAgain(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		held := acquire(t, db, "job")
		ctx := limited(t)
		waited := make(chan error, 1)
		go func() { waited <- db.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing) }()
		require.Eventually(t, func() bool { return dbmutex.Waiters(db.Mutex("job")) == 1 }, time.Minute, time.Millisecond)
		require.NoError(t, db.Migrator().DropTable(&dbmutex.DBMutex{}))
		require.NoError(t, db.Migrate())
		if err := <-waited; err != nil { // it asked in between
			require.ErrorContains(t, err, "run AutoMigrate")
		}
		require.ErrorIs(t, held.Renew(), dbmutex.ErrTimeout)
		require.ErrorIs(t, held.Release(), dbmutex.ErrTimeout)
		exercise(t, db)
	})
}
