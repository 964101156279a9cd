package dbmutex

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// sqlite has the statements for SQLite. Times are text of one form and width, in UTC, so that they compare as times.
// They count whole milliseconds that have passed: a lease has ended only in the millisecond after its expires_at.
type sqlite struct {
	lookSQL, acquireSQL, renewSQL, releaseSQL, leaveSQL, guardSQL, holderSQL, leaseIDSQL string
}

func newSQLite(table string) *sqlite {
	const form = `'%Y-%m-%d %H:%M:%f'`
	const now = `strftime(` + form + `, 'now')`
	const expiry = `strftime(` + form + `, 'now', ?)` // NULL for a modifier that is NULL
	const owned = ` WHERE lock_id = ? AND lease_id = ?`
	const columns = `id, lock_id, creation_time, expires_at, holder, lease_id`
	return &sqlite{
		// A SELECT first, as an INSERT takes the file's write lock even where it inserts nothing.
		lookSQL: `SELECT holder, creation_time, expires_at, lease_id, expires_at < ` + now + `,
	CAST((julianday(expires_at) - julianday('now')) * 86400000 AS INTEGER) FROM ` + table + ` WHERE lock_id = ?`,
		// OR REPLACE takes over a row that has expired, or that bears this lease's own id because the outcome of an
		// earlier try was lost. It always draws a new AUTOINCREMENT id, which grows as the file has one writer.
		acquireSQL: `INSERT OR REPLACE INTO ` + table + ` (lock_id, creation_time, expires_at, holder, lease_id)
SELECT ?, ` + now + `, ` + expiry + `, ?, ?
WHERE NOT EXISTS (SELECT 1 FROM ` + table + `
	WHERE lock_id = ? AND lease_id <> ? AND (expires_at IS NULL OR expires_at >= ` + now + `))
RETURNING id`,
		renewSQL:   `UPDATE ` + table + ` SET expires_at = ` + expiry + owned,
		releaseSQL: `DELETE FROM ` + table + owned,
		leaveSQL:   `UPDATE ` + table + ` SET lease_id = ?, expires_at = strftime(` + form + `, creation_time, ?)` + owned,
		// A write that changes nothing: it keeps every other writer out until the transaction ends.
		guardSQL:   `UPDATE ` + table + ` SET lease_id = lease_id` + owned,
		holderSQL:  `SELECT ` + columns + ` FROM ` + table + ` WHERE lock_id = ? AND (expires_at IS NULL OR expires_at >= ` + now + `)`,
		leaseIDSQL: `SELECT lease_id FROM ` + table + ` WHERE lock_id = ?`,
	}
}

// pinnedAfter is how long an acquire stays locked out of the file by another writer before it calls an expired lease,
// which that writer may be guarding, held.
const pinnedAfter = 50 * time.Millisecond

func (s *sqlite) acquire(t target, r request) (a answer, err error) {
	err = s.connect(t, func(c *sqliteConn) error {
		for range looks {
			if err := c.patiently(settleLimit, func(t target) error { return s.look(t, r, &a) }); err != nil {
				return err
			}
			if a.held != nil && !a.ended && a.held.LeaseID != r.leaseID {
				return nil
			}
			limit := settleLimit
			if a.held != nil && a.held.LeaseID != r.leaseID {
				limit = pinnedAfter
			}
			// SQLite answers with the row before it commits: a COMMIT that is locked out undoes what it has told.
			var told int64
			err := c.patiently(limit, func(t target) error {
				told = 0
				_, err := t.queryOne(s.acquireSQL,
					[]any{r.lockID, modifier(r.ttl), r.holder, r.leaseID, r.lockID, r.leaseID}, &told)
				return err
			})
			if isBusy(err) && limit == pinnedAfter {
				return nil
			}
			if err != nil {
				return err
			}
			if a.token = told; told != 0 {
				return nil
			}
		}
		return nil
	})
	return a, err
}

// look reads the row that is there, if any.
func (s *sqlite) look(t target, r request, a *answer) error {
	var expires sql.NullTime
	var ended sql.NullBool
	var left sql.NullInt64
	row := &DBMutex{LockID: r.lockID}
	found, err := t.queryOne(s.lookSQL, []any{r.lockID},
		&row.Holder, &row.CreationTime, &expires, &row.LeaseID, &ended, &left)
	if *a = (answer{}); err != nil || !found {
		return err
	}
	if expires.Valid {
		row.ExpiresAt = &expires.Time
	}
	*a = answer{held: row, left: time.Duration(left.Int64) * time.Millisecond, ended: ended.Bool}
	return nil
}

func (s *sqlite) renew(t target, own proof, ttl *time.Duration) (bool, error) {
	return s.writeRow(t, s.renewSQL, []any{modifier(ttl), own.lockID, own.leaseID})
}

