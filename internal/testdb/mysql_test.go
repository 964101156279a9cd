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
		"bind_address": "127.0.0.1", "max_connections": "500", "innodb_flush_log_at_trx_commit": "1", "innodb_doublewrite": "1",
	} {
		var is string
		require.NoError(t, db.Raw(`SELECT @@`+setting).Scan(&is).Error)
		assert.Equal(t, want, is, setting)
	}
}
