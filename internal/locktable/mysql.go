package locktable

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"gorm.io/gorm"
)

// mysql has the statements for MySQL and MariaDB. A row stays when its mutex is released: INSERT and DELETE, also of different
// ids, deadlock under InnoDB, as they lock the gaps between rows
// (https://dev.mysql.com/doc/refman/8.4/en/innodb-locks-set.html). A free row has no lease_id, and expires_at says since when.
//
// Ids are sent as bytes, also if the driver puts them into the text of a statement: a connection may have any charset.
//
// A statement that looks for a lease waits for nobody's transaction. Statements within a caller's transaction find their row
// by its id: by lock_id they would lock the gap before it, and so keep out new ids, until the transaction ends.
type mysql struct {
	name, table                              string // not quoted, and quoted
	lookSQL, insertSQL, takeSQL, takeOverSQL string
	renewSQL, releaseSQL, leaveSQL           string
	releaseInSQL, leaveInSQL                 string
	guardSQL, fateSQL, rowSQL                string
	oldSQL, sweepSQL                         string

	releases, sweepFrom atomic.Int64 // for sweep
}

// leftMark begins the lease_id of a row that MinHold leaves behind, which is nobody's. The old lease_id follows: see fate.
const leftMark = "-"

func newMySQL(name, table string) *mysql {
	const (
		now       = `UTC_TIMESTAMP(6)`
		expiry    = now + ` + INTERVAL ? MICROSECOND` // NULL for one that is NULL
		owned     = ` WHERE lock_id = ? AND lease_id = ?`
		ownedByID = ` WHERE id = ? AND lease_id = ?`
		// A driver may scan times as its DSN says.
		times  = microsecondsOf + `creation_time), ` + microsecondsOf + `expires_at)`
		holder = `CONVERT(UNHEX(?) USING utf8mb4)` // a connection that has no characters of four bytes refuses them even as bytes
		lease  = `creation_time = ` + now + `, expires_at = ` + expiry + `, holder = ` + holder + `, lease_id = ?`
		// The token is drawn when the row is won. It is greater than those of a row of the same mutex that was removed before.
		token = `token = LAST_INSERT_ID(GREATEST(token, id << 24) + 1)`
		freed = `lease_id = '', expires_at = ` + now
		left  = `lease_id = CONCAT('` + leftMark + `', lease_id), expires_at = creation_time + INTERVAL ? MICROSECOND`
		// UTC_TIMESTAMP is that of the statement's beginning, which may have waited for a guard since.
		later = now + ` + INTERVAL TIMESTAMPDIFF(MICROSECOND, NOW(6), SYSDATE(6)) MICROSECOND`
	)
	set := `UPDATE ` + table + ` SET `
	return &mysql{
		name: name, table: table,
		lookSQL: `SELECT id, CAST(holder AS BINARY), ` + times + `, lease_id, TIMESTAMPDIFF(MICROSECOND, ` + now + `, expires_at)
FROM ` + table + ` WHERE lock_id = ?`,
		// The number of rows that changed depends on the driver's settings, the id that was drawn does not.
		insertSQL: `INSERT INTO ` + table + ` (lock_id, creation_time, expires_at, holder, lease_id, token)
VALUES (?, ` + now + `, ` + expiry + `, ` + holder + `, ?, 0) ON DUPLICATE KEY UPDATE id = id + LAST_INSERT_ID(0)`,
		// Nobody pins a row that is free.
		takeSQL: set + token + `, ` + lease + ` WHERE id = ? AND lock_id = ? AND lease_id = ''`,
		// Somebody may pin a row that ran out, or that has this lease's own id because the answer to an earlier try was lost.
		takeOverSQL: set + token + `, ` + lease + ` WHERE id = (SELECT id FROM (SELECT id FROM ` + table + `
	WHERE id = ? AND lock_id = ? AND (expires_at <= ` + now + ` OR lease_id = ?) FOR UPDATE SKIP LOCKED) AS stale)`,
		renewSQL: set + `expires_at = ` + expiry + `, id = LAST_INSERT_ID(id)` + owned + `
AND (expires_at IS NULL OR expires_at > ` + later + `)`,
		releaseSQL:   set + freed + owned,
		leaveSQL:     set + left + owned,
		releaseInSQL: set + `holder = lease_id, ` + freed + ownedByID, // the holder is the mark for fate
		leaveInSQL:   set + left + ownedByID,
		// It changes a value, as a Galera cluster compares changes alone.
		guardSQL: set + `creation_time = creation_time + INTERVAL 1 MICROSECOND` + ownedByID,
		fateSQL:  `SELECT lease_id = ?, lease_id = ? OR (lease_id = '' AND holder = ?) FROM ` + table + ` WHERE id = ? FOR UPDATE`,
		rowSQL: `SELECT id, lock_id, ` + times + `, CAST(holder AS BINARY), lease_id, GREATEST(token, id << 24),
	expires_at IS NULL OR expires_at > ` + now + ` FROM ` + table + ` WHERE lock_id = ? AND lease_id <> ''`,
		oldSQL: fmt.Sprintf(`SELECT id, lease_id = '' AND expires_at < %s - INTERVAL 1 HOUR AND token >> 24 <= id
FROM %s WHERE id > ? ORDER BY id LIMIT %d`, now, table, sweepRows),
		sweepSQL: `DELETE FROM ` + table + ` WHERE id = ? AND lease_id = '' AND expires_at < ` + now + ` - INTERVAL 1 HOUR`,
	}
}

