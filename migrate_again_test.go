package dbmutex_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// Every replica of a program calls Migrate whenever it starts: only the first may change anything.

// requireMigratingAgainAltersNothing compares what a database says of the lock's table, before and after.
func requireMigratingAgainAltersNothing(t *testing.T, d *testdb.Database, look func(t *testing.T, db *dbmutex.DB) string) {
	db := open(t, d)
	lease := acquire(t, db, "job")
	before := look(t, db)
	require.NotEmpty(t, before)
	for _, again := range []*dbmutex.DB{db, d.Registered(t, dbmutex.DefaultSettings())} {
		require.NoError(t, again.Migrate())
		require.Equal(t, before, look(t, db), "Migrate")
		require.NoError(t, again.AutoMigrate(&dbmutex.DBMutex{}))
		require.Equal(t, before, look(t, db), "AutoMigrate")
	}
	require.NoError(t, lease.Release())
}

func TestMigratingAgainAltersNoRowOfTheCatalog(t *testing.T) {
	t.Parallel()
	// xmin is the transaction that wrote a row; a table that is written anew has another relfilenode.
	const catalog = `WITH ours AS (SELECT oid, c.xmin, relname, relkind, relfilenode, reloptions
	FROM pg_class c WHERE relnamespace = current_schema()::regnamespace)
SELECT string_agg(line, E'\n' ORDER BY line) FROM (
	SELECT concat_ws(' ', 'class', o.xmin, o.oid, o.relname, o.relkind, o.relfilenode, o.reloptions) AS line FROM ours o
	UNION ALL SELECT concat_ws(' ', 'attribute', a.xmin, a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod,
		a.attnotnull) FROM pg_attribute a WHERE a.attrelid IN (SELECT oid FROM ours)
	UNION ALL SELECT concat_ws(' ', 'default', f.xmin, f.adrelid, f.adnum, pg_get_expr(f.adbin, f.adrelid))
		FROM pg_attrdef f WHERE f.adrelid IN (SELECT oid FROM ours)
	UNION ALL SELECT concat_ws(' ', 'constraint', n.xmin, n.oid, n.conname, pg_get_constraintdef(n.oid))
		FROM pg_constraint n WHERE n.conrelid IN (SELECT oid FROM ours)
	UNION ALL SELECT concat_ws(' ', 'index', i.xmin, i.indexrelid, i.indisvalid, pg_get_indexdef(i.indexrelid))
		FROM pg_index i WHERE i.indrelid IN (SELECT oid FROM ours)
	UNION ALL SELECT concat_ws(' ', 'sequence', s.xmin, s.seqrelid, s.seqtypid, s.seqmax, s.seqcache)
		FROM pg_sequence s WHERE s.seqrelid IN (SELECT oid FROM ours)
) AS lines`
	requireMigratingAgainAltersNothing(t, testdb.Postgres(t), func(t *testing.T, db *dbmutex.DB) (seen string) {
		require.NoError(t, db.Raw(catalog).Scan(&seen).Error)
		for _, kind := range []string{"class", "attribute", "default", "constraint", "index", "sequence"} {
			require.Contains(t, "\n"+seen, "\n"+kind+" ")
		}
		return seen
	})
}

func TestMigratingAgainLeavesSQLitesSchemaVersion(t *testing.T) {
	t.Parallel()
	requireMigratingAgainAltersNothing(t, testdb.SQLite(t), func(t *testing.T, db *dbmutex.DB) (version string) {
		require.NoError(t, db.Raw(`PRAGMA schema_version`).Scan(&version).Error)
		return version
	})
}
