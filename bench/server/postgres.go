package server

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// database is the contenders', so that the counts are not of what Postgres itself asks.
const database = "bench"

// Postgres is a server that was started with pg_stat_statements.
type Postgres struct {
	Version  string
	Settings string // those that bear on durability

	pool    *pgxpool.Pool // on the database postgres
	dsn     string        // of the contenders' database
	address string
	schemas int
}

// NewPostgres makes the contenders' database on the server of a keyword DSN of the database postgres.
func NewPostgres(ctx context.Context, dsn string) (*Postgres, error) {
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return nil, err
	}
	config := pool.Config().ConnConfig
	p := &Postgres{
		pool:    pool,
		dsn:     strings.Replace(dsn, "dbname=postgres", "dbname="+database, 1),
		address: fmt.Sprintf("%s:%d", config.Host, config.Port),
	}
	for _, statement := range []string{`CREATE EXTENSION pg_stat_statements`, `CREATE DATABASE ` + database} {
		if _, err := pool.Exec(ctx, statement); err != nil {
			return nil, err
		}
	}
	err = pool.QueryRow(ctx, `SELECT current_setting('server_version'),
	(SELECT string_agg(name || '=' || current_setting(name), ', ' ORDER BY name) FROM pg_settings
	WHERE name IN ('fsync', 'synchronous_commit', 'wal_sync_method', 'full_page_writes', 'autovacuum', 'shared_buffers'))`).
		Scan(&p.Version, &p.Settings)
	return p, err
}

// Address is where clients find it.
func (p *Postgres) Address() string { return p.address }

// Place makes a fresh schema and returns its DSN.
func (p *Postgres) Place(ctx context.Context) (string, error) {
	p.schemas++
	name := fmt.Sprintf("bench_%d", p.schemas)
	return p.dsn + " search_path=" + name, p.run(ctx, p.dsn, `CREATE SCHEMA `+name)
}

// Remove drops the schema of a DSN.
func (p *Postgres) Remove(ctx context.Context, dsn string) error {
	_, name, _ := strings.Cut(dsn, " search_path=")
	return p.run(ctx, p.dsn, `DROP SCHEMA `+name+` CASCADE`)
}

// Settle does what the server would do by itself after many rows were written, so that it does not later.
func (p *Postgres) Settle(ctx context.Context) error {
	return p.run(ctx, p.dsn, `VACUUM ANALYZE`, `CHECKPOINT`)
}

func (p *Postgres) run(ctx context.Context, dsn string, statements ...string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// Statements is how many the contenders' database has run so far, BEGIN and COMMIT among them.
func (p *Postgres) Statements(ctx context.Context) (n int64, err error) {
	err = p.pool.QueryRow(ctx, `SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
	WHERE dbid = (SELECT oid FROM pg_database WHERE datname = $1)`, database).Scan(&n)
	return n, err
}

// WAL is how many bytes the server has written to its log so far.
func (p *Postgres) WAL(ctx context.Context) (n int64, err error) {
	err = p.pool.QueryRow(ctx, `SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint`).Scan(&n)
	return n, err
}

// OldSnapshot keeps a snapshot of the contenders' database open until it is closed.
func (p *Postgres) OldSnapshot(ctx context.Context) (end func(), err error) {
	conn, err := pgx.Connect(ctx, p.dsn)
	if err != nil {
		return nil, err
	}
	end = func() { _ = conn.Close(ctx) }
	for _, statement := range []string{`BEGIN ISOLATION LEVEL REPEATABLE READ`, `SELECT count(*) FROM pg_class`} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			end()
			return nil, err
		}
	}
	return end, nil
}

// Through is a DSN of the server by way of a proxy.
func (p *Postgres) Through(dsn string, proxy *Proxy) string {
	_, from, _ := strings.Cut(p.address, ":")
	_, to, _ := strings.Cut(proxy.Addr(), ":")
	return strings.Replace(dsn, "port="+from, "port="+to, 1)
}

// Close ends its own connections.
func (p *Postgres) Close() { p.pool.Close() }