// microsecondsOf begins an expression for a time as a number.
const microsecondsOf = `TIMESTAMPDIFF(MICROSECOND, '1970-01-01', `

func (m *mysql) acquire(on executor, r Request) (a Answer, err error) {
	ctx, cancel := gracefully(on.ctx)
	defer cancel()
	on = on.under(ctx)
	ttl := microseconds(r.TTL)
	for range maxLooks {
		row, left, err := m.look(on, r.LockID)
		if a = (Answer{}); err != nil {
			return a, err
		}
		if row == nil {
			id, _, err := on.execID(m.insertSQL, []any{[]byte(r.LockID), ttl, hex.EncodeToString([]byte(r.Holder)), r.LeaseID})
			if err != nil {
				return a, err
			}
			if id != 0 {
				return Answer{Token: id << 24, RowID: id}, nil
			}
			continue
		}
		query, args := m.takeSQL, []any{ttl, hex.EncodeToString([]byte(r.Holder)), r.LeaseID, row.ID, []byte(r.LockID)}
		if row.LeaseID != "" {
			a = Answer{Held: row, Left: left, Ended: row.ExpiresAt != nil && left <= 0}
			if row.LeaseID != r.LeaseID && !a.Ended {
				return a, nil
			}
			query, args = m.takeOverSQL, append(args, r.LeaseID)
		}
		token, taken, err := on.execID(query, args)
		if err != nil {
			return Answer{}, err
		}
		if taken {
			return Answer{Token: token, RowID: row.ID}, nil
		}
	}
	return a, nil
}

// look reads the row that is there, if any, and how much time its lease has left.
func (m *mysql) look(on executor, lockID string) (row *Row, left time.Duration, err error) {
	row = &Row{LockID: lockID}
	var since int64
	var expires, micros sql.NullInt64
	found, err := on.queryOne(m.lookSQL, []any{[]byte(lockID)}, &row.ID, &row.Holder, &since, &expires, &row.LeaseID, &micros)
	if err != nil || !found {
		return nil, 0, err
	}
	row.setMicroseconds(since, expires)
	return row, time.Duration(micros.Int64) * time.Microsecond, nil
}

func (r *Row) setMicroseconds(since int64, expires sql.NullInt64) {
	r.CreationTime = time.UnixMicro(since).UTC()
	if expires.Valid {
		at := time.UnixMicro(expires.Int64).UTC()
		r.ExpiresAt = &at
	}
}

func (m *mysql) renew(on executor, k Key, ttl *time.Duration) (bool, error) {
	id, _, err := on.execID(m.renewSQL, []any{microseconds(ttl), []byte(k.LockID), k.LeaseID})
	return id != 0, err
}

func (m *mysql) release(on executor, r Release) (found bool, err error) {
	if r.MinHold > 0 {
		return on.exec(m.leaveSQL, []any{microseconds(&r.MinHold), []byte(r.LockID), r.LeaseID})
	}
	if found, err = on.exec(m.releaseSQL, []any{[]byte(r.LockID), r.LeaseID}); found {
		m.sweep(on)
	}
	return found, err
}

const (
	// Each of sweepEvery releases looks at the next sweepRows rows of the table. As a release leaves one row at the most, the
	// table does not grow for ever.
	sweepEvery = 16
	sweepRows  = 64
)

