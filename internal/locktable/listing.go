package locktable

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// IsResting says whether a lease's id is of a row that MinHold left behind.
func IsResting(leaseID string) bool { return strings.HasPrefix(leaseID, leftMark) }

// Listed is a row as it was in a moment of the database's clock.
type Listed struct {
	Row
	Now  time.Time
	Left time.Duration // > 0: the lease is live; 0 also for one that never expires
}

// Stats are figures of the whole table.
type Stats struct {
	Now                          time.Time
	Live, Expired, WithoutExpiry int64
	Oldest                       *Listed // of those that are live
}

// Query says which rows to list. Texts are valid.
type Query struct {
	LockID         string   // the only one; "" = any
	LockIDs        []string // the only ones; nil = any
	Which          Which
	Prefix, Holder string
	Order          Order
	After          *Row // the row before the first; nil = from the beginning. By lock_id no more of it is needed.
	Limit          int
}

// Which says in which state rows are listed.
type Which int

// The states of rows.
const (
	Live Which = iota
	Expired
	LiveAndExpired
)

// Order is that of rows.
type Order int

// The orders of rows. The last has what never expires at its end.
const (
	ByLockID Order = iota
	ByCreation
	ByExpiry
)

// lister builds the statements that list. Times come as numbers of microseconds.
type lister struct {
	table, with string // with is what the statement begins with
	now         string // the clock, of which a statement has one reading
	micros      func(expression string) string
	row         string                              // lock_id, holder, lease_id and token, after the id and the times
	is          map[Which]string                    // the conditions
	holder      string                              // the condition of a name that contains a parameter
	key         func(text string) any               // how a text is sent
	begins      func(prefix string) (string, []any) // the condition of a lock_id, and its arguments
	moment      string                              // a time from a parameter
	at          func(time.Time) any                 // the parameter
	lasts       time.Duration                       // how long a lease is live beyond its expires_at
	numbered    bool                                // parameters are $1, $2, ... rather than ?
}

// columns are what read scans.
func (l *lister) columns() string {
	return l.micros(l.now) + ` AS moment, id, ` + l.micros(`creation_time`) + ` AS began, ` +
		l.micros(`expires_at`) + ` AS ends, ` + l.row
}

var orders = map[Order]string{
	ByLockID:   `lock_id`,
	ByCreation: `creation_time, lock_id`,
	ByExpiry:   `expires_at IS NULL, expires_at, lock_id`,
}

// page is the statement for a page. The order and the limit are a part of its text, so that a database can plan with them.
func (l *lister) page(q Query) (query string, args []any) {
	where := []string{l.is[q.Which]}
	add := func(condition string, more ...any) {
		where, args = append(where, condition), append(args, more...)
	}
	if q.LockID != "" {
		add(`lock_id = ?`, l.key(q.LockID))
	}
	if len(q.LockIDs) > 0 {
		add(`lock_id IN (?` + strings.Repeat(`, ?`, len(q.LockIDs)-1) + `)`)
		for _, id := range q.LockIDs {
			args = append(args, l.key(id))
		}
	}
	if q.Prefix != "" {
		condition, more := l.begins(q.Prefix)
		add(condition, more...)
	}
	if q.Holder != "" {
		add(l.holder, l.key(q.Holder))
	}
	if after := q.After; after != nil {
		id := l.key(after.LockID)
		switch {
		case q.Order == ByCreation:
			add(`(creation_time, lock_id) > (`+l.moment+`, ?)`, l.at(after.CreationTime), id)
		case q.Order == ByExpiry && after.ExpiresAt != nil:
			add(`(expires_at IS NULL OR (expires_at, lock_id) > (`+l.moment+`, ?))`, l.at(*after.ExpiresAt), id)
		case q.Order == ByExpiry:
			add(`expires_at IS NULL AND lock_id > ?`, id)
		default:
			add(`lock_id > ?`, id)
		}
	}
	conditions := strings.Join(where, ` AND `)
	if l.numbered {
		conditions = numbered(conditions)
	}
	return l.with + `SELECT ` + l.columns() + ` FROM ` + l.table + ` WHERE ` + conditions +
		` ORDER BY ` + orders[q.Order] + fmt.Sprintf(` LIMIT %d`, q.Limit), args
}

// stats is the statement for Stats: the figures, and the oldest row if there is one.
func (l *lister) stats() string {
	count := func(condition string) string {
		return `coalesce(sum(CASE WHEN ` + condition + ` THEN 1 ELSE 0 END), 0)`
	}
	return l.with + `SELECT * FROM (SELECT ` + l.micros(l.now) + ` AS clock, ` + count(l.is[Live]) + ` AS live, ` +
		count(l.is[Expired]) + ` AS expired, ` + count(l.is[Live]+` AND expires_at IS NULL`) + ` AS forever
FROM ` + l.table + `) AS figures LEFT JOIN (SELECT ` + l.columns() + ` FROM ` + l.table + ` WHERE ` + l.is[Live] + `
ORDER BY ` + orders[ByCreation] + ` LIMIT 1) AS oldest ON 1 = 1`
}

