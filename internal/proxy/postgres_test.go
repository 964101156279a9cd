package proxy_test

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
)

func init() {
	pools["postgres"] = func(t *testing.T, dsn string) *sql.DB {
		t.Helper()
		config, err := pgx.ParseConfig(dsn)
		require.NoError(t, err)
		config.DefaultQueryExecMode = pgx.QueryExecModeExec
		dialled := false
		config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
			if dialled {
				return nil, errors.New("a second dial")
			}
			dialled = true
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		return stdlib.OpenDB(*config)
	}
}
