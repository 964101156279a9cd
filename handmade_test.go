package dbmutex_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// madeByHand opens a database with a table that statements make.
func madeByHand(t *testing.T, d *testdb.Database, statements ...string) *dbmutex.DB {
	t.Helper()
	db := d.Registered(t, dbmutex.DefaultSettings())
	for _, statement := range statements {
		require.NoError(t, db.Exec(statement).Error)
	}
	return db
}

func TestATableThatWasMadeByHand(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		for name, statements := range d.HandMade {
			t.Run(name, func(t *testing.T) {
				d := d.Another(t)
				db := madeByHand(t, d, statements...)
				exercise(t, db)
				first := acquire(t, db, "job")
				testdb.Expire(t, db, "job")
				second := acquire(t, db, "job")
				require.NoError(t, second.Release())
				third := acquire(t, db, "job", dbmutex.WithoutTTL())
				require.Greater(t, second.Token(), first.Token())
				require.Greater(t, third.Token(), second.Token())
				requireHeld(t, db, "job")
				require.NoError(t, third.Renew())
				var before, after string
				require.NoError(t, db.Raw(d.Shape).Scan(&before).Error)
				require.NoError(t, db.Migrate())
				require.NoError(t, db.Raw(d.Shape).Scan(&after).Error)
				require.NotEmpty(t, before)
				require.Equal(t, before, after, "Migrate leaves it alone")
				require.NoError(t, db.Migrate(&customer{}))
				require.NoError(t, third.Release())
			})
		}
	})
}

func TestATableThatCannotBeUsedIsRefused(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		for name, made := range d.Unusable {
			t.Run(name, func(t *testing.T) {
				db := madeByHand(t, d.Another(t), made[0]).WithContext(limited(t))
				m := db.Mutex("job")
				_, held := m.Holder()
				_, acquired := m.Acquire()
				_, waited := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
				for _, err := range []error{
					held, acquired, waited, m.Do(nothing), m.Transaction(func(*gorm.DB) error { return nil }), m.ForceRelease(),
				} {
					require.ErrorContains(t, err, "db_mutexes")
					require.ErrorContains(t, err, "cannot be used")
					require.ErrorContains(t, err, made[1])
					require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
				}
				if err := db.Migrate(); err != nil { // it mends what it can
					require.ErrorContains(t, err, made[1])
					drop := `DROP TABLE db_mutexes`
					if name == "a view" {
						drop = `DROP VIEW db_mutexes`
					}
					require.NoError(t, db.Exec(drop).Error)
					require.NoError(t, db.Migrate())
				}
				exercise(t, db)
			})
		}
	})
}
