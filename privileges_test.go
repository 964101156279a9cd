package dbmutex_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// asRoleWith gives a handle whose role has these privileges, and no others but to use the schema.
func asRoleWith(t *testing.T, d *testdb.Database, privileges ...string) *dbmutex.DB {
	t.Helper()
	owner := open(t, d)
	schema := currentSchema(t, owner)
	role := schema + "_program"
	require.NoError(t, owner.Exec(`CREATE ROLE `+role).Error)
	t.Cleanup(func() { require.NoError(t, owner.Exec(`DROP OWNED BY `+role+`; DROP ROLE `+role).Error) })
	for _, privilege := range append(privileges, `USAGE ON SCHEMA `+schema) {
		require.NoError(t, owner.Exec(`GRANT `+privilege+` TO `+role).Error)
	}
	return openDSN(t, withSetting(d.DSN, "role", role)).WithContext(limited(t))
}

const (
	onTheTable    = `SELECT, INSERT, UPDATE, DELETE ON db_mutexes`
	onTheSequence = `USAGE ON SEQUENCE db_mutexes_id_seq`
)

func TestEveryVerbWorksWithTheLeastPrivileges(t *testing.T) {
	t.Parallel()
	db := asRoleWith(t, testdb.Postgres(t), onTheTable, onTheSequence)
	require.Error(t, db.Exec(`CREATE TABLE mine (id integer)`).Error, "the role has more than it should")
	require.Error(t, db.Exec(`SELECT last_value FROM db_mutexes_id_seq`).Error, "the role has more than it should")

	exercise(t, db)
	require.NoError(t, db.Migrate(), "the table is there")

	lease := acquire(t, db, "transaction")
	require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error { return lease.ReleaseIn(tx) }))
	requireFree(t, db, "transaction")

	require.NoError(t, db.Mutex("tick", dbmutex.WithMinHold(time.Minute)).Do(nothing))
	requireHeld(t, db, "tick")

	// One hands on to the other.
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // also if the test fails, and then after the release
	first := acquire(t, db, "turns")
	for range 4 {
		wg.Go(func() {
			if err := db.Mutex("turns", dbmutex.WithWait(dbmutex.Forever)).Do(nothing); err != nil {
				t.Error(err)
			}
		})
	}
	require.Eventually(t, func() bool { return dbmutex.Waiters(db.Mutex("turns")) == 4 }, time.Minute, time.Millisecond)
	require.NoError(t, first.Release())
	wg.Wait()
}

func TestWithoutUsageOfTheSequenceTheErrorNamesIt(t *testing.T) {
	t.Parallel()
	db := asRoleWith(t, testdb.Postgres(t), onTheTable)
	for verb, run := range map[string]func(m *dbmutex.Mutex) error{
		"Acquire":     func(m *dbmutex.Mutex) error { _, err := m.Acquire(); return err },
		"Do":          func(m *dbmutex.Mutex) error { return m.Do(func(context.Context) error { panic("ran") }) },
		"Transaction": func(m *dbmutex.Mutex) error { return m.Transaction(func(*gorm.DB) error { panic("ran") }) },
	} {
		err := run(db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)))
		require.ErrorContains(t, err, `dbmutex: acquire "job"`, verb)
		require.ErrorContains(t, err, "permission denied for sequence db_mutexes_id_seq", verb)
		require.NotErrorIs(t, err, dbmutex.ErrNotAcquired, verb)
		require.NotErrorIs(t, err, dbmutex.ErrTimeout, verb)
	}
	require.Nil(t, row(t, db, "job"))
}