// sweep removes rows that have been free for an hour. No other statement fails if it does: it is another statement's row that
// may be gone, and that looks again.
func (m *mysql) sweep(on executor) {
	if m.releases.Add(1)%sweepEvery != 0 {
		return
	}
	on = on.hushing(failures)
	var last int64
	var old []int64
	rows := 0
	err := on.queryAll(m.oldSQL, []any{m.sweepFrom.Load()}, func(row *sql.Rows) error {
		var isOld bool
		rows++
		err := row.Scan(&last, &isOld)
		if isOld {
			old = append(old, last)
		}
		return err
	})
	if rows < sweepRows {
		last = 0
	}
	m.sweepFrom.Store(last)
	for i := 0; err == nil && i < len(old); i++ { // each alone, so that it has one lock
		_, err = on.exec(m.sweepSQL, []any{old[i]})
	}
}

// releaseIn leaves the lease's id in the row, for fate.
func (m *mysql) releaseIn(tx executor, k Key, minHold time.Duration) (found bool, transaction string, err error) {
	query, args := m.releaseInSQL, []any{k.RowID, k.LeaseID}
	if minHold > 0 {
		query, args = m.leaveInSQL, []any{microseconds(&minHold), k.RowID, k.LeaseID}
	}
	found, err = tx.exec(query, args)
	return found, k.LeaseID, err
}

func (m *mysql) guard(tx executor, k Key) (bool, error) {
	return tx.exec(m.guardSQL, []any{k.RowID, k.LeaseID})
}

// fate waits for the transaction, which has the row locked.
func (m *mysql) fate(on executor, k Key, transaction string) (Fate, error) {
	var ours, committed bool
	found, err := on.queryOne(m.fateSQL, []any{transaction, leftMark + transaction, transaction, k.RowID}, &ours, &committed)
	switch {
	case err != nil || !found:
		return Unknown, err
	case committed:
		return Committed, nil
	case ours:
		return Aborted, nil
	}
	return Unknown, nil // another lease has written over it
}

// savepoint is set at the beginning of a Transaction, and is there at its end unless the transaction has ended before.
const savepoint = `SAVEPOINT dbmutex`

// begin pins nothing, as on PostgreSQL. A renewal changes the row that the end of the transaction writes to. That makes the
// transaction fail at the isolation levels that read a snapshot, if the server compares them
// (https://mariadb.com/docs/server/server-usage/storage-engines/innodb/innodb-system-variables#innodb_snapshot_isolation).
// No server tells the level of a transaction that is not the session's.
func (m *mysql) begin(tx executor, _ Key, w Work) (found, renewable bool, err error) {
	_, err = unprepared(tx).exec(savepoint, nil)
	return true, w.Level == sql.LevelReadCommitted || w.Level == sql.LevelReadUncommitted, err
}

var errEndedWithin = fmt.Errorf("%w: a statement within it had ended it, either by an implicit commit, as every DDL statement "+
	"does, or as the database rolled it back, as after a deadlock; what ran before or after that may be committed",
	gorm.ErrInvalidTransaction)

func (m *mysql) unbroken(tx executor) error {
	_, err := unprepared(tx).exec(`RELEASE `+savepoint, nil)
	if mysqlNumber(err) == 1305 { // it does not exist
		return errEndedWithin
	}
	return err
}

// unprepared is the executor of a transaction that prepares no statements, as a savepoint can be none.
func unprepared(tx executor) executor {
	if prepared, ok := tx.pool.(*gorm.PreparedStmtTX); ok {
		tx.pool = prepared.Tx
	}
	return tx
}

func (m *mysql) row(on executor, lockID string) (_ *Row, live bool, err error) {
	row := &Row{}
	var since int64
	var expires sql.NullInt64
	found, err := on.queryOne(m.rowSQL, []any{[]byte(lockID)},
		&row.ID, &row.LockID, &since, &expires, &row.Holder, &row.LeaseID, &row.Token, &live)
	if err != nil || !found {
		return nil, false, err
	}
	row.setMicroseconds(since, expires)
	return row, live, nil
}

func (m *mysql) rename(on executor, k Key, leaseID string) (bool, error) {
	return on.exec(`UPDATE `+m.table+` SET lease_id = ? WHERE lock_id = ? AND lease_id = ?`, []any{leaseID, []byte(k.LockID), k.LeaseID})
}

// The flags of a connection's status. https://dev.mysql.com/doc/dev/mysql-server/latest/mysql__com_8h.html
const (
	statusInTransaction = 1
	statusAutocommit    = 2
)

