package locktable

import (
	"database/sql"
	"fmt"
	"time"
)

func newMySQLLister(table string) *lister {
	const (
		now  = `UTC_TIMESTAMP(6)` // that of the statement's beginning
		used = `lease_id <> ''`
	)
	bytes := func(text string) any { return []byte(text) }
	return &lister{
		table: table,
		now:   now,
		// A driver may scan times as its DSN says.
		micros: func(expression string) string { return microsecondsOf + expression + `)` },
		row:    `lock_id, CAST(holder AS BINARY) AS name, lease_id, GREATEST(token, id << 24) AS fence`,
		is: map[Which]string{
			Live:           used + ` AND (expires_at IS NULL OR expires_at > ` + now + `)`,
			Expired:        used + ` AND expires_at <= ` + now,
			LiveAndExpired: used,
		},
		holder: `LOCATE(?, CAST(holder AS BINARY)) > 0`,
		key:    bytes,
		// lock_id is compared byte for byte, so that this is exact.
		begins: func(prefix string) (string, []any) {
			if end := afterPrefix(prefix); end != "" {
				return `lock_id >= ? AND lock_id < ?`, []any{bytes(prefix), bytes(end)}
			}
			return `lock_id >= ?`, []any{bytes(prefix)}
		},
		moment: `TIMESTAMP'1970-01-01 00:00:00' + INTERVAL ? MICROSECOND`,
		at:     func(t time.Time) any { return t.UnixMicro() },
	}
}

func (m *mysql) list(on executor, q Query) (rows []Listed, err error) {
	err = m.outside(on, func() (err error) {
		rows, err = m.lister.list(on, q)
		return err
	})
	return rows, err
}

func (m *mysql) count(on executor) (s Stats, err error) {
	err = m.outside(on, func() (err error) {
		s, err = m.lister.count(on)
		return err
	})
	return s, err
}

// mysqlPrunable is the condition of a row that Prune removes: expires_at says of a free one since when it is. A row that
// may keep a transaction's record for fate stays for an hour: a lease's id as the holder, or what MinHold has left. A token
// may not fall: the next row of the mutex has a greater id.
var mysqlPrunable = fmt.Sprintf(`expires_at <= UTC_TIMESTAMP(6) AND token >> 24 <= id
AND NOT ((lease_id = '' AND CHAR_LENGTH(holder) = %d OR lease_id LIKE '`+leftMark+`%%')
	AND expires_at > UTC_TIMESTAMP(6) - INTERVAL 1 HOUR)`, LeaseIDLength)

func (m *mysql) prune(on executor, after place) (next place, removed int64, err error) {
	err = m.outside(on, func() error {
		var ids []string
		look := fmt.Sprintf(`SELECT id FROM %s WHERE id > ? AND %s ORDER BY id LIMIT %d`, m.table, mysqlPrunable, pruneRows)
		err := on.queryAll(look, []any{after.id}, func(row *sql.Rows) error {
			err := row.Scan(&next.id)
			ids = append(ids, fmt.Sprint(next.id))
			return err
		})
		if next.end = len(ids) < pruneRows; err != nil || len(ids) == 0 {
			return err
		}
		removed, err = on.execCount(m.removeSQL(ids, mysqlPrunable), nil)
		return err
	})
	return next, removed, err
}
