//go:build unix

package testdb_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func init() {
	servers["postgres"] = server{
		fresh:     testdb.Postgres,
		dsn:       testdb.PostgresServer,
		envDSN:    "DBMUTEX_TEST_DSN",
		envBin:    "DBMUTEX_TEST_PGBIN",
		envWanted: "DBMUTEX_TEST_POSTGRES",
		pidFile:   `SELECT current_setting('data_directory') || '/postmaster.pid'`,
		forms: func(t *testing.T, dsn string) []string {
			config, err := pgx.ParseConfig(dsn)
			require.NoError(t, err)
			if config.Password != "" || config.TLSConfig != nil {
				t.Skip("only for a server without password and TLS")
			}
			return []string{
				fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable",
					config.Host, config.Port, config.User, config.Database),
				fmt.Sprintf("postgres://%s@%s:%d/%s?sslmode=disable",
					config.User, config.Host, config.Port, config.Database),
			}
		},
		setting:    [2]string{"lock_timeout = '77s'", `SELECT setting::int / 1000 FROM pg_settings WHERE name = 'lock_timeout'`},
		nowhere:    "postgres://u:secret@127.0.0.1:1/d",
		noPrograms: "initdb, pg_ctl and postgres aren't all there",
	}
}

func connect(t *testing.T, dsn string) *pgx.Conn {
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func show(t *testing.T, conn *pgx.Conn, setting string) (value string) {
	require.NoError(t, conn.QueryRow(t.Context(), "SHOW "+setting).Scan(&value))
	return value
}

func TestPostgresOfItsOwn(t *testing.T) {
	if os.Getenv("DBMUTEX_TEST_DSN") != "" {
		t.Skip("DBMUTEX_TEST_DSN is set")
	}
	conn := connect(t, testdb.PostgresServer(t))
	assert.Equal(t, "127.0.0.1", show(t, conn, "listen_addresses"))
	assert.Equal(t, "200", show(t, conn, "max_connections"))
	assert.Equal(t, "on", show(t, conn, "fsync"))
	assert.Equal(t, "on", show(t, conn, "synchronous_commit"))
	assert.Equal(t, "UTF8", show(t, conn, "server_encoding"))
}
