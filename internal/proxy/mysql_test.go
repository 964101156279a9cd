package proxy_test

import (
	"database/sql"
	"testing"

	driver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
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

func TestOneAnswerHasManyResults(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	network := proxy.New(t, d)
	const statement = `SELECT 1; DO 2; SELECT 3, 4 WHERE false; SELECT 5`
	messages := breakEverywhere(t, network, statement, func(pool *sql.DB, fault *proxy.Fault) {
		err := ask(pool, statement)
		if fault.Missed.Load() {
			require.NoError(t, err)
			require.NoError(t, ask(pool, statement), "the connection can still be used")
		} else {
			require.Error(t, err)
		}
	})
	require.GreaterOrEqual(t, messages, 12)
}
