package dbmutex_test

import (
	"context"
	"database/sql"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// faultyPool runs statements on a real pool, unless refuse gives an error, and then, if lose says so, loses the answer.
type faultyPool struct {
	*sql.DB
	*testdb.Database
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

// Commit loses its answer, or, if ROLLBACK's answer is to be lost, rolls back.
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

// loseFirst loses the answer to the first statement that does a verb, or is "COMMIT" or "ROLLBACK". It counts them all.
func (p *faultyPool) loseFirst(verb string, lost error) *atomic.Int32 {
	return p.after(verb, func() error { return lost })
}

// after does something once the first statement that does a verb, or is "COMMIT" or "ROLLBACK", has run, and loses its
// answer if that gives an error. It counts them all.
func (p *faultyPool) after(verb string, do func() error) *atomic.Int32 {
	var n atomic.Int32
	p.setLose(func(statement string) error {
		if (statement != verb && p.Verb(statement) != verb) || n.Add(1) > 1 {
			return nil
		}
		p.mu.Unlock()
		defer p.mu.Lock()
		return do()
	})
	return &n
}

// eachFaulty runs a test on every database whose answers can get lost, through a faultyPool.
func eachFaulty(t *testing.T, test func(t *testing.T, db *dbmutex.DB, pool *faultyPool)) {
	t.Helper()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		db, pool := openFaulty(t, d)
		test(t, db, pool)
	})
}

// openFaulty opens a database through a faultyPool.
func openFaulty(t *testing.T, d *testdb.Database) (*dbmutex.DB, *faultyPool) {
	t.Helper()
	sqlDB, err := d.Open(t).DB()
	require.NoError(t, err)
	pool := &faultyPool{DB: sqlDB, Database: d}
	return d.MutexesOn(t, pool, dbmutex.DefaultSettings()), pool
}
