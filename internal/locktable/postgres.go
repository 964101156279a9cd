package locktable

import (
	"cmp"
	"database/sql"
	"encoding/json"
	"errors"
	"net"
	"reflect"
	"strings"
	"sync/atomic"
	"time"
)

// postgres has the statements for PostgreSQL. They read clock_timestamp(), as now() stands still in a transaction. All
// functions are named with their schema, as a search path may have others of the same name.
type postgres struct {
	table                            string
	takeOverSQL, handOnSQL, renewSQL string
	guardSQL, rowSQL                 string
	tellSQL, withdrawSQL             string
	reserveSQL                       map[bool]string // by whether a crash may undo it
	releaseSQL, leaveSQL             map[ending]string
	releaseManySQL                   map[together]string
	lister                           *lister
	once                             postgresOnce
	known                            atomic.Pointer[lookedUp] // nil until inspect
}

// lookedUp is what the server says of the table.
type lookedUp struct {
	acquireSQL     string // with the sequence of its id
	acquireManySQL string // the same
	id             uint32
	bytewise       bool // lock_id is sorted by the bytes of UTF-8
}

// ending is what else the statement that ends a lease does.
type ending int

const (
	endsDurably       ending = iota // a crash does not undo it
	endsQuickly                     // a crash may undo it; so it is with those that follow
	endsNotifying                   // it tells the waiters of other processes
	endsWithMessage                 // the same, and sends a message
	endsUnmarked                    // the same, if no waiter has left its mark
	endsInTransaction               // of a caller's
)

const (
	// An acknowledged lease survives a crash even if the database commits asynchronously. Stronger settings stay.
	durable = `CASE pg_catalog.current_setting('synchronous_commit') WHEN 'off'
	THEN pg_catalog.set_config('synchronous_commit', 'on', true) END`
	now   = `pg_catalog.clock_timestamp()`
	owned = ` WHERE lock_id = $1 AND lease_id = $2`
)

