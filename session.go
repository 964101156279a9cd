package dbmutex

import (
	"context"
	"database/sql"

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

// on is a handle for one statement outside of a transaction.
func (m *Mutex) on(ctx context.Context) *gorm.DB {
	return session(ctx, m.db, mainPool{m.db.ConnPool})
}

// hold takes one connection of a handle's pool until it is given back: an error then tells whether there was one, and
// database/sql repeats no statement by itself. A handle that has one, or a pool of somebody else's making, stays as it is.
func hold(db *gorm.DB) (held *gorm.DB, giveBack func(), err error) {
	switch db.Statement.ConnPool.(mainPool).ConnPool.(type) {
	case *sql.DB, *gorm.PreparedStmtDB:
		pool, err := db.DB()
		if err != nil {
			return nil, nil, err
		}
		conn, err := pool.Conn(db.Statement.Context)
		if err != nil {
			return nil, nil, &unsentError{err}
		}
		return session(db.Statement.Context, db, mainPool{conn}), func() { _ = conn.Close() }, nil
	}
	return db, func() {}, nil
}

func inTransaction(db *gorm.DB) bool {
	_, ok := db.Statement.ConnPool.(gorm.TxCommitter)
	return ok
}
