package dbmutex_test

import (
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// A server that cannot prepare statements for a while gets the release later.
func TestAReleaseGoesOnWhileTheServerPreparesNothing(t *testing.T) {
	server := testdb.MySQL(t).NewServer(t)
	root := testdb.MySQLAt(server.DSN()).Open(t)
	require.NoError(t, root.Exec(`CREATE DATABASE locks`).Error)
	config, err := driver.ParseDSN(server.DSN())
	require.NoError(t, err)
	config.DBName = "locks"
	db := testdb.MySQLAt(config.FormatDSN()).Mutexes(t, dbmutex.DefaultSettings())
	lease := acquire(t, db, "job")
	require.NoError(t, root.Exec(`SET GLOBAL max_prepared_stmt_count = 0`).Error)
	err = lease.Release()
	require.NoError(t, root.Exec(`SET GLOBAL max_prepared_stmt_count = 16382`).Error)
	require.ErrorContains(t, err, "it goes on in the background")
	require.Eventually(t, func() bool { return row(t, db, "job") == nil }, time.Minute, 10*time.Millisecond)
}
