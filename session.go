package dbmutex

import (
	"context"
	"database/sql"
	"reflect"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// mainPool keeps every statement on the pool it wraps. dbresolver would send some of ours to a replica, or to a source
// that the transaction of Mutex.Transaction does not run on; it leaves transactions where they are, and takes this for one.
type mainPool struct {
	gorm.ConnPool               // or a connection of it
	pool          gorm.ConnPool // itself
}

func (*mainPool) Commit() error   { return gorm.ErrInvalidTransaction }
func (*mainPool) Rollback() error { return gorm.ErrInvalidTransaction }

// GetDBConn lets DB.DB() see through the wrapping.
func (p *mainPool) GetDBConn() (*sql.DB, error) { return sqlDB(p.pool) }

// sqlDB is what is beneath a pool.
func sqlDB(pool gorm.ConnPool) (*sql.DB, error) {
	switch pool := pool.(type) {
	case *sql.DB:
		return pool, nil
	case gorm.GetDBConnector:
		return pool.GetDBConn()
	}
	return nil, gorm.ErrInvalidDB
}

// identity tells pools apart: the *sql.DB, or the pool itself where it hides that.
func identity(pool gorm.ConnPool) any {
	if known, err := sqlDB(pool); err == nil {
		return known
	}
	if v := reflect.ValueOf(pool); v.Comparable() {
		return pool
	}
	return reflect.TypeOf(pool)
}

// target is where a statement runs, a pool, a connection or a transaction, and under which context.
type target struct {
	ctx    context.Context
	config *gorm.Config
	pool   gorm.ConnPool
	main   bool // stay on the pool, as mainPool says
}

// in is the target of statements in a caller's transaction.
func in(ctx context.Context, tx *gorm.DB) target {
	return target{ctx: ctx, config: tx.Config, pool: tx.Statement.ConnPool}
}

// under is the target under another context.
func (t target) under(ctx context.Context) target {
	t.ctx = ctx
	return t
}

// session is a handle with nothing left on it of what the caller's had, neither conditions nor settings. It can begin
// transactions.
func (t target) session() *gorm.DB {
	t.main = false
	return t.statement("", nil).Session(&gorm.Session{NewDB: true})
}

// statement is one that GORM's callbacks, and so its logger and plugins, can run. gorm.DB.Raw would build the text anew
// every time, which costs several times as much as all else that GORM does here.
func (t target) statement(query string, args []any) *gorm.DB {
	var s struct {
		db   gorm.DB
		stmt gorm.Statement
		main mainPool
	}
	s.db = gorm.DB{Config: t.config, Statement: &s.stmt}
	s.stmt.DB, s.stmt.ConnPool, s.stmt.Context = &s.db, t.pool, t.ctx
	if t.main {
		s.main = mainPool{t.pool, t.config.ConnPool}
		s.stmt.ConnPool = &s.main
	}
	s.stmt.Clauses, s.stmt.Vars = map[string]clause.Clause{}, args
	s.stmt.SQL.WriteString(query)
	return &s.db
}

// queryOne scans the one row that a statement may return. It reads to the end, where a failed commit shows.
func (t target) queryOne(query string, args []any, dest ...any) (found bool, err error) {
	rows, err := t.statement(query, args).Rows()
	if err != nil {
		return false, err
	}
	defer func() {
		if closed := rows.Close(); err == nil {
			err = closed
		}
	}()
	if found = rows.Next(); found {
		if err := rows.Scan(dest...); err != nil {
			return false, err
		}
		rows.Next()
	}
	return found, rows.Err()
}

// exec runs a statement and says whether it changed a row.
func (t target) exec(query string, args []any) (bool, error) {
	tx := t.statement(query, args)
	tx.Callback().Raw().Execute(tx)
	return tx.RowsAffected > 0, tx.Error
}

func inTransaction(db *gorm.DB) bool {
	_, ok := db.Statement.ConnPool.(gorm.TxCommitter)
	return ok
}
