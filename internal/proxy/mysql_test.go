package proxy_test

import (
	"database/sql"
	"testing"

	driver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"
)

func init() {
	pools["mysql"] = func(t *testing.T, dsn string) *sql.DB {
		t.Helper()
		config, err := driver.ParseDSN(dsn)
		require.NoError(t, err)
		config.MultiStatements = true
		config.Logger = &driver.NopLogger{}
		connector, err := driver.NewConnector(config)
		require.NoError(t, err)
		return sql.OpenDB(connector)
	}
}
