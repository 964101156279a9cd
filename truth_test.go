package dbmutex_test

import (
	"context"
	"fmt"
	"log"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestAnAcquireUnderItsOwnLeaseFailsAtOnce(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		limited := db.WithContext(limited(t))
		forever := dbmutex.WithWait(dbmutex.Forever)
		nested := func(ctx context.Context) error {
			inner := db.WithContext(ctx)
			for _, m := range []*dbmutex.Mutex{inner.Mutex("job"), inner.Mutex("job", forever), inner.Mutex("job", dbmutex.WithRenewal())} {
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
		another := open(t, d.Another(t))
		require.NoError(t, db.Mutex("job").Do(func(ctx context.Context) error {
			return another.WithContext(ctx).Mutex("job").Do(nothing) // in another database
		}))
	})
}

func TestAWaitThatTheContextEndsNamesTheHolder(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		acquire(t, db, "job", dbmutex.WithHolder("the one"))
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		results := make(chan error, 2)
		for range 2 { // the head of the queue, and the next
			go func() {
				_, err := db.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
				results <- err
			}()
		}
		for range 2 {
			err := <-results
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
			require.ErrorContains(t, err, "held by the one since")
		}
	})
}

// Others have the row of a lease that ran out locked, and are about to take it over.
func TestNobodyWhoseLeaseHasEndedIsNamed(t *testing.T) {
	d := testdb.Postgres(t)
	db := open(t, d)
	acquire(t, db, "job", dbmutex.WithHolder("the dead"))
	testdb.Expire(t, db, "job")
	tx := open(t, d).Begin()
	require.NoError(t, tx.Exec(`SELECT 1 FROM db_mutexes FOR UPDATE`).Error)
	for _, wait := range []time.Duration{0, 50 * time.Millisecond} {
		_, err := db.Mutex("job", dbmutex.WithWait(wait)).Acquire()
		held := &dbmutex.HeldError{}
		require.ErrorAs(t, err, &held)
		require.Equal(t, dbmutex.HeldError{LockID: "job"}, *held)
		require.NotContains(t, err.Error(), "the dead")
	}
	require.NoError(t, tx.Rollback().Error)
	requireFree(t, db, "job")
}

func TestAHeldErrorIsOneLineWithMilliseconds(t *testing.T) {
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
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error {
			err := dbmutex.Wrap(tx).Mutex("job").Transaction(func(*gorm.DB) error { return nil })
			require.ErrorIs(t, err, dbmutex.ErrInTransaction)
			require.ErrorContains(t, err, "make the mutex from a handle that is not")
			return nil
		}))
	})
}

func TestWhatWasNotSentFailsAtOnce(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		tries, refuse := 0, false
		callback := func(tx *gorm.DB) {
			if refuse && strings.Contains(tx.Statement.SQL.String(), "lock_id") {
				tries++
				_ = tx.AddError(fmt.Errorf("refused by %w", errWork))
			}
		}
		require.NoError(t, db.Callback().Row().Before("gorm:row").Register("refuse", callback))
		require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("refuse", callback))
		requireFree(t, db, "job")
		lease := acquire(t, db, "held")
		refuse = true
		m, waiting := db.Mutex("job"), db.Mutex("job", dbmutex.WithWait(dbmutex.Forever))
		_, acquired := m.Acquire()
		_, waited := waiting.Acquire()
		_, holder := m.Holder()
		errs := []error{
			acquired, waited, holder, m.Do(nothing), m.Transaction(func(*gorm.DB) error { return nil }), m.ForceRelease(),
			lease.Renew(), lease.Release(),
		}
		for _, err := range errs {
			require.ErrorIs(t, err, errWork)
			require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
		}
		require.Equal(t, len(errs), tries, "each was tried once")
		refuse = false
		require.NoError(t, lease.Release())
	})
}

