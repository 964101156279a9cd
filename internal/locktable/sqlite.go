package locktable

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"gorm.io/gorm"
)

// sqlite has the statements for SQLite. Times are text of one form and width, in UTC, so that they compare as times.
// They count whole milliseconds that have passed: a lease has ended only in the millisecond after its expires_at.
type sqlite struct {
	name, table                                                           string // not quoted, and quoted
	lookSQL, acquireSQL, renewSQL, releaseSQL, leaveSQL, guardSQL, rowSQL string
	lister                                                                *lister
	once                                                                  sqliteOnce
	crowd                                                                 sqliteCrowd
}

const (
	sqliteForm = `'%Y-%m-%d %H:%M:%f'`
	sqliteNow  = `strftime(` + sqliteForm + `, 'now')`
)

func newSQLite(name, table string) *sqlite {
	const form, now = sqliteForm, sqliteNow
	// A driver reads text, whatever the column's type.
	const times = `CAST(creation_time AS text), CAST(expires_at AS text)`
	const expiry = `strftime(` + form + `, 'now', ?)` // NULL for a modifier that is NULL
	const owned = ` WHERE lock_id = ? AND lease_id = ?`
	const looked = `holder, ` + times + `, lease_id, expires_at < ` + now + `,
	CAST((julianday(expires_at) - julianday('now')) * 86400000 AS INTEGER)`
	return &sqlite{
		name: name, table: table, lister: newSQLiteLister(table), once: newSQLiteOnce(table, times),
		crowd: newSQLiteCrowd(table, looked),
		// A SELECT first, as an INSERT takes the file's write lock even if it inserts nothing.
		lookSQL: `SELECT ` + looked + ` FROM ` + table + ` WHERE lock_id = ?`,
		// OR REPLACE takes over a row that has expired, or that bears this lease's own id because the outcome of an
		// earlier try was lost. It always draws a new AUTOINCREMENT id, which grows as the file has one writer. If there is
		// another row than the one that lookSQL has seen, it is looked at again.
		acquireSQL: `INSERT OR REPLACE INTO ` + table + ` (lock_id, creation_time, expires_at, holder, lease_id)
SELECT ?, ` + now + `, ` + expiry + `, ?, ?
WHERE NOT EXISTS (SELECT 1 FROM ` + table + `
	WHERE lock_id = ? AND lease_id <> ? AND (lease_id <> ? OR expires_at IS NULL OR expires_at >= ` + now + `))
RETURNING id`,
		renewSQL: `UPDATE ` + table + ` SET expires_at = ` + expiry + owned + `
AND (expires_at IS NULL OR expires_at >= ` + now + `)`,
		releaseSQL: `DELETE FROM ` + table + owned,
		leaveSQL: `UPDATE ` + table + ` SET lease_id = '` + leftMark + `' || substr(lease_id, 2),
	expires_at = strftime(` + form + `, creation_time, ?)` + owned,
		// A write that changes nothing: it keeps every other writer out until the transaction ends.
		guardSQL: `UPDATE ` + table + ` SET lease_id = lease_id` + owned,
		rowSQL: `SELECT id, lock_id, ` + times + `, holder, lease_id, coalesce(expires_at >= ` + now + `, 1)
FROM ` + table + ` WHERE lock_id = ?`,
	}
}

func (s *sqlite) acquire(on executor, r Request) (a Answer, err error) {
	err = s.connect(on, func(c *sqliteConn) error {
		for range maxLooks {
			if err := c.patiently(Limit, func(on executor) error { return s.look(on, r, &a) }); err != nil {
				return err
			}
			if a.Held != nil && !a.Ended && a.Held.LeaseID != r.LeaseID {
				return nil
			}
			seen := ""
			if a.Held != nil {
				seen = a.Held.LeaseID
			}
			// SQLite answers with the row before it commits: a COMMIT that is locked out undoes what it has told.
			var token int64
			err := c.patiently(Limit, func(on executor) error {
				token = 0
				_, err := on.queryOne(s.acquireSQL,
					[]any{r.LockID, modifier(r.TTL), r.Holder, r.LeaseID, r.LockID, r.LeaseID, seen}, &token)
				return err
			})
			if err != nil {
				return err
			}
			if token != 0 {
				a = Answer{Token: token, Past: r.past(a.Held)}
				return nil
			}
		}
		return nil
	})
	return a, err
}

// look reads the row that is there, if any.
func (s *sqlite) look(on executor, r Request, a *Answer) error {
	var l sqliteLooked
	row := &Row{LockID: r.LockID}
	found, err := on.queryOne(s.lookSQL, []any{r.LockID}, l.dest(row)...)
	if *a = (Answer{}); err != nil || !found {
		return err
	}
	*a, err = l.answer(row)
	return err
}

// sqliteLooked is what lookSQL says beside a row.
type sqliteLooked struct {
	since   string
	expires sql.NullString
	ended   sql.NullBool
	left    sql.NullInt64
}

