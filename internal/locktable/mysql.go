package locktable

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// mysql has the statements for MySQL and MariaDB. A row stays when its mutex is released: INSERT and DELETE, also of
// different ids, deadlock under InnoDB, as they lock the gaps between rows
// (https://dev.mysql.com/doc/refman/8.4/en/innodb-locks-set.html). A free row has no lease_id, and expires_at says since
// when.
//
// Ids are sent as bytes, also if the driver puts them into the text of a statement: a connection may have any charset.
//
// No statement but fate's waits for a row that somebody's transaction has locked. All that change a row find it by its id:
// by lock_id they would lock the gap before it, and so keep out new ids.
type mysql struct {
	name, table                                   string // not quoted, and quoted
	lookSQL, insertSQL, fateSQL, rowSQL, ownerSQL string
	oldSQL                                        string
	lister                                        *lister
	passing, failing                              map[mysqlChange]string // of a row that somebody has locked
	mariadb                                       atomic.Bool            // the server is MariaDB
	freed                                         freedNumbers
	once                                          mysqlOnce
}

// mysqlChange is an UPDATE of a mutex's row.
type mysqlChange int

const (
	takes mysqlChange = iota
	retakes
	renews
	releases
	leaves
	renames
	releasesIn
	guards
	completes
	forgets
)

func newMySQL(name, table string) *mysql {
	const (
		// It is that of the statement's beginning, which is as good, as no statement waits. SYSDATE is later, but in the
		// session's zone, which may leave out an hour.
		now    = `UTC_TIMESTAMP(6)`
		expiry = now + ` + INTERVAL ? MICROSECOND` // NULL for one that is NULL
		live   = `(expires_at IS NULL OR expires_at > ` + now + `)`
		// A driver may scan times as its DSN says.
		times = microsecondsOf + `creation_time), ` + microsecondsOf + `expires_at)`
		// A connection that has no characters of four bytes refuses them even as bytes.
		holder = `CONVERT(UNHEX(?) USING utf8mb4)`
		freed  = `lease_id = '', expires_at = ` + now
		// The old lease_id follows the mark: see fate.
		left = `lease_id = CONCAT('` + leftMark + `', lease_id), expires_at = creation_time + INTERVAL ? MICROSECOND`
	)
	owned := `lease_id = ?`
	// The token is drawn once the row is won, and is greater than those of a row that the mutex had before.
	lease := `token = LAST_INSERT_ID(GREATEST(token, id << 24) + 1), creation_time = ` + now + `, expires_at = ` + expiry + `,
	holder = ` + holder + `, lease_id = ?`
	passing, failing := map[mysqlChange]string{}, map[mysqlChange]string{}
	for change, of := range map[mysqlChange]struct{ set, condition string }{
		// A row that has this lease's own id is there if the answer to an earlier try was lost. It must be the row that lookSQL
		// has seen.
		takes:      {lease, `lock_id = ? AND lease_id = ? AND (lease_id IN ('', ?) OR expires_at <= ` + now + `)`},
		retakes:    {lease, `lock_id = ? AND lease_id = ''`},
		renews:     {`expires_at = ` + expiry, owned + ` AND ` + live},
		releases:   {freed, owned},
		leaves:     {left, owned},
		renames:    {`lease_id = ?`, owned},
		releasesIn: {`holder = lease_id, ` + freed, owned}, // the holder is the mark for fate
		// It changes a value, as a Galera cluster compares changes alone.
		guards: {`creation_time = creation_time + INTERVAL 1 MICROSECOND`, owned},
		completes: {`lease_id = '` + DoneID + `', expires_at = ` + expiry + `,
	result = CONVERT(UNHEX(?) USING utf8mb4), token = ?`, owned},
		forgets: {freed + `, result = NULL`, mysqlDone + ` AND token = ?`},
	} {
		// To wait for the row in the server could be a deadlock. MariaDB can fail rather than wait, which is quicker. In a
		// transaction that could roll it back (innodb_rollback_on_timeout).
		update := `UPDATE ` + table + ` SET ` + of.set
		passing[change] = update + `
WHERE id = (SELECT id FROM (SELECT id FROM ` + table + ` WHERE id = ? AND ` + of.condition + `
	FOR UPDATE SKIP LOCKED) AS free)`
		failing[change] = `/*M! SET STATEMENT innodb_lock_wait_timeout = 0 FOR */ ` + update + ` WHERE id = ? AND ` + of.condition
	}
	return &mysql{
		name: name, table: table, passing: passing, failing: failing, lister: newMySQLLister(table),
		once: newMySQLOnce(table, times),
		lookSQL: `SELECT id, CAST(holder AS BINARY), ` + times + `, lease_id, TIMESTAMPDIFF(MICROSECOND, ` + now + `, expires_at)
FROM ` + table + ` WHERE lock_id = ?`,
		// The number of rows that changed depends on the driver's settings, the id that was drawn does not. A row that somebody
		// made, and pinned, since the look is not waited for by MariaDB, which alone reads the comment.
		insertSQL: `/*M! SET STATEMENT innodb_lock_wait_timeout = 0 FOR */ INSERT INTO ` + table + `
	(lock_id, creation_time, expires_at, holder, lease_id, token)
VALUES (?, ` + now + `, ` + expiry + `, ` + holder + `, ?, 0) ON DUPLICATE KEY UPDATE id = id + LAST_INSERT_ID(0)`,
		fateSQL: `SELECT lease_id = ?, lease_id = ? OR (lease_id = '' AND holder = ?) FROM ` + table + ` WHERE id = ? FOR UPDATE`,
		rowSQL: `SELECT id, lock_id, ` + times + `, CAST(holder AS BINARY), lease_id, GREATEST(token, id << 24),
	` + live + ` FROM ` + table + ` WHERE lock_id = ? AND lease_id <> ''`,
		ownerSQL: `SELECT lease_id, ` + live + ` FROM ` + table + ` WHERE id = ?`,
		oldSQL:   fmt.Sprintf(`SELECT id, %s FROM %s WHERE id > ? ORDER BY id LIMIT %d`, mysqlOld, table, sweepRows),
	}
}