func TestAnAnswerThatCannotBeUsedLeavesNoLease(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		requireFree(t, db, "job")
		tries := 0
		require.NoError(t, db.Callback().Row().After("gorm:row").Register("spoil", func(tx *gorm.DB) {
			if strings.Contains(tx.Statement.SQL.String(), "INSERT") {
				tries++
				_ = tx.AddError(errWork)
			}
		}))
		for i, opt := range []dbmutex.Option{nil, dbmutex.WithoutTTL(), dbmutex.WithWait(dbmutex.Forever)} {
			_, err := db.Mutex("job", opt).Acquire()
			require.ErrorIs(t, err, errWork)
			require.Equal(t, i+1, tries)
			require.Nil(t, row(t, db, "job"))
		}
	})
}

func TestAPlanThatIsOutOfDateIsNoError(t *testing.T) {
	out := &logs{}
	db := open(t, testdb.Postgres(t), &gorm.Config{Logger: out.logger(logger.Error)})
	acquire(t, db, "job")
	for _, kind := range []string{"varchar(100)", "text"} {
		_, err := db.Mutex("job").Holder() // prepared
		require.NoError(t, err)
		require.NoError(t, db.Exec(`ALTER TABLE db_mutexes ALTER holder TYPE `+kind).Error)
		_, err = db.Mutex("job").Holder()
		require.NoError(t, err)
	}
	require.Empty(t, out.String())
}

// A restore of the data alone leaves the sequence behind the table.
func TestASequenceThatLagsBehindIsNoError(t *testing.T) {
	out := &logs{}
	db := open(t, testdb.Postgres(t), &gorm.Config{Logger: out.logger(logger.Error)})
	for i := range 5 {
		acquire(t, db, fmt.Sprint("held ", i))
	}
	require.NoError(t, db.Exec(`UPDATE db_mutexes SET id = DEFAULT`).Error)
	require.NoError(t, db.Exec(`ALTER SEQUENCE db_mutexes_id_seq RESTART WITH 5`).Error)
	acquire(t, db, "job")
	testdb.Expire(t, db, "job")
	acquire(t, db, "job")
	require.Empty(t, out.String())
}

func TestASearchPathPutsNoOtherFunctionInItsPlace(t *testing.T) {
	d := testdb.Postgres(t)
	db := open(t, d)
	schema := currentSchema(t, db)
	for _, function := range []string{"pg_notify(a text, b text) RETURNS void", "clock_timestamp() RETURNS timestamptz",
		"set_config(a text, b text, c boolean) RETURNS text", "nextval(a regclass) RETURNS bigint"} {
		require.NoError(t, db.Exec(`CREATE FUNCTION `+function+` LANGUAGE plpgsql AS $$BEGIN RAISE 'not this one'; END$$`).Error)
	}
	exercise(t, openDSN(t, strings.Replace(d.DSN, "search_path="+schema, "search_path="+schema+",pg_catalog", 1)))
}

func TestAPluginForgetsPools(t *testing.T) {
	plugin := dbmutex.New(dbmutex.DefaultSettings())
	const pools = 10
	collected := make(chan struct{}, pools)
	for i := range pools {
		func() {
			path := filepath.Join(t.TempDir(), fmt.Sprint(i, ".db"))
			gdb, err := gorm.Open(testdb.SQLiteDialector(path), &gorm.Config{Logger: logger.Discard})
			require.NoError(t, err)
			require.NoError(t, gdb.Use(plugin))
			db := dbmutex.Wrap(gdb)
			require.NoError(t, db.Migrate())
			requireFree(t, db, "job")
			pool, err := gdb.DB()
			require.NoError(t, err)
			require.NoError(t, pool.Close())
			runtime.AddCleanup(pool, func(c chan struct{}) { c <- struct{}{} }, collected)
		}()
	}
	require.Eventually(t, func() bool { runtime.GC(); return len(collected) > 0 }, time.Minute, 10*time.Millisecond)
	require.LessOrEqual(t, dbmutex.Remembered(plugin), pools)
	require.Eventually(
		t, func() bool { runtime.GC(); return dbmutex.Remembered(plugin) < pools }, time.Minute, 10*time.Millisecond,
	)
	runtime.KeepAlive(plugin)
}

