package dbmutex_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// Some sort by the words of a language: they pass over punctuation, or take two letters for one. In Welsh, ng is before n.
func TestPagesAndPrefixesAreExactInEveryCollation(t *testing.T) {
	t.Parallel()
	for _, collation := range testdb.PostgresCollations(t) {
		t.Run(collation, func(t *testing.T) {
			d := testdb.Postgres(t)
			change := `ALTER TABLE db_mutexes ALTER COLUMN lock_id TYPE varchar(256) COLLATE "` + collation + `"`
			require.NoError(t, open(t, d).Exec(change).Error)
			requireExact(t, open(t, d), collation == "C")
		})
	}
	for _, locale := range testdb.PostgresLocales(t) {
		t.Run(locale, func(t *testing.T) { requireExact(t, open(t, testdb.PostgresIn(t, locale)), true) })
		t.Run(locale+", in a table of one's own", func(t *testing.T) {
			d := testdb.PostgresIn(t, locale)
			db := open(t, d)
			require.NoError(t, db.Exec(`ALTER TABLE db_mutexes ALTER COLUMN lock_id TYPE text COLLATE "default"`).Error)
			requireExact(t, open(t, d), false)
		})
	}
}

func TestPruneReachesEveryRowInEveryCollation(t *testing.T) {
	t.Parallel()
	for _, locale := range testdb.PostgresLocales(t) {
		t.Run(locale, func(t *testing.T) {
			db := open(t, testdb.PostgresIn(t, locale))
			require.NoError(t, db.Exec(`ALTER TABLE db_mutexes ALTER COLUMN lock_id TYPE text COLLATE "default"`).Error)
			insertLeases(t, db, 600)
			for _, id := range odd {
				acquire(t, db, id)
			}
			testdb.ExpireAll(t, db, "true")
			removed, err := db.Prune()
			require.NoError(t, err)
			require.EqualValues(t, 600+len(odd), removed)
			require.Empty(t, list(t, db, dbmutex.LeaseQuery{State: dbmutex.LeasesAll}))
		})
	}
}
