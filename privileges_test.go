package dbmutex_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// as gives a handle of a user who has these rights, and no others.
func as(t *testing.T, d *testdb.Database, rights ...string) *dbmutex.DB {
	t.Helper()
	return d.Granted(t, rights...).Registered(t, dbmutex.DefaultSettings()).WithContext(limited(t))
}

func TestEveryVerbWorksWithTheLeastPrivileges(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		open(t, d)
		db := as(t, d, d.LeastRights...)
		require.Error(t, db.Exec(`CREATE TABLE mine (id integer)`).Error, "the role has more than it should")

		exercise(t, db)
		exerciseOnce(t, db)
		require.NoError(t, db.Migrate(), "the tables are there")

		lease := acquire(t, db, "guarded")
		require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error { return lease.Guard(tx) }))
		require.NoError(t, lease.Release())

		require.NoError(t, db.Mutex("renewed", dbmutex.WithTTL(time.Minute), dbmutex.WithRenewal()).Do(
			func(ctx context.Context) error {
				lease, _ := dbmutex.LeaseFrom(ctx)
				require.NoError(t, lease.Renew())
				return nil
			}))

		lease = acquire(t, db, "transaction")
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
	})
}

func TestAReadersErrorsAreTheDatabases(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		acquire(t, open(t, d), "held")
		db := as(t, d, `SELECT ON db_mutexes`)
		m := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever))
		for verb, err := range map[string]error{
			"acquire":              m.Do(func(context.Context) error { panic("ran") }),
			"force the release of": db.Mutex("held").ForceRelease(),
		} {
			require.ErrorContains(t, err, "denied")
			require.ErrorContains(t, err, "dbmutex: "+verb)
			require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
			require.NotErrorIs(t, err, dbmutex.ErrTimeout)
			require.NotErrorIs(t, err, context.DeadlineExceeded)
		}
	})
}

func TestWithoutUsageOfTheSequenceTheErrorNamesIt(t *testing.T) {
	t.Parallel()
	d := testdb.Postgres(t)
	open(t, d)
	db := as(t, d, `SELECT, INSERT, UPDATE, DELETE ON db_mutexes`)
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

func TestEachRightIsNeeded(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		for right, verbs := range d.NeededFor {
			t.Run(right, func(t *testing.T) {
				d := d.Another(t)
				owner := open(t, d)
				db := as(t, d, d.LeastRights...)
				leases := map[string]*dbmutex.Lease{}
				for _, id := range []string{"renew", "guard", "release", "release in", "over", "other"} {
					leases[id] = acquire(t, db, id)
				}
				testdb.Expire(t, owner, "over")
				require.NoError(t, db.Once("done", time.Hour).Do(nothing))
				require.NoError(t, db.Once("over", time.Hour).Do(nothing))
				testdb.ExpireOnces(t, owner, false, "lock_id = 'over'")
				resting := acquire(t, db, "rest", dbmutex.WithMinHold(time.Minute))
				var user string
				require.NoError(t, db.Raw(`SELECT CURRENT_USER`).Scan(&user).Error)
				user, _, _ = strings.Cut(user, "@")
				require.NoError(t, owner.Exec(`REVOKE `+right+` FROM `+user).Error)

				inTransaction := func(end func(tx *gorm.DB) error) error { return db.Gorm.Transaction(end) }
				var failed []string
				for _, verb := range []struct {
					name string
					run  func() error
				}{
					{"acquire", func() error { _, err := db.Mutex("free").Acquire(); return err }},
					{"take over", func() error { _, err := db.Mutex("over").Acquire(); return err }},
					{"renew", leases["renew"].Renew},
					{"guard", func() error { return inTransaction(leases["guard"].Guard) }},
					{"release", leases["release"].Release},
					{"rest", resting.Release},
					{"release in", func() error { return inTransaction(leases["release in"].ReleaseIn) }},
					{"holder", func() error { _, err := db.Mutex("other").Holder(); return err }},
					{"force release", db.Mutex("other").ForceRelease},
					{"list", func() error { _, err := db.Leases(dbmutex.LeaseQuery{}); return err }},
					{"once", func() error { return onlyRun(db.Once("free", time.Hour)) }},
					{"once over", func() error { return onlyRun(db.Once("over", time.Hour)) }},
					{"success", func() error { return db.Once("other", time.Hour).Do(nothing) }},
					{"done", func() error { _, err := db.Once("done", time.Hour).Done(); return err }},
					{"forget", db.Once("done", time.Hour).Forget},
					{"prune", func() error { _, err := db.Prune(); return err }},
				} {
					if err := verb.run(); err != nil {
						require.ErrorContains(t, err, "denied", verb.name)
						failed = append(failed, verb.name)
					}
				}
				require.Equal(t, verbs, failed)
			})
		}
	})
}

func TestTheRightsThatMigrateNeeds(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		schema := currentSchema(t, d.Registered(t, dbmutex.DefaultSettings()))
		var rights []string
		for _, right := range d.MakingRights {
			rights = append(rights, strings.ReplaceAll(right, "%s", schema))
		}
		db := as(t, d, rights...)
		require.NoError(t, db.Migrate())
		exercise(t, db)
		exerciseOnce(t, db)
		require.NoError(t, db.Migrate(), "nothing is left to do")
	})
}

// onlyRun runs and releases, and records nothing.
func onlyRun(o *dbmutex.Once) error {
	if err := o.Do(func(context.Context) error { return errWork }); err != errWork { //nolint:errorlint // nothing may be joined
		return err
	}
	return nil
}
