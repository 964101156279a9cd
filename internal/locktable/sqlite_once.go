package locktable

import (
	"database/sql"
	"fmt"
	"strings"
)

// sqliteOnce has the statements on records.
type sqliteOnce struct {
	has                                          bool // the table has them
	completeSQL, readSQL, forgetSQL, old, remove string
}

func newSQLiteOnce(table, times string) sqliteOnce {
	const (
		done  = `lease_id = '` + DoneID + `'`
		ended = `expires_at < ` + sqliteNow + ` AND (` + done + ` OR expires_at < strftime(` + sqliteForm + `, 'now', '-1 hour'))`
	)
	return sqliteOnce{
		completeSQL: `UPDATE ` + table + ` SET lease_id = '` + DoneID + `',
	expires_at = CASE WHEN ` + done + ` THEN expires_at ELSE strftime(` + sqliteForm + `, 'now', ?) END, result = ?, token = ?
WHERE lock_id = ? AND (lease_id = ? OR ` + done + ` AND token = ?)`,
		readSQL: `SELECT id, lock_id, ` + times + `, holder, lease_id, token, CAST(result AS text) FROM ` + table + `
WHERE lock_id = ? AND ` + done + ` AND expires_at >= ` + sqliteNow,
		forgetSQL: `DELETE FROM ` + table + ` WHERE lock_id = ? AND ` + done + ` AND token = ?`,
		old:       fmt.Sprintf(`SELECT id FROM %s WHERE %s ORDER BY expires_at LIMIT %d`, table, ended, pruneRecords),
		remove:    `DELETE FROM ` + table + ` WHERE ` + ended + ` AND id IN `, // and the ids
	}
}

func (s *sqlite) keepRecords() {
	s.once.has = true
	s.lister.row = rowOfRecord
}

func (s *sqlite) complete(on executor, k Key, r Record, _ bool) (bool, error) {
	return s.writeRow(on, s.once.completeSQL, s.completeArgs(k, r))
}

func (s *sqlite) completeIn(tx executor, k Key, r Record) (found bool, transaction string, err error) {
	found, err = tx.exec(s.once.completeSQL, s.completeArgs(k, r))
	return found, "", err
}

func (s *sqlite) completeArgs(k Key, r Record) []any {
	return []any{modifier(&r.Keep), r.result(), r.Token, k.LockID, k.LeaseID, r.Token}
}

func (s *sqlite) record(on executor, lockID string) (row *Row, result []byte, err error) {
	err = s.connect(on, func(c *sqliteConn) error {
		return c.patiently(Limit, func(on executor) (err error) {
			row, result = &Row{}, nil
			var since string
			var expires sql.NullString
			found, err := on.queryOne(s.once.readSQL, []any{lockID},
				&row.ID, &row.LockID, &since, &expires, &row.Holder, &row.LeaseID, &row.Token, &result)
			if err != nil || !found {
				row = nil
				return err
			}
			return row.setTimes(since, expires)
		})
	})
	return row, result, err
}

func (s *sqlite) forget(on executor, record *Row) error {
	_, err := s.writeRow(on, s.once.forgetSQL, []any{record.LockID, record.Token})
	return err
}

// pruneRecords looks first, as prune does. It has no patience with other writers.
func (s *sqlite) pruneRecords(on executor) error {
	return s.connect(on, func(c *sqliteConn) error {
		return c.run(func(on executor) error {
			var ids []string
			err := on.queryAll(s.once.old, nil, func(row *sql.Rows) error {
				var id int64
				err := row.Scan(&id)
				ids = append(ids, fmt.Sprint(id))
				return err
			})
			if err == nil && len(ids) > 0 {
				_, err = on.exec(s.once.remove+`(`+strings.Join(ids, ",")+`)`, nil)
			}
			return err
		})
	})
}
