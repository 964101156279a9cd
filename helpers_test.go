package dbmutex_test

import (
	"context"
	"database/sql"
	"io"
	"log"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// each runs a test on every database, with the plugin under its default settings and the table made.
func each(t *testing.T, test func(t *testing.T, db *dbmutex.DB, d *testdb.Database)) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) { test(t, open(t, d), d) })
}

func open(t *testing.T, d *testdb.Database, opts ...gorm.Option) *dbmutex.DB {
	t.Helper()
	return d.Mutexes(t, dbmutex.DefaultSettings(), opts...)
}

// acquire must succeed; the lease is released when the test ends.
func acquire(t *testing.T, db *dbmutex.DB, id string, opts ...dbmutex.Option) *dbmutex.Lease {
	t.Helper()
	lease, err := db.Mutex(id, opts...).Acquire()
	require.NoError(t, err)
	t.Cleanup(func() { _ = lease.Release() })
	return lease
}

// row is a mutex's row, expired or not.
func row(t *testing.T, db *dbmutex.DB, id string) *dbmutex.DBMutex {
	t.Helper()
	var rows []dbmutex.DBMutex
	require.NoError(t, db.Where("lock_id = ?", id).Find(&rows).Error)
	if len(rows) == 0 {
		return nil
	}
	return &rows[0]
}

// requireFree and requireHeld say what others see of a mutex.
func requireFree(t *testing.T, db *dbmutex.DB, id string) {
	t.Helper()
	require.NoError(t, db.Mutex(id).Do(nothing))
}

func requireHeld(t *testing.T, db *dbmutex.DB, id string) {
	t.Helper()
	err := db.Mutex(id).Do(func(context.Context) error {
		require.Fail(t, "the work ran without the mutex")
		return nil
	})
	require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
}

func nothing(context.Context) error { return nil }

// limited is a context that ends a test which would otherwise hang.
func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// requireEnds waits for a context to end.
func requireEnds(t *testing.T, ctx context.Context) {
	t.Helper()
	select {
	case <-ctx.Done():
	case <-time.After(time.Minute):
		require.Fail(t, "the context did not end")
	}
}

// logs is a GORM logger of everything, to read.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logs) logger(level logger.LogLevel) logger.Interface {
	return logger.New(log.New(io.Writer(l), "", 0), logger.Config{LogLevel: level, SlowThreshold: time.Hour})
}

// faultyPool runs statements on a real pool, unless refuse gives an error, and then, where lose says so, loses the answer.
type faultyPool struct {
	*sql.DB
	mu     sync.Mutex
	refuse func(statement string) error // to be set before the pool is used
	lose   func(statement string) error
}

func (p *faultyPool) refused(statement string) error {
	if p.refuse == nil {
		return nil
	}
	return p.refuse(statement)
}

func (p *faultyPool) setLose(lose func(statement string) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose = lose
}

func (p *faultyPool) lost(statement string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lose == nil {
		return nil
	}
	return p.lose(statement)
}

func (p *faultyPool) GetDBConn() (*sql.DB, error) { return p.DB, nil }

func (p *faultyPool) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if refused := p.refused(query); refused != nil {
		return nil, refused
	}
	res, err := p.DB.ExecContext(ctx, query, args...)
	if lost := p.lost(query); lost != nil {
		return nil, lost
	}
	return res, err
}

func (p *faultyPool) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if refused := p.refused(query); refused != nil {
		return nil, refused
	}
	rows, err := p.DB.QueryContext(ctx, query, args...)
	if lost := p.lost(query); lost != nil {
		if err == nil {
			for rows.Next() { // the statement has its effect
			}
			_ = rows.Close()
		}
		return nil, lost
	}
	return rows, err
}

func (p *faultyPool) BeginTx(ctx context.Context, opts *sql.TxOptions) (gorm.ConnPool, error) {
	tx, err := p.DB.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	return &faultyTx{Tx: tx, pool: p}, nil
}

type faultyTx struct {
	*sql.Tx
	pool *faultyPool
}

// Commit loses its answer, or, where ROLLBACK's answer is to be lost, rolls back.
func (tx *faultyTx) Commit() error {
	if lost := tx.pool.lost("ROLLBACK"); lost != nil {
		_ = tx.Rollback()
		return lost
	}
	err := tx.Tx.Commit()
	if lost := tx.pool.lost("COMMIT"); lost != nil {
		return lost
	}
	return err
}

// openFaulty opens a database through a faultyPool.
func openFaulty(t *testing.T, d *testdb.Database) (*dbmutex.DB, *faultyPool) {
	t.Helper()
	sqlDB, err := d.Open(t).DB()
	require.NoError(t, err)
	pool := &faultyPool{DB: sqlDB}
	return d.MutexesOn(t, pool, dbmutex.DefaultSettings()), pool
}

// withSetting is a PostgreSQL DSN whose sessions have a setting of the server's.
func withSetting(dsn, name, value string) string {
	if strings.Contains(dsn, "://") {
		return dsn + "&" + name + "=" + url.QueryEscape(value)
	}
	return dsn + " " + name + "='" + value + "'"
}

// currentSchema is the schema of the test's own.
func currentSchema(t *testing.T, db *dbmutex.DB) (schema string) {
	require.NoError(t, db.Raw(`SELECT current_schema()`).Scan(&schema).Error)
	return schema
}

// openDSN opens a PostgreSQL database that has its table already, or gets none.
func openDSN(t *testing.T, dsn string) *dbmutex.DB {
	t.Helper()
	return testdb.PostgresAt(dsn).Registered(t, dbmutex.DefaultSettings())
}