// clean reads the status that every answer of the server carries. Another driver, or one that is wrapped, hides it: then it
// costs two round trips. Without autocommit nobody else would see the lease, so the connection has it until restore.
func (m *mysql) clean(on executor) (left bool, restore func(), err error) {
	restore = func() {}
	conn, bound := on.pool.(*sql.Conn)
	if !bound {
		return false, restore, nil
	}
	status, known := uint64(0), false
	if err = conn.Raw(func(c any) error { status, known = mysqlStatus(c); return nil }); err != nil {
		return false, restore, err
	}
	if left = known && status&statusInTransaction != 0; left || !known {
		// A session's completion_type may be to begin the next transaction, or to end the connection.
		if _, err = conn.ExecContext(on.ctx, `ROLLBACK AND NO CHAIN NO RELEASE`); err != nil {
			return left, restore, err
		}
	}
	autocommit := status&statusAutocommit != 0
	if !known {
		rows, err := conn.QueryContext(on.ctx, `SELECT @@autocommit`)
		if err != nil {
			return left, restore, err
		}
		rows.Next()
		if err := errors.Join(rows.Scan(&autocommit), rows.Err(), rows.Close()); err != nil {
			return left, restore, err
		}
	}
	if !autocommit {
		_, err = conn.ExecContext(on.ctx, `SET autocommit = 1`)
		restore = func() {
			limited, cancel := context.WithTimeout(context.WithoutCancel(on.ctx), Limit)
			defer cancel()
			if _, err := conn.ExecContext(limited, `SET autocommit = 0`); err != nil {
				_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // the pool then drops it
			}
		}
	}
	return left, restore, err
}

// mysqlStatus is what github.com/go-sql-driver/mysql keeps of a connection.
func mysqlStatus(conn any) (status uint64, known bool) {
	v := reflect.ValueOf(conn)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct ||
		v.Type().Elem().PkgPath() != "github.com/go-sql-driver/mysql" {
		return 0, false
	}
	f := v.Elem().FieldByName("status")
	if !f.IsValid() || !f.CanUint() {
		return 0, false
	}
	return f.Uint(), true
}

// mysqlNumber is the number of a server's error, or 0. The type is that of the driver, which is not imported.
func mysqlNumber(err error) uint64 {
	switch wrapper := err.(type) { //nolint:errorlint // it walks the tree itself
	case interface{ Unwrap() error }:
		return mysqlNumber(wrapper.Unwrap())
	case interface{ Unwrap() []error }:
		for _, err := range wrapper.Unwrap() {
			if number := mysqlNumber(err); number != 0 {
				return number
			}
		}
		return 0
	}
	v := reflect.ValueOf(err)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct || v.Type().Elem().Name() != "MySQLError" {
		return 0
	}
	if number := v.Elem().FieldByName("Number"); number.IsValid() && number.CanUint() {
		return number.Uint()
	}
	return 0
}

// classify: https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html
// and https://mariadb.com/docs/server/reference/error-codes
func (m *mysql) classify(err error) failure {
	switch mysqlNumber(err) {
	case 0:
	case 1146:
		return noTable
	case 1213, 1020, 1467: // deadlock or a refusal of the cluster's, a snapshot that is too old, no number for the id
		return conflicting
	case 1615, 1243: // a prepared statement that is out of date, or that another server made
		return outdated
	case 1205, 1317, 1969, 3024, 3572: // waited too long for a lock, was interrupted, took too long
		return hindered
	case 1290, 1792, 1836, 1047: // a server that is read-only, or whose cluster is not ready
		return hindered
	case 1021, 1037, 1038, 1041, 1114: // no room on the disk or in memory
		return hindered
	case 1040, 1203, 1226, 1053, 1129: // too many connections, shutting down
		return unreachable
	case 1927, 1180, 1105: // the connection was killed, the commit failed, not known
		return unknown
	default:
		return refused
	}
	var dial *net.OpError
	switch {
	case isPoolClosed(err), errors.Is(err, sql.ErrTxDone), strings.Contains(err.Error(), "packet for query is too large"):
		return refused
	case errors.As(err, &dial) && dial.Op == "dial", errors.As(err, new(*net.DNSError)):
		return unreachable
	case errors.Is(err, sql.ErrConnDone): // a bound connection; the next try is on the pool
		return unreachable
	}
	return unknown
}