func newPostgres(table string) *postgres {
	p := &postgres{
		table: table,
		// SKIP LOCKED passes a row that somebody's guard pins. The new id is a change of a key column: a guard's KEY SHARE
		// lock keeps it out, but lets renewals through. A row with this lease's own id is there if the answer to an earlier
		// try was lost.
		takeOverSQL: `WITH stale AS MATERIALIZED (
	SELECT id, CASE WHEN lease_id IN ($2, $5) THEN '' ELSE ` + leaseJSON + ` END AS lease FROM ` + table + `
	WHERE lock_id = $1 AND (expires_at <= ` + now + ` OR lease_id IN ($2, $5)) FOR UPDATE SKIP LOCKED)
UPDATE ` + table + ` AS m
SET id = DEFAULT, creation_time = ` + now + `, expires_at = ` + expires("$3") + `, holder = $4, lease_id = $2
FROM stale WHERE m.id = stale.id RETURNING m.id, stale.lease, ` + durable,

		// $6 is the next lease, if the answer to an earlier try was lost: the row may be its own then. Its token is drawn in
		// time: whoever else wins the row ends this lease first. It waits for guards, as a release does.
		handOnSQL: `UPDATE ` + table + `
SET id = DEFAULT, creation_time = ` + now + `, expires_at = ` + expires("$3") + `, holder = $4, lease_id = $2
WHERE lock_id = $1 AND lease_id IN ($5, $6) RETURNING id, ` + durable,
		renewSQL: `UPDATE ` + table + ` SET expires_at = ` + expires("$3") + owned + `
AND (expires_at IS NULL OR expires_at > ` + now + `) RETURNING ` + durable,
		guardSQL: `SELECT 1 FROM ` + table + owned + ` FOR KEY SHARE`,
		rowSQL: `SELECT id, lock_id, creation_time, expires_at, holder, lease_id, coalesce(expires_at > ` + now + `, true)
FROM ` + table + ` WHERE lock_id = $1`,
		releaseSQL: map[ending]string{},
		leaveSQL:   map[ending]string{},
	}
	// A release that a crash undoes only leaves the lease to its TTL, so it may spare itself the wait for the disk. pg_notify
	// serialises commits, which costs nothing while they are this short. They are a condition, which is true, and not in
	// RETURNING, so that no row need be sent; without the CASE the planner would evaluate it for other rows, and before the
	// others.
	const async = `pg_catalog.set_config('synchronous_commit', 'off', true) = 'off'`
	released := `pg_catalog.pg_notify('` + ReleaseChannel + `'::text, ('` + strings.ReplaceAll(table, "'", "''") +
		`'::regclass::oid::text || ' ') || lock_id::text)`
	notify := async + ` AND ` + released + ` IS NOT NULL`
	message := func(parameter string) string {
		return `pg_catalog.pg_notify('` + MessageChannel + `'::text, ` + parameter + `::text) IS NOT NULL`
	}
	only := func(condition string) string { return ` AND CASE WHEN lease_id = $2 THEN ` + condition + ` END` }
	for end, rest := range map[ending]func(parameter string) string{
		endsDurably:   func(string) string { return ` RETURNING ` + durable },
		endsQuickly:   func(string) string { return only(async) },
		endsNotifying: func(string) string { return only(notify) },
		endsWithMessage: func(parameter string) string {
			return only(notify + ` AND ` + message(parameter))
		},
		// A lock on the row leaves its transaction's number there, as xmax, also when it has ended. A take-over leaves its own.
		endsUnmarked: func(string) string { return ` AND (xmax = 0 OR xmax = xmin)` + only(notify) },
		// By its number a transaction can be asked for later, while the server is the same.
		endsInTransaction: func(string) string {
			return ` RETURNING ` + transactionSQL
		},
	} {
		p.releaseSQL[end] = `DELETE FROM ` + table + owned + rest(`$3`)
		// The new lease_id makes the row ownerless, so that a late renewal cannot revive it; the new id waits for guards.
		p.leaveSQL[end] = `UPDATE ` + table + ` SET id = DEFAULT, lease_id = '` + leftMark + `' || pg_catalog.substr(lease_id, 2),
	expires_at = creation_time + $3::bigint * interval '1 microsecond'` + owned + rest(`$4`)
	}
	// It waits for guards, as a release does. The waiter's own acquire makes the row its lease. Nothing here matches a row
	// that is the waiter's already: it may have more time by then than this would give it.
	reserve := `UPDATE ` + table + ` SET id = DEFAULT, creation_time = ` + now + `, expires_at = ` + expires("$4") + `,
	holder = $5, lease_id = $3` + owned
	p.reserveSQL = map[bool]string{
		true:  reserve + only(async+` AND `+message(`$6`)),
		false: reserve + only(message(`$6`)) + ` RETURNING ` + durable,
	}
	// The lock is the mark.
	p.tellSQL = `WITH marked AS MATERIALIZED (
	SELECT FROM ` + table + ` WHERE lock_id = $1 AND ` + async + ` FOR KEY SHARE SKIP LOCKED)
SELECT pg_catalog.count(*), pg_catalog.pg_notify('` + MessageChannel + `'::text, $2::text)::text FROM marked`
	p.withdrawSQL = `WITH ended AS (DELETE FROM ` + table + owned + only(async) + ` RETURNING lock_id)
SELECT ` + released + `::text FROM ended
UNION ALL SELECT pg_catalog.pg_notify('` + MessageChannel + `'::text, $3::text)::text`
	p.releaseManySQL = newReleaseManySQL(table, async, released)
	p.lister = p.newLister()
	p.once = newPostgresOnce(table, released)
	return p
}

// epoch is a time, or an interval, as a number of microseconds: the texts of some time zones are no RFC 3339.
func epoch(expression string) string {
	return `(extract(epoch FROM ` + expression + `) * 1000000)::bigint`
}

// expires is the end of a lease whose TTL in microseconds is a parameter; NULL for one that is NULL.
func expires(parameter string) string {
	return now + ` + ` + parameter + `::bigint * interval '1 microsecond'`
}