func (s *sqlite) release(t target, r release) (bool, error) {
	query, args := s.releaseStatement(r.proof, r.minHold)
	return s.writeRow(t, query, args)
}

func (s *sqlite) releaseIn(tx target, own proof, minHold time.Duration) (found bool, transaction string, err error) {
	query, args := s.releaseStatement(own, minHold)
	found, err = tx.exec(query, args)
	return found, "", err
}

func (s *sqlite) releaseStatement(own proof, minHold time.Duration) (string, []any) {
	if minHold > 0 {
		return s.leaveSQL, []any{newLeaseID(), modifier(&minHold), own.lockID, own.leaseID}
	}
	return s.releaseSQL, own.args()
}

func (s *sqlite) guard(tx target, own proof) (bool, error) {
	return tx.exec(s.guardSQL, own.args())
}

// fate: SQLite keeps no record of transactions, and needs none for its own: no answer of a COMMIT is lost.
func (s *sqlite) fate(target, string) (fate, error) { return fateUnknown, nil }

// begin takes the write lock with the transaction's first statement: one that had read before could not write any more
// once another had written (SQLITE_BUSY_SNAPSHOT).
func (s *sqlite) begin(tx target, own proof) (found bool, err error) {
	c := newSQLiteConn(tx)
	err = c.use(func() error {
		return c.patiently(settleLimit, func(t target) (err error) {
			found, err = s.guard(t, own)
			return err
		})
	})
	return found, err
}

// renewable: the transaction keeps every writer out of the file, renewals as well as take-overs.
func (s *sqlite) renewable(target) (bool, error) { return false, nil }

// discard is settled at once, as nothing is under way when a call of SQLite has returned.
func (s *sqlite) discard(t target, own proof) (settled bool, err error) {
	_, err = s.release(t, release{proof: own})
	return true, err
}

func (s *sqlite) holder(t target, lockID string) (row *DBMutex, err error) {
	err = s.connect(t, func(c *sqliteConn) error {
		return c.patiently(settleLimit, func(t target) (err error) {
			row, err = queryHolder(t, s.holderSQL, lockID)
			return err
		})
	})
	return row, err
}

func (s *sqlite) leaseID(t target, lockID string) (leaseID string, found bool, err error) {
	err = s.connect(t, func(c *sqliteConn) error {
		return c.patiently(settleLimit, func(t target) (err error) {
			found, err = t.queryOne(s.leaseIDSQL, []any{lockID}, &leaseID)
			return err
		})
	})
	return leaseID, found, err
}