// microsecondsOf begins an expression for a time as a number.
const microsecondsOf = `TIMESTAMPDIFF(MICROSECOND, '1970-01-01', `

// freeLimit is for how long a row may seem free, or missing, and yet be locked, before it is called held.
const freeLimit = 50 * time.Millisecond

func (m *mysql) acquire(on executor, r Request) (a Answer, err error) {
	ctx, cancel := gracefully(on.ctx)
	defer cancel()
	on = on.under(ctx)
	err = m.outside(on, func() error {
		start := time.Now()
		for looks := 1; ; looks++ {
			if a, err = m.tryOnce(on, r); err != nil || a.Token != 0 {
				return err
			}
			limit := freeLimit
			switch {
			case a.Held == nil: // somebody else is just taking it, or has looked at it
			case a.Held.LeaseID == r.LeaseID: // of a try without an answer, whose session has not gone yet
				limit = grace
			case !a.Ended, looks == maxLooks:
				return nil
			}
			if time.Since(start) > limit {
				return nil
			}
			if err := Sleep(on.ctx, time.Millisecond+rand.N(time.Millisecond)); err != nil {
				return &unsentError{error: err}
			}
		}
	})
	return a, err
}

// tryOnce looks at the row, and takes it if it seems to be there to be taken. A row that this process has freed it tries to
// take at once.
func (m *mysql) tryOnce(on executor, r Request) (a Answer, err error) {
	ttl, holder := microseconds(r.TTL), hex.EncodeToString([]byte(r.Holder))
	if id := m.freed.take(r.LockID, math.MaxInt64); id != 0 {
		token, taken, err := m.update(on, retakes, []any{ttl, holder, r.LeaseID, id, []byte(r.LockID)})
		if err != nil || taken && token != 0 {
			return Answer{Token: token, RowID: id}, err
		}
	}
	row, left, err := m.look(on, r.LockID)
	if err != nil {
		return a, err
	}
	if row == nil {
		on.judge = lockWaits{m}
		id, _, err := on.execID(m.insertSQL, []any{[]byte(r.LockID), ttl, holder, r.LeaseID})
		switch {
		case isLocked(err): // somebody has made the row, and pinned it
			return a, nil
		case err != nil || id == 0:
			return a, err
		}
		m.sweep(on, id)
		return Answer{Token: id << 24, RowID: id}, nil
	}
	if row.LeaseID != "" {
		a = Answer{Held: row, Left: left, Ended: row.ExpiresAt != nil && left <= 0}
		if row.LeaseID != r.LeaseID && !a.Ended {
			return a, nil
		}
	}
	token, taken, err := m.update(on, takes, []any{ttl, holder, r.LeaseID, row.ID, []byte(r.LockID), row.LeaseID, r.LeaseID})
	if err == nil && taken && token == 0 { // a trigger on the table hides it
		_, err = on.queryOne(`SELECT token FROM `+m.table+` WHERE id = ?`, []any{row.ID}, &token)
	}
	if err != nil || !taken {
		return a, err
	}
	return Answer{Token: token, RowID: row.ID, Past: r.past(row)}, nil
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

// renew only looks for a lease that never expires.
func (m *mysql) renew(on executor, k Key, ttl *time.Duration) (found bool, err error) {
	if ttl != nil {
		return m.change(on, renews, []any{microseconds(ttl)}, k, true)
	}
	err = m.outside(on, func() (err error) {
		state, err := m.owner(on, k, "")
		found = state == ours
		return err
	})
	return found, err
}

func (m *mysql) release(on executor, r Release) (found bool, err error) {
	if r.MinHold > 0 {
		return m.change(on, leaves, []any{microseconds(&r.MinHold)}, r.Key, false)
	}
	if found, err = m.change(on, releases, nil, r.Key, false); found && r.RowID != 0 {
		m.freed.put(r.LockID, r.RowID)
	}
	return found, err
}

func (m *mysql) rename(on executor, k Key, leaseID string) (bool, error) {
	return m.change(on, renames, []any{leaseID}, k, false)
}

// releaseIn leaves the lease's id in the row, for fate.
func (m *mysql) releaseIn(tx executor, k Key, minHold time.Duration) (found bool, transaction string, err error) {
	if minHold > 0 {
		found, err = m.changeOnce(tx, leaves, []any{microseconds(&minHold)}, k, false)
	} else {
		found, err = m.changeOnce(tx, releasesIn, nil, k, false)
	}
	return found, k.LeaseID, err
}

func (m *mysql) guard(tx executor, k Key) (bool, error) {
	return m.changeOnce(tx, guards, nil, k, false)
}

// update runs an UPDATE of a row that nobody else has locked.
func (m *mysql) update(on executor, c mysqlChange, args []any) (id int64, changed bool, err error) {
	if on.aside != nil {
		changed, err = on.exec(m.passing[c], args)
		return 0, changed, err
	}
	if !m.mariadb.Load() {
		return on.execID(m.passing[c], args)
	}
	on.judge = lockWaits{m}
	if id, changed, err = on.execID(m.failing[c], args); isLocked(err) {
		return 0, false, nil
	}
	return id, changed, err
}

// lockWaits calls a row that is locked a conflict, which is not logged.
type lockWaits struct{ *mysql }

func (l lockWaits) classify(err error) failure {
	if isLocked(err) {
		return conflicting
	}
	return l.mysql.classify(err)
}

// change runs an UPDATE of a lease's row outside of any transaction.
func (m *mysql) change(on executor, c mysqlChange, args []any, k Key, alive bool) (found bool, err error) {
	err = m.outside(on, func() (err error) {
		if k.RowID == 0 {
			row, _, err := m.look(on, k.LockID)
			if err != nil || row == nil || row.LeaseID != k.LeaseID {
				return err
			}
			k.RowID = row.ID
		}
		found, err = m.changeOnce(on, c, args, k, alive)
		return err
	})
	return found, err
}

// pinnedPause is between two tries for a row that somebody has pinned.
const pinnedPause = 4 * time.Millisecond

// changeOnce runs an UPDATE of a lease's row, whose arguments the row's id and the lease's follow. It waits while somebody
// has the row locked, unless that is another's lease: its holder may wait for what this transaction has locked. Nor does
// it wait if the lease is to be alive, and is not.
func (m *mysql) changeOnce(on executor, c mysqlChange, args []any, k Key, alive bool) (found bool, err error) {
	for giveUp := time.Now().Add(Limit); ; {
		_, found, err = m.update(on, c, append(slices.Clone(args), k.RowID, k.LeaseID))
		if err != nil || found {
			return found, err
		}
		state, err := m.whose(on, k)
		switch {
		case err != nil || state == gone || state == others || state == ended && alive:
			return false, err
		case time.Now().After(giveUp):
			return false, errPinned
		}
		if done := Sleep(on.ctx, pinnedPause/2+rand.N(pinnedPause/2)); done != nil {
			return false, &unsentError{error: fmt.Errorf("%w: %w", errPinned, done)}
		}
	}
}

var errPinned = errors.New("another transaction has the lease's row locked")

// ownership is whose a row is.
type ownership int

const (
	ours  ownership = iota
	ended           // ours, but its time is over
	others
	gone
)

// whose says whose a row is that an UPDATE has passed. A transaction reads what it has read before, unless it locks what it
// reads. If somebody else has it locked, the row is looked at on another connection, if there is one.
func (m *mysql) whose(on executor, k Key) (o ownership, err error) {
	if on.aside == nil {
		return m.owner(on, k, "")
	}
	aside := on.aside
	on.hush, on.judge = conflicts, lockWaits{m}
	if o, err = m.owner(on, k, ` FOR UPDATE NOWAIT`); !isLocked(err) {
		return o, err
	}
	limited, cancel := context.WithTimeout(on.ctx, asideLimit)
	defer cancel()
	if err := aside(limited, func(on executor) (err error) {
		o, err = m.owner(on, k, "")
		return err
	}); err != nil {
		return ours, nil // nobody knows better
	}
	return o, nil
}

// isLocked knows the error of a statement that would have to wait for a row. The first is MariaDB's.
func isLocked(err error) bool {
	number := mysqlNumber(err)
	return number == 1205 || number == 3572
}

// asideLimit is for how long to look for another connection.
const asideLimit = 100 * time.Millisecond

func (m *mysql) owner(on executor, k Key, locking string) (ownership, error) {
	var leaseID string
	var live bool
	found, err := on.queryOne(m.ownerSQL+locking, []any{k.RowID}, &leaseID, &live)
	switch {
	case err != nil || !found:
		return gone, err
	case leaseID != k.LeaseID:
		return others, nil
	case !live:
		return ended, nil
	}
	return ours, nil
}

// fate waits for the transaction, which has the row locked.
func (m *mysql) fate(on executor, k Key, transaction string) (Fate, error) {
	var found, ours, committed bool
	err := m.outside(on, func() (err error) {
		if token, isRecord := strings.CutPrefix(transaction, recordMark); isRecord {
			ours, committed, found, err = m.recordFate(on, k, token)
			return err
		}
		found, err = on.queryOne(m.fateSQL, []any{transaction, leftMark + transaction, transaction, k.RowID}, &ours, &committed)
		return err
	})
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

// begin pins nothing, as on PostgreSQL. A renewal changes the row that the end of the transaction writes to. That makes the
// transaction fail at the isolation levels that read a snapshot, if the server compares them
// (https://mariadb.com/docs/server/server-usage/storage-engines/innodb/innodb-system-variables#innodb_snapshot_isolation).
// No server tells the level of a transaction that is not the session's.
func (m *mysql) begin(tx executor, _ Key, w Work) (found, renewable bool, err error) {
	_, err = unprepared(tx).exec(wholePoint, nil)
	return true, w.Level == sql.LevelReadCommitted || w.Level == sql.LevelReadUncommitted, err
}

func (m *mysql) row(on executor, lockID string) (row *Row, live bool, err error) {
	err = m.outside(on, func() error {
		row = &Row{}
		var since int64
		var expires sql.NullInt64
		found, err := on.queryOne(m.rowSQL, []any{[]byte(lockID)},
			&row.ID, &row.LockID, &since, &expires, &row.Holder, &row.LeaseID, &row.Token, &live)
		if err != nil || !found {
			row, live = nil, false
			return err
		}
		row.setMicroseconds(since, expires)
		return nil
	})
	return row, live, err
}

func (m *mysql) token(row *Row) int64 { return row.Token }

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
	switch number := mysqlNumber(err); number {
	case 0:
	case 1146:
		return noTable
	case 1213, 1020, 1467, 3101: // deadlock, or a refusal of a cluster's; a snapshot that is too old; no number for the id
		return conflicting
	case 1615, 1243, 4031: // a prepared statement that is out of date, or that another server made; a session that was idle
		return outdated
	case 1205, 1317, 1969, 3024, 3572: // waited too long for a lock, was interrupted, took too long
		return hindered
	case 1290, 1792, 1836, 1047, 3100: // a server that is read-only, or whose cluster is not ready
		return hindered
	case 1021, 1037, 1038, 1041, 1114, 1206, 1461, 1637: // no room on the disk, in memory or in a table of the server's
		return hindered
	case 1040, 1053, 1129, 1203, 1226, 3032, 2002, 2003, 2005, 9001: // too many connections, shutting down, not reached
		return unreachable
	case 1105, 1158, 1159, 1160, 1161, 1180, 1927: // not known, the network failed, the commit failed, killed
		return unknown
	default:
		if number >= 2000 && number < 3000 { // a client's, such as a proxy
			return unknown
		}
		return refused
	}
	var dial *net.OpError
	switch {
	case errors.Is(err, errPinned):
		return hindered
	case isPoolClosed(err), errors.Is(err, sql.ErrTxDone), strings.Contains(err.Error(), "packet for query is too large"):
		return refused
	case errors.As(err, &dial) && dial.Op == "dial", errors.As(err, new(*net.DNSError)):
		return unreachable
	case errors.Is(err, sql.ErrConnDone): // a bound connection; the next try is on the pool
		return unreachable
	}
	return unknown
}