// perRequest is a pool that hides its database, and is made anew for every request.
type perRequest struct{ gorm.ConnPool }

func TestAPluginRemembersNoPoolThatHidesItsDatabase(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		plugin := db.Plugins[dbmutex.PluginName].(*dbmutex.Plugin)
		before := dbmutex.Remembered(plugin)
		for range 3 {
			own := db.Gorm.Session(&gorm.Session{NewDB: true})
			config := *own.Config
			config.ConnPool = &perRequest{db.Config.ConnPool}
			own.Config, own.Statement.ConnPool = &config, config.ConnPool
			requireFree(t, dbmutex.Wrap(own), "job")
		}
		require.Equal(t, before, dbmutex.Remembered(plugin))
	})
}

func TestMigrateWaitsForOtherReplicasInSilence(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		out := &logs{}
		logging := logger.New(log.New(out, "", 0), logger.Config{LogLevel: logger.Warn, SlowThreshold: 400 * time.Millisecond})
		db := d.Registered(t, dbmutex.DefaultSettings(), &gorm.Config{Logger: logging})
		other := d.Open(t).Begin()
		if d.OneWriter {
			require.NoError(t, other.Exec(`CREATE TABLE made (id integer)`).Error)
		} else {
			require.NoError(t, other.Exec(`SELECT pg_advisory_xact_lock(?::bigint)`, 0x64626d75746578).Error)
		}
		done := make(chan error, 1)
		go func() { done <- db.Migrate() }()
		time.Sleep(time.Second)
		require.Empty(t, done)
		require.NoError(t, other.Commit().Error)
		require.NoError(t, <-done)
		require.Empty(t, out.String())
	})
}

// writing keeps SQLite's file from other writers for a while.
func writing(t *testing.T, d *testdb.Database, while time.Duration) (wait func()) {
	letGo := d.Hang(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(while)
		letGo()
	}()
	return func() { <-done }
}

func TestAMutexThatRanOutIsNotHeldWhileOthersWrite(t *testing.T) {
	t.Parallel()
	uses := map[string]func(m *dbmutex.Mutex) error{
		"do":          func(m *dbmutex.Mutex) error { return m.Do(nothing) },
		"transaction": func(m *dbmutex.Mutex) error { return m.Transaction(func(*gorm.DB) error { return nil }) },
	}
	for name, use := range uses {
		for _, by := range []string{"MinHold", "crash"} {
			d := testdb.SQLite(t)
			db := open(t, d)
			if by == "MinHold" {
				require.NoError(t, db.Mutex("job", dbmutex.WithMinHold(time.Millisecond)).Do(nothing))
			} else {
				acquire(t, db, "job")
			}
			testdb.Expire(t, db, "job")
			wait := writing(t, d, 300*time.Millisecond)
			holder, err := db.Mutex("job").Holder()
			require.NoError(t, err)
			require.Nil(t, holder)
			require.NoError(t, use(db.Mutex("job")), "%s, %s", name, by)
			wait()
		}
	}
}

func TestAWaitOutlastsAnotherWriter(t *testing.T) {
	t.Parallel()
	for name, use := range map[string]func(db *dbmutex.DB) error{
		"do": func(db *dbmutex.DB) error { return db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing) },
		"transaction": func(db *dbmutex.DB) error {
			return db.Mutex("job", dbmutex.WithWait(time.Minute)).Transaction(func(*gorm.DB) error { return nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := testdb.SQLite(t)
			db := open(t, d)
			defer writing(t, d, 7*time.Second)()
			require.NoError(t, use(db))
		})
	}
	t.Run("a wait that is over", func(t *testing.T) {
		t.Parallel()
		d := testdb.SQLite(t)
		db := open(t, d)
		letGo := d.Hang(t)
		err := db.Mutex("job", dbmutex.WithWait(6*time.Second)).Do(nothing)
		require.ErrorContains(t, err, "database is locked")
		require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
		letGo()
	})
}