// dest is where to scan its columns.
func (l *sqliteLooked) dest(row *Row) []any {
	return []any{&row.Holder, &l.since, &l.expires, &row.LeaseID, &l.ended, &l.left}
}

func (l *sqliteLooked) answer(row *Row) (Answer, error) {
	if err := row.setTimes(l.since, l.expires); err != nil {
		return Answer{}, err
	}
	return Answer{Held: row, Left: time.Duration(l.left.Int64) * time.Millisecond, Ended: l.ended.Bool}, nil
}

// setTimes reads times as SQLite has them.
func (r *Row) setTimes(since string, expires sql.NullString) (err error) {
	const layout = "2006-01-02 15:04:05" // with or without a fraction
	if r.CreationTime, err = time.Parse(layout, since); err == nil && expires.Valid {
		r.ExpiresAt = new(time.Time)
		*r.ExpiresAt, err = time.Parse(layout, expires.String)
	}
	if err != nil {
		return &unreadError{err}
	}
	return nil
}

func (s *sqlite) renew(on executor, k Key, ttl *time.Duration) (bool, error) {
	return s.writeRow(on, s.renewSQL, []any{modifier(ttl), k.LockID, k.LeaseID})
}

func (s *sqlite) release(on executor, r Release) (bool, error) {
	query, args := s.releaseStatement(r.Key, r.MinHold)
	return s.writeRow(on, query, args)
}

func (s *sqlite) releaseIn(tx executor, k Key, minHold time.Duration) (found bool, transaction string, err error) {
	query, args := s.releaseStatement(k, minHold)
	found, err = tx.exec(query, args)
	return found, "", err
}

func (s *sqlite) releaseStatement(k Key, minHold time.Duration) (string, []any) {
	if minHold > 0 {
		return s.leaveSQL, []any{modifier(&minHold), k.LockID, k.LeaseID}
	}
	return s.releaseSQL, k.args()
}

func (s *sqlite) guard(tx executor, k Key) (bool, error) {
	return tx.exec(s.guardSQL, k.args())
}

// begin takes the write lock with the transaction's first statement: one that had read before could not write any more
// once another had written (SQLITE_BUSY_SNAPSHOT). The transaction then keeps every writer out of the file, renewals as well
// as take-overs.
func (s *sqlite) begin(tx executor, k Key, w Work) (found, renewable bool, err error) {
	tx.hush, tx.judge = conflicts, s
	c := &sqliteConn{executor: tx}
	err = c.use(func() error {
		return c.patiently(atLeastLimit(w.Wait), func(on executor) (err error) {
			found, err = s.guard(on, k)
			return err
		})
	})
	if err == nil && found {
		_, err = tx.exec(wholePoint, nil)
	}
	return found, false, err
}

// mark is not needed for a statement: only a whole transaction is looked after.
func (s *sqlite) mark(executor) error { return nil }

// unbroken needs no file access. A statement that fails may roll the transaction back:
// https://www.sqlite.org/lang_conflict.html and https://www.sqlite.org/lang_transaction.html (3.1).
func (s *sqlite) unbroken(tx executor, whole bool) error {
	if !whole {
		return nil
	}
	_, err := tx.exec(`RELEASE `+wholePoint, nil)
	if err != nil && strings.Contains(err.Error(), "no such savepoint") {
		return errEndedWithin
	}
	return err
}

func (s *sqlite) row(on executor, lockID string) (row *Row, live bool, err error) {
	err = s.connect(on, func(c *sqliteConn) error {
		return c.patiently(Limit, func(on executor) (err error) {
			row = &Row{}
			var since string
			var expires sql.NullString
			found, err := on.queryOne(s.rowSQL, []any{lockID},
				&row.ID, &row.LockID, &since, &expires, &row.Holder, &row.LeaseID, &live)
			if err != nil || !found {
				row, live = nil, false
				return err
			}
			return row.setTimes(since, expires)
		})
	})
	return row, live, err
}

func (s *sqlite) token(row *Row) int64 { return row.ID }

func (s *sqlite) writeRow(on executor, query string, args []any) (found bool, err error) {
	err = s.connect(on, func(c *sqliteConn) error {
		return c.patiently(Limit, func(on executor) (err error) {
			found, err = on.exec(query, args)
			return err
		})
	})
	return found, err
}

// clean needs a BEGIN to find a transaction: SQLite has none within another. On a connection it costs no file access, and so
// needs no end. A pool of somebody else's making may prepare its statements, each alone.
func (s *sqlite) clean(on executor) (left bool, restore func(), err error) {
	restore = func() {}
	if _, bound := on.pool.(*sql.Conn); bound {
		on = on.under(context.WithoutCancel(on.ctx))
		_, err = on.pool.ExecContext(on.ctx, `BEGIN; COMMIT`)
	} else if tx := on.session().Begin(); tx.Error == nil {
		tx.Rollback()
	} else if err = tx.Error; isBusy(err) || errors.Is(err, gorm.ErrInvalidTransaction) {
		return false, restore, nil // it is not in a transaction, or there is no way to tell
	}
	if left = err != nil && isNested(err); left {
		_, err = on.pool.ExecContext(on.ctx, `ROLLBACK`)
	}
	return left, restore, err
}

