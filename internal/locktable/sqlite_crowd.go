package locktable

import (
	"database/sql"
	"strings"
	"time"
)

// sqliteCrowdWait is for how long a statement for many is locked out before its members try by themselves: those that are
// refused need not wait for a writer.
const sqliteCrowdWait = busySlice * time.Millisecond

// sqliteCrowd has the statements for many, which a list of their values follows, and then their end. SQLite may have been
// built without JSON.
type sqliteCrowd struct{ lookSQL, acquireSQL, releaseSQL, releaseEnd string }

const sqliteAcquireManyEnd = `) WHERE true ON CONFLICT DO NOTHING RETURNING id, lease_id`

func newSQLiteCrowd(table, columns string) sqliteCrowd {
	return sqliteCrowd{
		lookSQL: `SELECT ` + columns + `, lock_id FROM ` + table + ` WHERE lock_id IN (`,
		// What has taken the place of a row meanwhile is left to the statement for one, as what has run out is.
		acquireSQL: `INSERT INTO ` + table + ` (lock_id, creation_time, expires_at, holder, lease_id)
SELECT column1, ` + sqliteNow + `, strftime(` + sqliteForm + `, 'now', column2), column3, column4 FROM (VALUES `,
		// The join finds each row by its lock_id; a pair that is in a list would be looked for in all rows.
		releaseSQL: `DELETE FROM ` + table + ` WHERE id IN (
	SELECT m.id FROM (VALUES `,
		releaseEnd: `) AS q CROSS JOIN ` + table + ` AS m ON m.lock_id = column1 AND m.lease_id = column2)
RETURNING lease_id`,
	}
}

// list is so many times the same text, with commas between.
func list(n int, text string) string { return strings.Repeat(text+",", n-1) + text }

// alone is small, as writers who are alone wait for each other by sleeping.
func (s *sqlite) alone() int { return 4 }

// acquireMany looks without the write lock, as acquire does, and then takes what is free.
func (s *sqlite) acquireMany(on executor, requests []Request) (answers []Answer, err error) {
	err = s.connect(on, func(c *sqliteConn) error {
		err := c.patiently(sqliteCrowdWait, func(on executor) (err error) {
			answers, err = s.lookForMany(on, requests)
			return err
		})
		if err != nil {
			return err
		}
		var free []any
		at := map[string]int{}
		for i, r := range requests {
			switch a := answers[i]; {
			case a.Held == nil:
				at[r.LeaseID] = i
				free = append(free, r.LockID, modifier(r.TTL), r.Holder, r.LeaseID)
			case r.owns(a):
				answers[i] = Answer{}
			}
		}
		if len(at) == 0 {
			return nil
		}
		query := s.crowd.acquireSQL + list(len(at), `(?,?,?,?)`) + sqliteAcquireManyEnd
		return c.patiently(sqliteCrowdWait, func(on executor) error {
			for _, i := range at { // as acquire says, an answer may have been undone
				answers[i] = Answer{}
			}
			return on.queryAll(query, free, func(rows *sql.Rows) error {
				var token int64
				var lease string
				err := rows.Scan(&token, &lease)
				if err == nil {
					answers[at[lease]] = Answer{Token: token}
				}
				return err
			})
		})
	})
	return answers, err
}

// lookForMany is look for many.
func (s *sqlite) lookForMany(on executor, requests []Request) ([]Answer, error) {
	ids := make([]any, len(requests))
	at := make(map[string]int, len(requests))
	for i, r := range requests {
		ids[i], at[r.LockID] = r.LockID, i
	}
	answers := make([]Answer, len(requests))
	err := on.queryAll(s.crowd.lookSQL+list(len(ids), `?`)+`)`, ids, func(rows *sql.Rows) error {
		var l sqliteLooked
		row := &Row{}
		if err := rows.Scan(append(l.dest(row), &row.LockID)...); err != nil {
			return err
		}
		a, err := l.answer(row)
		answers[at[row.LockID]] = a
		return err
	})
	return answers, err
}

func (s *sqlite) releaseMany(on executor, keys []Key, _ together) (found []bool, err error) {
	args := make([]any, 0, 2*len(keys))
	at := make(map[string]int, len(keys))
	for i, k := range keys {
		args, at[k.LeaseID] = append(args, k.boxed[:]...), i
	}
	query := s.crowd.releaseSQL + list(len(keys), `(?,?)`) + s.crowd.releaseEnd
	err = s.connect(on, func(c *sqliteConn) error {
		return c.patiently(sqliteCrowdWait, func(on executor) error {
			found = make([]bool, len(keys))
			return on.queryAll(query, args, func(rows *sql.Rows) error {
				var lease string
				err := rows.Scan(&lease)
				if err == nil {
					found[at[lease]] = true
				}
				return err
			})
		})
	})
	return found, err
}