// listedColumns are one row of the columns, which are all NULL if there is none.
type listedColumns struct {
	at, id, since, until, token sql.NullInt64
	lockID, holder, leaseID     sql.NullString
}

func (c *listedColumns) dest() []any {
	return []any{&c.at, &c.id, &c.since, &c.until, &c.lockID, &c.holder, &c.leaseID, &c.token}
}

func (l *lister) read(c listedColumns) (r Listed) {
	r.ID, r.LockID, r.Holder, r.LeaseID, r.Token = c.id.Int64, c.lockID.String, c.holder.String, c.leaseID.String, c.token.Int64
	r.setMicroseconds(c.since.Int64, c.until)
	r.Now = time.UnixMicro(c.at.Int64).UTC()
	if r.ExpiresAt != nil {
		r.Left = r.ExpiresAt.Sub(r.Now) + l.lasts
	}
	return r
}

func (l *lister) list(on executor, q Query) (rows []Listed, err error) {
	query, args := l.page(q)
	err = on.queryAll(query, args, func(r *sql.Rows) error {
		var c listedColumns
		err := r.Scan(c.dest()...)
		rows = append(rows, l.read(c))
		return err
	})
	return rows, err
}

func (l *lister) count(on executor) (s Stats, err error) {
	var clock int64
	var c listedColumns
	_, err = on.queryOne(l.stats(), nil, append([]any{&clock, &s.Live, &s.Expired, &s.WithoutExpiry}, c.dest()...)...)
	s.Now = time.UnixMicro(clock).UTC()
	if c.id.Valid {
		oldest := l.read(c)
		s.Oldest = &oldest
	}
	return s, err
}

// numbered gives parameters numbers.
func numbered(conditions string) string {
	var s strings.Builder
	for i, part := range strings.Split(conditions, "?") {
		if i > 0 {
			s.WriteString("$" + strconv.Itoa(i))
		}
		s.WriteString(part)
	}
	return s.String()
}

// text is a lister.key.
func text(s string) any { return s }

// afterPrefix is the least text that is greater, by bytes of UTF-8, than all that begin with a prefix; "" = there is none.
func afterPrefix(prefix string) string {
	for prefix != "" {
		last, size := utf8.DecodeLastRuneInString(prefix)
		prefix = prefix[:len(prefix)-size]
		switch last {
		case utf8.MaxRune:
		case 0xD7FF: // the surrogates follow
			return prefix + "\uE000"
		default:
			return prefix + string(last+1)
		}
	}
	return ""
}

// List lists rows that are live or have run out. It waits for nobody.
func (t Table) List(ctx context.Context, q Query) (rows []Listed, err error) {
	_, err = t.settle(ctx, time.Time{}, func(on executor) (err error) {
		if err := t.look(on); err != nil {
			return err
		}
		rows, err = t.list(on, q)
		return err
	})
	return rows, err
}

// Stats counts the rows.
func (t Table) Stats(ctx context.Context) (s Stats, err error) {
	_, err = t.settle(ctx, time.Time{}, func(on executor) (err error) {
		if err := t.look(on); err != nil {
			return err
		}
		s, err = t.count(on)
		return err
	})
	return s, err
}

// pruneRows is how many rows one statement of Prune removes at the most.
const pruneRows = 500

// Prune removes rows that ran out, and rows of free mutexes, in batches. A batch without an answer may have removed rows
// that it does not count.
func (t Table) Prune(ctx context.Context) (removed int64, err error) {
	return t.pruneAll(ctx, conflicts)
}

// PruneQuietly is Prune of a table that may be missing: GORM logs no error.
func (t Table) PruneQuietly(ctx context.Context) (removed int64, err error) {
	return t.pruneAll(ctx, failures)
}

func (t Table) pruneAll(ctx context.Context, h hush) (removed int64, err error) {
	for at := (place{}); !at.end; {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		var next place
		var some int64
		_, err := t.settle(ctx, time.Time{}, func(on executor) (err error) {
			on = on.hushing(h)
			if err := t.look(on); err != nil {
				return err
			}
			next, some, err = t.prune(on, at)
			return err
		})
		if removed += some; err != nil {
			return removed, err
		}
		at = next
	}
	return removed, nil
}

// place is where a batch of Prune begins.
type place struct {
	lockID string // after this one
	id     int64  // after this one
	end    bool   // there is no more
}
