package faults_test

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// each runs a test on every database, with the plugin under its default settings and the table made.
func each(t *testing.T, test func(t *testing.T, db *dbmutex.DB, d *testdb.Database)) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) { test(t, open(t, d), d) })
}

// What all tests do with mutexes.
var (
	acquire     = testdb.Acquire
	row         = testdb.Row
	requireFree = testdb.RequireFree
	requireHeld = testdb.RequireHeld
	nothing     = testdb.Nothing
	limited     = testdb.Limited
	requireEnds = testdb.RequireEnds
	exercise    = testdb.Exercise
	withSetting = testdb.WithSetting
	timeoutOf   = testdb.TimeoutOf
)

func open(t *testing.T, d *testdb.Database, opts ...gorm.Option) *dbmutex.DB {
	t.Helper()
	return d.Mutexes(t, dbmutex.DefaultSettings(), opts...)
}

// openDSN opens a PostgreSQL database that has its table already, or gets none.
func openDSN(t *testing.T, dsn string) *dbmutex.DB {
	t.Helper()
	return testdb.PostgresAt(dsn).Registered(t, dbmutex.DefaultSettings())
}

// does says whether a network's database is asked to do a verb of the lock's, rather than to prepare for it.
func does(network *proxy.Proxy, statement, verb string) bool {
	return !strings.HasPrefix(statement, "PREPARE ") && network.Database.Verb(statement) == verb
}

// questions counts how often mutexes of a handle are asked for. It must be called before they are used.
func questions(t *testing.T, db *dbmutex.DB) *atomic.Int32 {
	t.Helper()
	n := &atomic.Int32{}
	require.NoError(t, db.Callback().Row().Register("count", func(*gorm.DB) { n.Add(1) }))
	return n
}
