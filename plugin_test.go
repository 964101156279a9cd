package dbmutex_test

import (
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

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
