package locktable

import (
	"context"
	"database/sql"
	"reflect"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// executor is where a statement runs, and under which context: a pool, a connection of it, or a transaction.
type executor struct {
	ctx    context.Context
	config *gorm.Config
	pool   gorm.ConnPool
	main   bool // stay on the main pool, as mainPool says
}

// in is the executor of a caller's transaction.
func in(ctx context.Context, tx *gorm.DB) executor {
	return executor{ctx: ctx, config: tx.Config, pool: tx.Statement.ConnPool}
}

// under is the executor under another context.
func (e executor) under(ctx context.Context) executor {
	e.ctx = ctx
	return e
}

// session is a handle that can begin transactions. It has neither conditions nor settings of the caller's handle.
func (e executor) session() *gorm.DB {
	e.main = false
	return e.statement("", nil).Session(&gorm.Session{NewDB: true})
}

// statement is one that GORM's callbacks can run, and so its logger and plugins see it. gorm.DB.Raw would build the text
// anew every time, which costs several times as much as everything else that GORM does here.
func (e executor) statement(query string, args []any) *gorm.DB {
	var s struct {
		db   gorm.DB
		stmt gorm.Statement
		main mainPool
	}
	s.db = gorm.DB{Config: e.config, Statement: &s.stmt}
	s.stmt.DB, s.stmt.ConnPool, s.stmt.Context = &s.db, e.pool, e.ctx
	if e.main {
		s.main = mainPool{e.pool, e.config.ConnPool}
		s.stmt.ConnPool = &s.main
	}
	s.stmt.Clauses, s.stmt.Vars = map[string]clause.Clause{}, args
	s.stmt.SQL.WriteString(query)
	return &s.db
}

// queryOne scans the one row that a statement may return. It reads to the end: a failed commit shows there.
func (e executor) queryOne(query string, args []any, dest ...any) (found bool, err error) {
	rows, err := e.statement(query, args).Rows()
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
func (e executor) exec(query string, args []any) (changed bool, err error) {
	tx := e.statement(query, args)
	tx.Callback().Raw().Execute(tx)
	return tx.RowsAffected > 0, tx.Error
}

// mainPool keeps every statement on the pool that it wraps. dbresolver would send some of ours to a replica, or to a source
// on which the transaction of Mutex.Transaction does not run. It leaves transactions where they are, and takes this for one.
type mainPool struct {
	gorm.ConnPool               // the pool, or a connection of it
	pool          gorm.ConnPool // the pool
}

// Commit makes it look like a transaction.
func (*mainPool) Commit() error { return gorm.ErrInvalidTransaction }

// Rollback makes it look like a transaction.
func (*mainPool) Rollback() error { return gorm.ErrInvalidTransaction }

// GetDBConn lets gorm.DB.DB see through the wrapping.
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

// Identity tells pools apart. It is the *sql.DB beneath a pool. For a pool that hides it, it is the pool itself.
func Identity(pool gorm.ConnPool) any {
	if known, err := sqlDB(pool); err == nil {
		return known
	}
	if v := reflect.ValueOf(pool); v.Comparable() {
		return pool
	}
	return reflect.TypeOf(pool)
}

// InTransaction says whether a handle is a transaction's.
func InTransaction(db *gorm.DB) bool {
	_, ok := db.Statement.ConnPool.(gorm.TxCommitter)
	return ok
}
