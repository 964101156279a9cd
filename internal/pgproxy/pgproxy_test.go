package pgproxy_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/internal/pgproxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// connect makes a connection. It dials once: pgx would dial again to cancel the statement of a connection that was cut.
func connect(t *testing.T, dsn string) *pgx.Conn {
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
	conn, err := pgx.ConnectConfig(context.Background(), config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func exec(conn *pgx.Conn, statement string, args ...any) error {
	_, err := conn.Exec(context.Background(), statement, args...)
	return err
}

func TestALateRequestArrivesWhenItsClientHasGone(t *testing.T) {
	t.Parallel()
	d := testdb.Postgres(t)
	direct := connect(t, d.DSN)
	require.NoError(t, exec(direct, `CREATE TABLE made (id integer)`))
	requireMade := func(want int, why string) {
		var n int
		require.NoError(t, direct.QueryRow(context.Background(), `SELECT count(*) FROM made`).Scan(&n))
		require.Equal(t, want, n, why)
	}
	proxy := pgproxy.New(t, d.DSN)
	proxy.Choose(func(statement string) *pgproxy.Fault {
		if strings.HasPrefix(statement, "INSERT") {
			return &pgproxy.Fault{Late: time.Hour}
		}
		return nil
	})

	require.Error(t, exec(connect(t, proxy.DSN()), `INSERT INTO made VALUES ($1)`, 1))
	requireMade(0, "it is late")
	proxy.Deliver()
	requireMade(1, "it has been delivered")

	require.Error(t, exec(connect(t, proxy.DSN()), `INSERT INTO made VALUES ($1)`, 2))
	proxy.Reset()
	proxy.Deliver()
	requireMade(1, "a connection that is cut takes its request along")
}

func TestANetworkRefusesConnections(t *testing.T) {
	t.Parallel()
	d := testdb.Postgres(t)
	proxy := pgproxy.New(t, d.DSN)
	conn := connect(t, proxy.DSN())
	proxy.Refuse()
	require.Error(t, exec(conn, `SELECT 1`))
	_, err := pgx.Connect(context.Background(), proxy.DSN())
	require.Error(t, err)
	proxy.Admit()
	require.NoError(t, exec(connect(t, proxy.DSN()), `SELECT 1`))
}
