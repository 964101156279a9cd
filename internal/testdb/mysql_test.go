//go:build unix

package testdb_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func init() {
	servers["mysql"] = server{
		fresh:     testdb.MySQL,
		dsn:       testdb.MySQLServer,
		envDSN:    "DBMUTEX_TEST_MYSQL_DSN",
		envBin:    "DBMUTEX_TEST_MYSQLBIN",
		envWanted: "DBMUTEX_TEST_MYSQL",
		pidFile:   `SELECT CONCAT(@@datadir, '../data.pid')`,
		forms: func(_ *testing.T, dsn string) []string {
			server, _, _ := strings.Cut(dsn, "/")
			return []string{server + "/", server + "/mysql?parseTime=true&loc=Asia%2FTokyo"}
		},
		setting:    [2]string{"lock_wait_timeout = 77", `SELECT @@lock_wait_timeout`},
		nowhere:    "u:secret@tcp(127.0.0.1:1)/",
		noPrograms: "neither mariadbd and mariadb-install-db nor mysqld are there",
	}
}

func TestMySQLOfItsOwn(t *testing.T) {
	if os.Getenv("DBMUTEX_TEST_MYSQL_DSN") != "" {
		t.Skip("DBMUTEX_TEST_MYSQL_DSN is set")
	}
	db := testdb.MySQL(t).Open(t)
	for setting, want := range map[string]string{
		"bind_address": "127.0.0.1", "max_connections": "500", "innodb_flush_log_at_trx_commit": "1",
	} {
		var is string
		require.NoError(t, db.Raw(`SELECT @@`+setting).Scan(&is).Error)
		assert.Equal(t, want, is, setting)
	}
}

func TestGaleraHasTwoNodes(t *testing.T) {
	nodes := testdb.NewGalera(t)
	requireRows := func(want ...row) {
		for _, node := range nodes {
			var rows []row
			db := testdb.MySQLAt(node.DSN() + "&wsrep_sync_wait=1").Open(t)
			require.NoError(t, db.Order("id").Find(&rows).Error)
			require.Equal(t, want, rows)
		}
	}
	require.NoError(t, nodes[0].Database().Open(t).AutoMigrate(&row{}))
	require.NoError(t, nodes[0].Database().Open(t).Create(&row{ID: 1}).Error)
	require.NoError(t, nodes[1].Database().Open(t).Create(&row{ID: 2}).Error)
	requireRows(row{1}, row{2})
	nodes[0].Stop(t, "fast")
	require.NoError(t, nodes[1].Database().Open(t).Create(&row{ID: 3}).Error)
	nodes[0].Start(t)
	requireRows(row{1}, row{2}, row{3})
}