// transaction runs fn in a transaction and leaves the connection outside of any: not every driver rolls back after a COMMIT
// that was locked out.
func (s *sqlite) transaction(on executor, fn func(tx *gorm.DB) error) error {
	err := on.session().Transaction(fn)
	if err != nil && !isNested(err) {
		_, _, _ = s.clean(on)
	}
	return err
}

// sqliteConn is a connection, or a transaction, which waits for other writers in a way that ends with the context.
type sqliteConn struct {
	executor
	sqlite *sqlite // of a pool of somebody else's making: each statement needs a transaction of its own
}

// connect uses the executor's connection.
func (s *sqlite) connect(on executor, fn func(c *sqliteConn) error) error {
	c := &sqliteConn{executor: on}
	if _, bound := on.pool.(*sql.Conn); !bound {
		c.sqlite = s
		return fn(c)
	}
	return c.use(func() error { return fn(c) })
}

// run runs a statement outside of any transaction that somebody left open. If a pool can begin no transactions there is no
// way to be sure.
func (c *sqliteConn) run(statement func(on executor) error) error {
	if c.sqlite == nil {
		return statement(c.executor)
	}
	err := c.sqlite.transaction(c.executor, func(tx *gorm.DB) error { return statement(in(c.ctx, tx)) })
	if errors.Is(err, gorm.ErrInvalidTransaction) {
		return statement(c.executor)
	}
	return err
}

// busySlice is SQLite's own wait for other connections, busy_timeout, in milliseconds. That wait does not end with a
// context in every driver, so it is short, and patiently repeats it. It is not 0: while it lasts a COMMIT keeps new
// readers out, who would otherwise starve it if the journal is not a WAL (https://www.sqlite.org/lockingv3.html).
const busySlice = 100

// use runs fn with busySlice, and leaves the connection as it was. Its own statements touch no file, so that they need no
// end; drivers start a goroutine for one that can have an end.
func (c *sqliteConn) use(fn func() error) error {
	ctx := context.WithoutCancel(c.ctx)
	var timeout int
	rows, err := c.pool.QueryContext(ctx, `PRAGMA busy_timeout`) // QueryRow of GORM's prepared statements can panic
	if err != nil {
		return &unsentError{error: err}
	}
	rows.Next()
	if err := errors.Join(rows.Scan(&timeout), rows.Err(), rows.Close()); err != nil {
		return &unsentError{error: err}
	}
	if timeout != busySlice {
		defer func() {
			_, _ = c.pool.ExecContext(ctx, fmt.Sprintf(`PRAGMA busy_timeout = %d`, timeout))
		}()
		if _, err := c.pool.ExecContext(ctx, fmt.Sprintf(`PRAGMA busy_timeout = %d`, busySlice)); err != nil {
			return &unsentError{error: err}
		}
	}
	return fn()
}

// patiently repeats a statement up to limit while other connections lock it out.
func (c *sqliteConn) patiently(limit time.Duration, statement func(on executor) error) error {
	giveUp := time.Now().Add(limit)
	for {
		err := c.run(statement)
		if !isBusy(err) || time.Now().After(giveUp) {
			return err
		}
		if done := Sleep(c.ctx, time.Millisecond+rand.N(time.Millisecond)); done != nil {
			return &unsentError{error: fmt.Errorf("another connection writes to the file (%w): %w", err, done)}
		}
	}
}

// classify: SQLite runs in this process, so no answer is lost but that of a statement whose context ended.
func (s *sqlite) classify(err error) failure {
	switch {
	case isBusy(err), isInterrupted(err), isNested(err):
		return conflicting
	case strings.Contains(err.Error(), "disk is full"), strings.Contains(err.Error(), "disk I/O error"):
		return hindered
	case strings.Contains(err.Error(), "no such table"):
		return noTable
	case isPoolClosed(err):
		return refused
	case isUnsent(err), errors.Is(err, sql.ErrConnDone):
		return unreachable
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return unknown
	}
	return refused
}

// modifier is a duration as strftime adds it, in milliseconds, rounded up, or NULL.
func modifier(d *time.Duration) any {
	if d == nil {
		return nil
	}
	ms := roundUp(*d, time.Millisecond)
	return fmt.Sprintf("+%d.%03d seconds", ms/1000, ms%1000)
}

// isInterrupted says whether a statement was undone as its context ended (SQLITE_INTERRUPT). Not every driver gives the
// context's error then.
func isInterrupted(err error) bool { return strings.Contains(err.Error(), "interrupted") }

// isNested says whether a BEGIN found itself within a transaction that somebody left open.
func isNested(err error) bool {
	return strings.Contains(err.Error(), "cannot start a transaction within a transaction")
}

// isBusy says whether SQLite was locked out of the file by another connection: SQLITE_BUSY or SQLITE_LOCKED, whose text
// comes from SQLite itself and so is the same in every driver.
func isBusy(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "database is locked") ||
		strings.Contains(err.Error(), "database table is locked"))
}