// migrate tries again where another process wrote, or made the same table or index, at the same time.
func (s *sqlite) migrate(t target) error {
	for giveUp := time.Now().Add(settleLimit); ; {
		// In a transaction, as dbresolver would look for the table in a replica.
		err := s.transaction(t, func(tx *gorm.DB) error { return tx.AutoMigrate(&DBMutex{}) })
		if err == nil || time.Now().After(giveUp) || !isBusy(err) && !strings.Contains(err.Error(), "already exists") {
			return err
		}
		if err := sleep(t.ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

func (s *sqlite) writeRow(t target, query string, args []any) (found bool, err error) {
	err = s.connect(t, func(c *sqliteConn) error {
		return c.patiently(settleLimit, func(t target) (err error) {
			found, err = t.exec(query, args)
			return err
		})
	})
	return found, err
}

// clean needs a BEGIN to find a transaction: SQLite has none within another. On a connection it costs no file access, and so
// needs no end. A pool of somebody else's making may prepare its statements, each alone.
func (s *sqlite) clean(t target) (left bool, err error) {
	if _, bound := t.pool.(*sql.Conn); bound {
		t = t.under(context.WithoutCancel(t.ctx))
		_, err = t.pool.ExecContext(t.ctx, `BEGIN; COMMIT`)
	} else if tx := t.session().Begin(); tx.Error == nil {
		tx.Rollback()
	} else if err = tx.Error; isBusy(err) || errors.Is(err, gorm.ErrInvalidTransaction) {
		return false, nil // it is not in a transaction, or there is no way to tell
	}
	if left = err != nil && isNested(err); left {
		_, err = t.pool.ExecContext(t.ctx, `ROLLBACK`)
	}
	if err != nil {
		err = &unsentError{err}
	}
	return left, err
}

// transaction runs fn in a transaction and leaves the connection outside of any: not every driver rolls back after a COMMIT
// that was locked out.
func (s *sqlite) transaction(t target, fn func(tx *gorm.DB) error) error {
	err := t.session().Transaction(fn)
	if err != nil && !isNested(err) {
		_, _ = s.clean(t)
	}
	return err
}

// sqliteConn is a connection, or a transaction, which waits for other writers in a way that ends with the context.
type sqliteConn struct {
	target
	sqlite *sqlite // of a pool of somebody else's making: each statement needs a transaction of its own
}

// connect uses the target's connection.
func (s *sqlite) connect(t target, fn func(c *sqliteConn) error) error {
	c := newSQLiteConn(t)
	if _, bound := t.pool.(*sql.Conn); !bound {
		c.sqlite = s
		return fn(c)
	}
	return c.use(func() error { return fn(c) })
}

func newSQLiteConn(t target) *sqliteConn {
	config := *t.config
	config.Logger = busyLogger{config.Logger}
	t.config = &config
	return &sqliteConn{target: t}
}

// run runs a statement outside of any transaction that somebody left open. Where a pool can begin no transactions there is
// no way to be sure.
func (c *sqliteConn) run(statement func(t target) error) error {
	if c.sqlite == nil {
		return statement(c.target)
	}
	err := c.sqlite.transaction(c.target, func(tx *gorm.DB) error { return statement(in(c.ctx, tx)) })
	if errors.Is(err, gorm.ErrInvalidTransaction) {
		return statement(c.target)
	}
	return err
}

// busyLogger is a logger that is not told of a statement which waits for another connection: that is no failure.
type busyLogger struct{ logger.Interface }

// Trace logs a statement.
func (l busyLogger) Trace(ctx context.Context, begin time.Time, statement func() (string, int64), err error) {
	if !isBusy(err) {
		l.Interface.Trace(ctx, begin, statement, err)
	}
}

// ParamsFilter is the logger's own, if it has one: it may hide the values.
func (l busyLogger) ParamsFilter(ctx context.Context, sql string, params ...any) (string, []any) {
	if filter, ok := l.Interface.(gorm.ParamsFilter); ok {
		return filter.ParamsFilter(ctx, sql, params...)
	}
	return sql, params
}

// busySlice is SQLite's own wait for other connections, busy_timeout, in milliseconds. That wait does not end with a
// context in every driver, so it is short, and patiently repeats it. It is not 0: while it lasts a COMMIT keeps new
// readers out, who would otherwise starve it where the journal is not a WAL (https://www.sqlite.org/lockingv3.html).
const busySlice = 100

// use runs fn with busySlice, and leaves the connection as it was. Its own statements touch no file, so that they need no
// end; drivers start a goroutine for one that can have an end.
func (c *sqliteConn) use(fn func() error) error {
	ctx := context.WithoutCancel(c.ctx)
	var timeout int
	rows, err := c.pool.QueryContext(ctx, `PRAGMA busy_timeout`) // QueryRow of GORM's prepared statements can panic
	if err != nil {
		return &unsentError{err}
	}
	rows.Next()
	if err := errors.Join(rows.Scan(&timeout), rows.Err(), rows.Close()); err != nil {
		return &unsentError{err}
	}
	if timeout != busySlice {
		defer func() {
			_, _ = c.pool.ExecContext(ctx, fmt.Sprintf(`PRAGMA busy_timeout = %d`, timeout))
		}()
		if _, err := c.pool.ExecContext(ctx, fmt.Sprintf(`PRAGMA busy_timeout = %d`, busySlice)); err != nil {
			return &unsentError{err}
		}
	}
	return fn()
}

// patiently repeats a statement up to limit while other connections lock it out.
func (c *sqliteConn) patiently(limit time.Duration, statement func(t target) error) error {
	giveUp := time.Now().Add(limit)
	for {
		err := c.run(statement)
		if !isBusy(err) || time.Now().After(giveUp) {
			return err
		}
		if err := sleep(c.ctx, time.Millisecond+rand.N(time.Millisecond)); err != nil {
			return &unsentError{err}
		}
	}
}

// classify: SQLite runs in this process, so no answer is lost but that of a statement whose context ended.
func (s *sqlite) classify(err error) failure {
	switch {
	case isBusy(err), isInterrupted(err), isNested(err):
		return conflicting
	case isPoolClosed(err):
		return refused
	case isUnsent(err), errors.Is(err, sql.ErrConnDone):
		return unreachable
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return unknown
	}
	return refused
}

func (s *sqlite) missing(err error) bool {
	return err != nil && strings.Contains(err.Error(), "no such table")
}

// modifier is a duration as strftime adds it, in milliseconds, rounded up, or NULL.
func modifier(d *time.Duration) any {
	if d == nil {
		return nil
	}
	ms := roundUp(*d, time.Millisecond)
	return fmt.Sprintf("+%d.%03d seconds", ms/1000, ms%1000)
}

// isInterrupted says whether a statement was undone as its context ended, where the driver does not give that context's
// error: SQLITE_INTERRUPT.
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
