package locktable

import (
	"database/sql"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"
)

// mysqlOnce has the statements on records.
type mysqlOnce struct {
	has                           bool // the table has them
	ownSQL, readSQL, fateSQL, old string
}

const mysqlDone = `lease_id = '` + DoneID + `'`

func newMySQLOnce(table, times string) mysqlOnce {
	return mysqlOnce{
		ownSQL: `SELECT COUNT(*) FROM ` + table + ` WHERE id = ? AND ` + mysqlDone + ` AND token = ?`,
		readSQL: `SELECT id, lock_id, ` + times + `, CAST(holder AS BINARY), lease_id, token, CAST(result AS BINARY)
FROM ` + table + ` WHERE lock_id = ? AND ` + mysqlDone + ` AND expires_at > UTC_TIMESTAMP(6)`,
		fateSQL: `SELECT lease_id = ?, ` + mysqlDone + ` AND token = ? FROM ` + table + ` WHERE id = ? FOR UPDATE`,
		old:     fmt.Sprintf(`SELECT id FROM %s WHERE %s ORDER BY expires_at LIMIT %d`, table, mysqlOldRecord, pruneRecords),
	}
}

// mysqlOldRecord is the condition of a row that pruneRecords removes. Free ones are among them. A token may not fall: the
// next row of the id has a greater id.
const mysqlOldRecord = `expires_at <= UTC_TIMESTAMP(6) AND token >> 24 <= id
AND (` + mysqlDone + ` OR expires_at <= UTC_TIMESTAMP(6) - INTERVAL 1 HOUR)`

func (m *mysql) keepRecords() { m.once.has = true }

// complete looks for its own record if the row is not the lease's any more.
func (m *mysql) complete(on executor, k Key, r Record, _ bool) (found bool, err error) {
	if found, err = m.change(on, completes, completeArgs(r), k, false); err != nil || found {
		return found, err
	}
	err = m.outside(on, func() (err error) {
		found, err = m.isRecorded(on, k.RowID, r.Token)
		return err
	})
	return found, err
}

func (m *mysql) completeIn(tx executor, k Key, r Record) (found bool, transaction string, err error) {
	found, err = m.changeOnce(tx, completes, completeArgs(r), k, false)
	return found, recordMark + strconv.FormatInt(r.Token, 10), err
}

func completeArgs(r Record) []any {
	var result any
	if r.Result != nil {
		result = hex.EncodeToString(r.Result)
	}
	return []any{microseconds(&r.Keep), result, r.Token}
}

// recordMark begins the name of a transaction that was to leave a record. The record's token follows.
const recordMark = "record "

// recordFate is fate for such a transaction.
func (m *mysql) recordFate(on executor, k Key, token string) (ours, committed, found bool, err error) {
	found, err = on.queryOne(m.once.fateSQL, []any{k.LeaseID, token, k.RowID}, &ours, &committed)
	return ours, committed, found, err
}

func (m *mysql) record(on executor, lockID string) (row *Row, result []byte, err error) {
	err = m.outside(on, func() error {
		row, result = &Row{}, nil
		var since int64
		var expires sql.NullInt64
		found, err := on.queryOne(m.once.readSQL, []any{[]byte(lockID)},
			&row.ID, &row.LockID, &since, &expires, &row.Holder, &row.LeaseID, &row.Token, &result)
		if err != nil || !found {
			row = nil
			return err
		}
		row.setMicroseconds(since, expires)
		return nil
	})
	return row, result, err
}

func (m *mysql) forget(on executor, record *Row) error {
	return m.outside(on, func() error {
		for giveUp := time.Now().Add(Limit); ; {
			_, found, err := m.update(on, forgets, []any{record.ID, record.Token})
			if err != nil || found {
				return err
			}
			isThere, err := m.isRecorded(on, record.ID, record.Token)
			switch {
			case err != nil || !isThere:
				return err
			case time.Now().After(giveUp):
				return errPinned
			}
			if done := Sleep(on.ctx, pinnedPause/2+rand.N(pinnedPause/2)); done != nil {
				return &unsentError{error: fmt.Errorf("%w: %w", errPinned, done)}
			}
		}
	})
}

// isRecorded looks for the record of a token.
func (m *mysql) isRecorded(on executor, id, token int64) (bool, error) {
	var records int
	_, err := on.queryOne(m.once.ownSQL, []any{id, token}, &records)
	return records > 0, err
}

func (m *mysql) pruneRecords(on executor) error {
	return m.outside(on, func() error {
		var ids []string
		err := on.queryAll(m.once.old, nil, func(row *sql.Rows) error {
			var id int64
			err := row.Scan(&id)
			ids = append(ids, strconv.FormatInt(id, 10))
			return err
		})
		if err == nil && len(ids) > 0 {
			_, err = on.exec(m.removeSQL(ids, mysqlOldRecord), nil)
		}
		return err
	})
}
