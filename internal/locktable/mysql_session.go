package locktable

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"

	"gorm.io/gorm"
)

// The flags of a connection's status. https://dev.mysql.com/doc/dev/mysql-server/latest/mysql__com_8h.html
const (
	statusInTransaction = 1
	statusAutocommit    = 2
)

// rollback names what a session's completion_type may be: to begin the next transaction, or to end the connection.
const rollback = `ROLLBACK AND NO CHAIN NO RELEASE`

// clean reads the status that the last answer of the server carried. Another driver, or one that is wrapped, hides it:
// then it costs two round trips, or one where the pool hides its connections. Without autocommit nobody else would see the
// lease, so the connection has it until restore.
func (m *mysql) clean(on executor) (left bool, restore func(), err error) {
	restore = func() {}
	conn, bound := on.pool.(*sql.Conn)
	if !bound {
		_, err = on.pool.ExecContext(on.ctx, rollback)
		return false, restore, err
	}
	status, known, err := mysqlStatus(conn)
	if err != nil {
		return false, restore, err
	}
	return m.cleanFrom(on, conn, status, known)
}

// cleanFrom is clean of a connection whose status may be known.
func (m *mysql) cleanFrom(on executor, conn *sql.Conn, status uint64, known bool) (left bool, restore func(), err error) {
	restore = func() {}
	autocommit := known && status&statusAutocommit != 0
	left = known && status&statusInTransaction != 0
	if left || !autocommit {
		if _, err = conn.ExecContext(on.ctx, rollback); mysqlNumber(err) != 0 { // it is in an XA transaction
			drop(conn)
			err = fmt.Errorf("%w: %s", driver.ErrBadConn, err.Error())
		}
		if err != nil {
			return left, restore, err
		}
	}
	if !known {
		if autocommit, err = hasAutocommit(on.ctx, conn); err != nil {
			return left, restore, err
		}
	}
	if !autocommit {
		_, err = conn.ExecContext(on.ctx, `SET autocommit = 1`)
		restore = func() {
			limited, cancel := context.WithTimeout(context.WithoutCancel(on.ctx), Limit)
			defer cancel()
			if _, err := conn.ExecContext(limited, `SET autocommit = 0`); err != nil {
				drop(conn)
			}
		}
	}
	return left, restore, err
}

// drop takes a connection out of its pool.
func drop(conn *sql.Conn) { _ = conn.Raw(func(any) error { return driver.ErrBadConn }) }

func hasAutocommit(ctx context.Context, conn *sql.Conn) (autocommit bool, err error) {
	rows, err := conn.QueryContext(ctx, `SELECT @@autocommit`)
	if err != nil {
		return false, err
	}
	rows.Next()
	return autocommit, errors.Join(rows.Scan(&autocommit), rows.Err(), rows.Close())
}

// mysqlStatus is what github.com/go-sql-driver/mysql keeps of a connection.
func mysqlStatus(conn *sql.Conn) (status uint64, known bool, err error) {
	err = conn.Raw(func(c any) error {
		v := reflect.ValueOf(c)
		if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct ||
			v.Type().Elem().PkgPath() != "github.com/go-sql-driver/mysql" {
			return nil
		}
		f := v.Elem().FieldByName("status")
		if known = f.IsValid() && f.CanUint(); known {
			status = f.Uint()
		}
		return nil
	})
	return status, known, err
}

// outside runs statements again if their answers show that they ran in a transaction, so that they had no effect. The status
// that clean reads does not: an error carries none, nor does a connection know what a server's init_connect has done.
func (m *mysql) outside(on executor, fn func() error) error {
	err := fn()
	conn, bound := on.pool.(*sql.Conn)
	if !bound {
		return err
	}
	status, known, broken := mysqlStatus(conn)
	if broken != nil || !known || status&(statusInTransaction|statusAutocommit) == statusAutocommit {
		return err
	}
	_, restore, err := m.cleanFrom(on, conn, 0, false) // a server whose autocommit is 0 may tell otherwise (MySQL 9.7)
	defer func() { restore() }()
	if err != nil {
		return &unsentError{err, true}
	}
	return fn()
}

// A savepoint is there at the end of a transaction's part unless the transaction has ended within.
const (
	wholePoint = `SAVEPOINT dbmutex`           // of a Transaction
	partPoint  = `SAVEPOINT dbmutex_statement` // of a statement; another of the same name would end the first
)

var errEndedWithin = fmt.Errorf("%w: a statement within had ended it: a commit, an implicit commit (each DDL statement of "+
	"MySQL's is one), or a rollback (as after a deadlock); what ran before or after that may be committed",
	gorm.ErrInvalidTransaction)

func (m *mysql) mark(tx executor) error {
	_, err := unprepared(tx).exec(partPoint, nil)
	return err
}

func (m *mysql) unbroken(tx executor, whole bool) error {
	point := partPoint
	if whole {
		point = wholePoint
	}
	_, err := unprepared(tx).exec(`RELEASE `+point, nil)
	if mysqlNumber(err) == 1305 { // it does not exist
		return errEndedWithin
	}
	return err
}

// unprepared is the executor of a transaction that prepares no statements, as a savepoint can be none.
func unprepared(tx executor) executor {
	for {
		prepared, ok := tx.pool.(*gorm.PreparedStmtTX)
		if !ok {
			return tx
		}
		tx.pool = prepared.Tx
	}
}