// leaseJSON is a row's lease, for heldBy.
var leaseJSON = `pg_catalog.json_build_object('holder', holder, 'lease', lease_id,
		'since', ` + epoch("creation_time") + `, 'expires', ` + epoch("expires_at") + `,
		'left', ` + epoch("expires_at - "+now) + `)::text`

// acquireSQL takes the mutex if it is free.
//
// If the mutex is held the statement writes nothing, waits for nobody and needs no transaction id; an upsert would
// lock the row before it looked at it. The token is drawn in RETURNING, after the row is won: the id that the INSERT
// draws for itself may be smaller than that of a lease that came before.
func (p *postgres) acquireSQL(sequence string) string {
	return `WITH other AS (
	SELECT ` + leaseJSON + ` AS lease
	FROM ` + p.table + ` WHERE lock_id = $1),
made AS (
	INSERT INTO ` + p.table + ` (lock_id, creation_time, expires_at, holder, lease_id)
	SELECT $1::varchar, ` + now + `, ` + expires("$3") + `, $4::text, $2::varchar
	WHERE NOT EXISTS (SELECT FROM other)
	ON CONFLICT (lock_id) DO NOTHING
	RETURNING pg_catalog.nextval('` + strings.ReplaceAll(sequence, "'", "''") + `'::regclass) AS token, ` + durable + `)
SELECT token, '' FROM made UNION ALL SELECT 0, lease FROM other`
}

func (p *postgres) acquire(on executor, r Request) (a Answer, err error) {
	ctx, cancel := gracefully(on.ctx)
	defer cancel()
	on = on.under(ctx)
	query := p.known.Load().acquireSQL
	var row struct { // one allocation rather than two
		token int64
		other string
	}
	takeOver := func() (a Answer, err error) {
		found, err := on.queryOne(p.takeOverSQL, r.args(microseconds(r.TTL), r.Holder, cmp.Or(r.Ticket, r.LeaseID)),
			&row.token, &row.other, new(sql.NullString))
		if err != nil || !found {
			return Answer{}, err
		}
		if row.other != "" {
			a, _ = heldBy(r.LockID, row.other)
		}
		return Answer{Token: row.token, Past: r.past(a.Held)}, nil
	}
	if r.Kept {
		if a, err := takeOver(); err != nil || a.Token != 0 {
			return a, err
		}
	}
	for range maxLooks {
		found, err := on.queryOne(query, r.args(microseconds(r.TTL), r.Holder), &row.token, &row.other)
		switch {
		case err != nil:
			return Answer{}, err
		case row.token != 0:
			return Answer{Token: row.token}, nil
		case !found:
			continue
		}
		if a, err = heldBy(r.LockID, row.other); err != nil {
			return Answer{}, err
		}
		a.Ended = a.Held.ExpiresAt != nil && a.Left <= 0
		if !r.owns(a) {
			return a, nil
		}
		if taken, err := takeOver(); err != nil || taken.Token != 0 {
			return taken, err
		}
	}
	return a, nil
}

// heldBy reads the lease that an acquire found.
func heldBy(lockID, found string) (a Answer, err error) {
	var row struct {
		Holder, Lease string
		Since         int64
		Expires, Left *int64 // NULL without a TTL
	}
	if err := json.Unmarshal([]byte(found), &row); err != nil {
		return Answer{}, err
	}
	held := &Row{LockID: lockID, CreationTime: time.UnixMicro(row.Since), Holder: row.Holder, LeaseID: row.Lease}
	a.Held = held
	if row.Expires != nil && row.Left != nil {
		expires := time.UnixMicro(*row.Expires)
		held.ExpiresAt, a.Left = &expires, time.Duration(*row.Left)*time.Microsecond
	}
	return a, nil
}

func (p *postgres) renew(on executor, k Key, ttl *time.Duration) (bool, error) {
	return on.exec(p.renewSQL, k.args(microseconds(ttl)))
}

func (p *postgres) release(on executor, r Release) (bool, error) {
	switch {
	case r.Notify && r.Message != "":
		return p.end(on, r, endsWithMessage)
	case r.Notify:
		return p.end(on, r, endsNotifying)
	case r.Async:
		return p.end(on, r, endsQuickly)
	}
	return p.end(on, r, endsDurably)
}

