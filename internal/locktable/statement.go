package locktable

import (
	"context"
	"database/sql"
	"reflect"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/logger"
)

// executor is where a statement runs, and under which context: a pool, a connection of it, or a transaction.
type executor struct {
	ctx    context.Context
	config *gorm.Config
	pool   gorm.ConnPool
	main   bool       // stay on the main pool, as mainPool says
	hush   hush       // which failures are not logged
	judge  classifier // what a failure is, for hush

	// aside runs a try on another connection; nil outside of transactions.
	aside func(ctx context.Context, try func(executor) error) error
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

// hushing is the executor with other failures that are not logged.
func (e executor) hushing(h hush) executor {
	e.hush = h
	return e
}

// session is a handle that can begin transactions. It has neither conditions nor settings of the caller's handle.
func (e executor) session() *gorm.DB {
	e.main = false
	db, _ := e.statement("", nil)
	return db.Session(&gorm.Session{NewDB: true})
}

// mainSession is a handle whose statements stay on the main pool. It can begin no transaction.
func (e executor) mainSession() *gorm.DB {
	db, _ := e.statement("", nil)
	return db.Session(&gorm.Session{})
}

// statement is one that GORM's callbacks can run, and so its logger and plugins see it. gorm.DB.Raw would build the text
// anew every time, which costs several times as much as everything else that GORM does here. The pool is nil unless it is
// the main one.
func (e executor) statement(query string, args []any) (*gorm.DB, *mainPool) {
	var s struct {
		db     gorm.DB
		stmt   gorm.Statement
		main   mainPool
		config gorm.Config
		log    quietLogger
	}
	s.db = gorm.DB{Config: e.config, Statement: &s.stmt}
	if e.hush != nothing {
		s.config, s.log = *e.config, quietLogger{e.config.Logger, e.hush, e.judge}
		s.config.Logger, s.db.Config = &s.log, &s.config
	}
	s.stmt.DB, s.stmt.ConnPool, s.stmt.Context = &s.db, e.pool, e.ctx
	s.stmt.Clauses, s.stmt.Vars = map[string]clause.Clause{}, args
	s.stmt.SQL.WriteString(query)
	if !e.main {
		return &s.db, nil
	}
	s.main = mainPool{ConnPool: e.pool, pool: e.config.ConnPool}
	s.stmt.ConnPool = &s.main
	return &s.db, &s.main
}

// queryOne scans the one row that a statement may return. It reads to the end: a failed commit shows there.
func (e executor) queryOne(query string, args []any, dest ...any) (found bool, err error) {
	tx, main := e.statement(query, args)
	rows, err := tx.Rows()
	if rows != nil {
		defer func() {
			if closed := rows.Close(); err == nil {
				err = closed
			}
		}()
	}
	if err != nil {
		return false, main.outcome(err)
	}
	if found = rows.Next(); found {
		if err := rows.Scan(dest...); err != nil {
			if e.ctx.Err() == nil {
				err = &unreadError{err}
			}
			return false, err
		}
		rows.Next()
	}
	return found, rows.Err()
}

// queryAll passes each row that a statement returns to scan. It reads to the end, as queryOne does.
func (e executor) queryAll(query string, args []any, scan func(rows *sql.Rows) error) error {
	tx, main := e.statement(query, args)
	rows, err := tx.Rows()
	if rows != nil {
		defer func() { _ = rows.Close() }()
	}
	if err != nil {
		return main.outcome(err)
	}
	for rows.Next() {
		if err := scan(rows); err != nil {
			return &unreadError{err}
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return rows.Close()
}

// exec runs a statement and says whether it changed a row.
func (e executor) exec(query string, args []any) (changed bool, err error) {
	rows, err := e.execCount(query, args)
	return rows > 0, err
}

// execCount runs a statement and says how many rows it changed.
func (e executor) execCount(query string, args []any) (rows int64, err error) {
	tx, main := e.statement(query, args)
	tx.Callback().Raw().Execute(tx)
	return tx.RowsAffected, main.outcome(tx.Error)
}

// execID is exec, and gives what the driver says of LAST_INSERT_ID. It is for the main pool.
func (e executor) execID(query string, args []any) (id int64, changed bool, err error) {
	tx, main := e.statement(query, args)
	tx.Callback().Raw().Execute(tx)
	if main.result != nil {
		id, _ = main.result.LastInsertId()
	}
	return id, tx.RowsAffected > 0, main.outcome(tx.Error)
}

// mainPool keeps every statement on the pool that it wraps. dbresolver would send some of ours to a replica, or to a source
// on which the transaction of Mutex.Transaction does not run. It leaves transactions where they are, and takes this for one.
//
// It also remembers whether the statement came so far: a callback may refuse it.
type mainPool struct {
	gorm.ConnPool               // the pool, or a connection of it
	pool          gorm.ConnPool // the pool
	sent          bool
	result        sql.Result // of the last statement that returns no rows
	err           error      // the driver's
}

// ExecContext runs a statement.
func (p *mainPool) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	p.sent = true
	p.result, p.err = p.ConnPool.ExecContext(ctx, query, args...)
	return p.result, p.err
}

// QueryContext runs a statement that returns rows.
func (p *mainPool) QueryContext(ctx context.Context, query string, args ...any) (rows *sql.Rows, err error) {
	p.sent = true
	rows, p.err = p.ConnPool.QueryContext(ctx, query, args...)
	return rows, p.err
}

// outcome is GORM's error of the statement as settle is to see it: the driver's own, or that of a callback.
func (p *mainPool) outcome(err error) error {
	switch {
	case err == nil || p == nil:
		return err
	case !p.sent:
		return &refusedError{err}
	case p.err != nil: // GORM may have translated it
		return p.err
	}
	return &unreadError{err}
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
		if beneath, err := pool.GetDBConn(); err != nil || beneath != nil {
			return beneath, err
		}
	}
	return nil, gorm.ErrInvalidDB
}

// hush says which failures of a statement GORM's logger is not told of, as they are none for the caller.
type hush int

const (
	nothing   hush = iota
	conflicts      // what another try mends
	refusals       // also what the database refuses: there is another way
	failures       // all: nobody depends on it
)

// classifier is a dialect's classify.
type classifier interface{ classify(err error) failure }

// quietLogger is a logger that is not told of some failures.
type quietLogger struct {
	logger.Interface
	hush  hush
	judge classifier
}

// Trace logs a statement.
func (l *quietLogger) Trace(ctx context.Context, begin time.Time, statement func() (string, int64), err error) {
	if err == nil || !l.hushes(err) {
		l.Interface.Trace(ctx, begin, statement, err)
	}
}

func (l *quietLogger) hushes(err error) bool {
	switch l.judge.classify(err) {
	case conflicting, outdated:
		return true
	case refused:
		return l.hush >= refusals
	}
	return l.hush == failures
}

// ParamsFilter is the logger's own, if it has one: it may hide the values.
func (l *quietLogger) ParamsFilter(ctx context.Context, sql string, params ...any) (string, []any) {
	if filter, ok := l.Interface.(gorm.ParamsFilter); ok {
		return filter.ParamsFilter(ctx, sql, params...)
	}
	return sql, params
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
