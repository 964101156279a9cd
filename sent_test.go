package dbmutex_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestWhatWasNotSentFailsAtOnce(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		tries, refuse := 0, false
		callback := func(tx *gorm.DB) {
			if refuse && strings.Contains(tx.Statement.SQL.String(), "lease_id") {
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
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		requireFree(t, db, "job")
		tries := 0
		spoil := func(tx *gorm.DB) {
			if d.Verb(tx.Statement.SQL.String()) == "acquire" {
				tries++
				_ = tx.AddError(errWork)
			}
		}
		require.NoError(t, db.Callback().Row().After("gorm:row").Register("spoil", spoil))
		require.NoError(t, db.Callback().Raw().After("gorm:raw").Register("spoil", spoil))
		for i, opt := range []dbmutex.Option{nil, dbmutex.WithoutTTL(), dbmutex.WithWait(dbmutex.Forever)} {
			_, err := db.Mutex("job", opt).Acquire()
			require.ErrorIs(t, err, errWork)
			require.Equal(t, i+1, tries)
			require.Nil(t, row(t, db, "job"))
		}
	})
}

func TestAPlanThatIsOutOfDateIsNoError(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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

// The restore is seen by a process that begins later: tokens go on growing in the order of the leases that are there.
func TestASequenceThatLagsBehindCatchesUp(t *testing.T) {
	t.Parallel()
	d := testdb.Postgres(t)
	db := open(t, d)
	for i := range 11 {
		acquire(t, db, fmt.Sprint("held ", i))
	}
	old := acquire(t, db, "job")
	for _, lag := range []string{`setval('db_mutexes_id_seq', 1)`, `setval('db_mutexes_id_seq', 3, false)`} {
		require.NoError(t, db.Exec(`SELECT `+lag).Error)
		testdb.Expire(t, db, "job")
		next := acquire(t, open(t, d), "job")
		require.Greater(t, next.Token(), old.Token())
		old = next
	}
	require.NoError(t, db.Exec(`UPDATE db_mutexes SET id = 100000000 WHERE lock_id = 'job'`).Error)
	late := d.Registered(t, dbmutex.DefaultSettings())
	require.ErrorContains(t, late.Mutex("job").Do(nothing), "its sequence lags behind: SELECT setval(")
}

func TestASearchPathPutsNoOtherFunctionInItsPlace(t *testing.T) {
	t.Parallel()
	d := testdb.Postgres(t)
	db := open(t, d)
	schema := currentSchema(t, db)
	for _, function := range []string{"pg_notify(a text, b text) RETURNS void", "clock_timestamp() RETURNS timestamptz",
		"set_config(a text, b text, c boolean) RETURNS text", "nextval(a regclass) RETURNS bigint"} {
		require.NoError(t, db.Exec(`CREATE FUNCTION `+function+` LANGUAGE plpgsql AS $$BEGIN RAISE 'not this one'; END$$`).Error)
	}
	exercise(t, openDSN(t, strings.Replace(d.DSN, "search_path="+schema, "search_path="+schema+",pg_catalog", 1)))
}
