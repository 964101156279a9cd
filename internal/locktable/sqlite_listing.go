package locktable

import (
	"database/sql"
	"fmt"
	"strings"
	"time"
)

func newSQLiteLister(table string) *lister {
	const now = `(SELECT now FROM clock)`
	return &lister{
		table: table,
		// 'now' stands still only while a statement makes one row.
		with: `WITH clock AS MATERIALIZED (SELECT ` + sqliteNow + ` AS now)
`,
		now: now,
		micros: func(expression string) string {
			return `CAST(round((julianday(` + expression + `) - 2440587.5) * 86400000) AS integer) * 1000`
		},
		row: `lock_id, holder, lease_id, 0 AS fence`,
		is: map[Which]string{
			Live:           `(expires_at IS NULL OR expires_at >= ` + now + `)`,
			Expired:        `expires_at < ` + now,
			LiveAndExpired: `1 = 1`,
		},
		holder: `instr(holder, ?) > 0`,
		key:    text,
		// A file whose texts are UTF-16 is in another order, but what has the prefix comes after it in any. A blob is greater
		// than all texts.
		begins: func(prefix string) (string, []any) {
			condition, args := `lock_id >= ? AND substr(lock_id, 1, length(?)) = ?`, []any{prefix, prefix, prefix}
			if end := afterPrefix(prefix); end != "" {
				condition += ` AND lock_id < CASE (SELECT encoding FROM pragma_encoding) WHEN 'UTF-8' THEN ? ELSE x'FF' END`
				args = append(args, end)
			}
			return condition, args
		},
		moment: `?`,
		at:     func(t time.Time) any { return t.UTC().Format("2006-01-02 15:04:05.000") },
		lasts:  time.Millisecond,
	}
}

func (s *sqlite) list(on executor, q Query) (rows []Listed, err error) {
	err = s.connect(on, func(c *sqliteConn) error {
		return c.patiently(Limit, func(on executor) (err error) {
			rows, err = s.lister.list(on, q)
			return err
		})
	})
	return rows, err
}

func (s *sqlite) count(on executor) (stats Stats, err error) {
	err = s.connect(on, func(c *sqliteConn) error {
		return c.patiently(Limit, func(on executor) (err error) {
			stats, err = s.lister.count(on)
			return err
		})
	})
	return stats, err
}

// prune looks first, as a DELETE takes the file's write lock even if it removes nothing.
func (s *sqlite) prune(on executor, after place) (next place, removed int64, err error) {
	const old = `expires_at < ` + sqliteNow
	err = s.connect(on, func(c *sqliteConn) error {
		var ids []string
		if err := c.patiently(Limit, func(on executor) error {
			ids, next = nil, place{}
			return on.queryAll(fmt.Sprintf(`SELECT id FROM %s WHERE id > ? AND %s ORDER BY id LIMIT %d`, s.table, old, pruneRows),
				[]any{after.id}, func(row *sql.Rows) error {
					err := row.Scan(&next.id)
					ids = append(ids, fmt.Sprint(next.id))
					return err
				})
		}); err != nil {
			return err
		}
		if next.end = len(ids) < pruneRows; len(ids) == 0 {
			return nil
		}
		return c.patiently(Limit, func(on executor) (err error) {
			removed, err = on.execCount(fmt.Sprintf(`DELETE FROM %s WHERE id IN (%s) AND %s`,
				s.table, strings.Join(ids, ","), old), nil)
			return err
		})
	})
	return next, removed, err
}
