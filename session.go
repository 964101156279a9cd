package dbmutex

import (
	"context"
	"database/sql"
	"errors"

	"gorm.io/gorm"
)

// mainPool keeps every statement on the pool it wraps. dbresolver would send some of ours to a replica, or to a source
// that the transaction of Mutex.Transaction does not run on; it leaves transactions where they are, and takes this for one.
type mainPool struct{ gorm.ConnPool }

func (mainPool) Commit() error   { return gorm.ErrInvalidTransaction }
func (mainPool) Rollback() error { return gorm.ErrInvalidTransaction }

// GetDBConn lets DB.DB() see through the wrapping.
func (p mainPool) GetDBConn() (*sql.DB, error) {
	switch pool := p.ConnPool.(type) {
	case *sql.DB:
		return pool, nil
	case gorm.GetDBConnector:
		return pool.GetDBConn()
	}
	return nil, gorm.ErrInvalidDB
}

// session is a handle with nothing left on it of what the caller's had, neither conditions nor settings, on a pool.
func session(ctx context.Context, db *gorm.DB, pool gorm.ConnPool) *gorm.DB {
	s := db.Session(&gorm.Session{NewDB: true, Context: ctx})
	s.Statement.ConnPool = pool
	return s
}

// on is a handle for one statement outside of a transaction. Where the connection that the handle is bound to has died
// it is on the main pool, so that releases happen.
func (m *Mutex) on(ctx context.Context) *gorm.DB {
	pool := m.pool
	if conn, bound := pool.(*sql.Conn); bound && errors.Is(conn.Raw(func(any) error { return nil }), sql.ErrConnDone) {
		pool = m.db.ConnPool
	}
	return session(ctx, m.db, mainPool{pool})
}

// connect is on, on a connection of its own until it is given back, so that an error tells whether there was one.
func (m *Mutex) connect(ctx context.Context) (db *gorm.DB, giveBack func(), err error) {
	db, giveBack = m.on(ctx), func() {}
	switch db.Statement.ConnPool.(mainPool).ConnPool.(type) {
	case *sql.DB, *gorm.PreparedStmtDB:
		pool, err := db.DB()
		if err != nil { // a pool of somebody else's making
			return db, giveBack, nil
		}
		conn, err := pool.Conn(ctx)
		if err != nil {
			return nil, nil, &unsentError{err}
		}
		db.Statement.ConnPool = mainPool{conn}
		giveBack = func() { _ = conn.Close() }
	}
	return db, giveBack, nil
}

func inTransaction(db *gorm.DB) bool {
	_, ok := db.Statement.ConnPool.(gorm.TxCommitter)
	return ok
}