func (p *postgres) releaseUnmarked(on executor, r Release) (bool, error) {
	return p.end(on, r, endsUnmarked)
}

func (p *postgres) end(on executor, r Release, how ending) (bool, error) {
	query, args := p.endSQL(r.Key, r.MinHold, how)
	if how == endsWithMessage {
		args = append(args, r.Message)
	}
	return on.exec(query, args)
}

func (p *postgres) handOn(on executor, k Key, next Request, again bool) (token int64, err error) {
	other := k.LeaseID
	if again {
		other = next.LeaseID
	}
	_, err = on.queryOne(p.handOnSQL, next.args(microseconds(next.TTL), next.Holder, k.LeaseID, other),
		&token, new(sql.NullString))
	return token, err
}

func (p *postgres) reserve(on executor, k Key, to Reservation, async bool) (found bool, err error) {
	return on.exec(p.reserveSQL[async], k.args(to.Ticket, to.For.Microseconds(), to.Holder, to.Message))
}

func (p *postgres) tell(on executor, lockID, message string) error {
	_, err := on.exec(p.tellSQL, []any{lockID, message})
	return err
}

func (p *postgres) withdraw(on executor, k Key, message string) error {
	_, err := on.exec(p.withdrawSQL, k.args(message))
	return err
}

func (p *postgres) id() uint32 {
	if known := p.known.Load(); known != nil {
		return known.id
	}
	return 0
}

func (p *postgres) releaseIn(tx executor, k Key, minHold time.Duration) (found bool, transaction string, err error) {
	query, args := p.endSQL(k, minHold, endsInTransaction)
	found, err = tx.queryOne(query, args, &transaction)
	return found, transaction, err
}

func (p *postgres) endSQL(k Key, minHold time.Duration, end ending) (string, []any) {
	if minHold > 0 {
		return p.leaveSQL[end], k.args(microseconds(&minHold))
	}
	return p.releaseSQL[end], k.args()
}

func (p *postgres) guard(tx executor, k Key) (bool, error) {
	var one int
	return tx.queryOne(p.guardSQL, k.args(), &one)
}

// serverSQL tells one start of a server from another, and transactionSQL one transaction from another.
var (
	serverSQL      = epoch("pg_catalog.pg_postmaster_start_time()")
	transactionSQL = `pg_catalog.pg_current_xact_id()::text || '@' || ` + serverSQL + `::text`
)

// fate asks for the outcome of a transaction, which survives a crash and is the same on a promoted standby.
// https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
//
// But a number whose transaction the crash undid without a trace is given out again. After a crash the lease's row, which
// the transaction was to remove, shows that it did not commit.
func (p *postgres) fate(on executor, k Key, transaction string) (Fate, error) {
	transaction, server, _ := strings.Cut(transaction, "@")
	var undone bool
	if _, err := on.queryOne(`SELECT `+serverSQL+`::text <> $3::text AND EXISTS (SELECT FROM `+p.table+owned+`)`,
		k.args(server), &undone); err != nil {
		return Unknown, err
	}
	if undone {
		return Aborted, nil
	}
	var status sql.NullString
	if _, err := on.queryOne(`SELECT pg_catalog.pg_xact_status($1::text::xid8)`, []any{transaction}, &status); err != nil {
		return Unknown, err
	}
	switch status.String {
	case "committed":
		return Committed, nil
	case "aborted":
		return Aborted, nil
	case "in progress":
		return Unknown, errInProgress
	}
	return Unknown, nil
}

// errInProgress makes settle ask again.
var errInProgress = errors.New("the transaction is still in progress")

// begin pins nothing: a holder that hangs in its transaction must not outlast its TTL. Above READ COMMITTED the row's
// release fails if a renewal came after the transaction's snapshot.
func (p *postgres) begin(tx executor, k Key, w Work) (found, renewable bool, err error) {
	if w.Record {
		if _, err := tx.queryOne(markSQL, []any{k.LeaseID}, new(string)); err != nil {
			return false, false, err
		}
	}
	if !w.Renew {
		return true, false, nil
	}
	var level string
	_, err = tx.queryOne(`SELECT pg_catalog.current_setting('transaction_isolation')`, nil, &level)
	return true, level == "read committed" || level == "read uncommitted", err
}

func (p *postgres) row(on executor, lockID string) (_ *Row, live bool, err error) {
	row := &Row{}
	var expires sql.NullTime
	found, err := on.queryOne(p.rowSQL, []any{lockID},
		&row.ID, &row.LockID, &row.CreationTime, &expires, &row.Holder, &row.LeaseID, &live)
	if err != nil || !found {
		return nil, false, err
	}
	if expires.Valid {
		row.ExpiresAt = &expires.Time
	}
	return row, live, nil
}

// token: only the id of a row that was taken over is its token.
func (p *postgres) token(*Row) int64 { return 0 }

func (p *postgres) rename(on executor, k Key, leaseID string) (bool, error) {
	return on.exec(`UPDATE `+p.table+` SET lease_id = $3`+owned+` RETURNING `+durable, k.args(leaseID))
}

// clean looks at the connections of a driver that may keep a transaction, which costs a round trip. pgx gives up a
// connection that comes back in one.
func (p *postgres) clean(on executor) (left bool, restore func(), err error) {
	restore = func() {}
	conn, bound := on.pool.(*sql.Conn)
	if !bound {
		return false, restore, nil
	}
	var careful bool
	err = conn.Raw(func(c any) error {
		of := reflect.TypeOf(c)
		careful = of.Kind() == reflect.Pointer && of.Elem().PkgPath() == "github.com/jackc/pgx/v5/stdlib"
		return nil
	})
	if err != nil || careful {
		return false, restore, err
	}
	// Both are the time at which this statement came, unless the transaction began with an earlier one. An error tells so
	// as drivers run Exec without arguments, but not Query, in the one message that makes it sure.
	_, err = conn.ExecContext(on.ctx, `SELECT 1 / (pg_catalog.now() = pg_catalog.statement_timestamp())::int`)
	if code, _ := sqlState(err); code != "22012" && code != "25P02" { // division by zero, the transaction has failed
		return false, restore, err
	}
	_, err = conn.ExecContext(on.ctx, `ROLLBACK`)
	return true, restore, err
}

// sqlState is SQLSTATE, through the method that the errors of pgx have, so that no driver is imported.
func sqlState(err error) (string, bool) {
	var state interface{ SQLState() string }
	if !errors.As(err, &state) {
		return "", false
	}
	return state.SQLState(), true
}

// classify: https://www.postgresql.org/docs/current/errcodes-appendix.html
func (p *postgres) classify(err error) failure {
	if code, ok := sqlState(err); ok {
		switch {
		case code == "42P01":
			return noTable
		case code == "40001", code == "40P01": // serialization failure, deadlock
			return conflicting
		case code == "0A000", code == "23505": // a plan that is out of date; a sequence that lags behind the table
			return outdated
		case code == "57014", code == "55P03": // statement_timeout, lock_timeout
			return hindered
		case code == "25006", strings.HasPrefix(code, "53") && code != "53300", strings.HasPrefix(code, "58"):
			return hindered // a server that is read-only, out of memory or disk, or in trouble
		case code == "53300", code == "57P03": // too many connections, starting up or shutting down
			return unreachable
		case strings.HasPrefix(code, "08"), strings.HasPrefix(code, "57P"), code == "40003": // the connection was cut
			return unknown
		}
		return refused
	}
	var dial *net.OpError
	switch {
	case isPoolClosed(err), errors.Is(err, sql.ErrTxDone):
		return refused
	case errors.As(err, &dial) && dial.Op == "dial", errors.As(err, new(*net.DNSError)):
		return unreachable
	case errors.Is(err, sql.ErrConnDone): // a bound connection; the next try is on the pool
		return unreachable
	}
	return unknown // driver.ErrBadConn among them: not every driver gives it only for what it has not sent
}
