package locktable

import (
	"database/sql"
	"fmt"
)

// postgresOnce has the statements on records.
type postgresOnce struct {
	has                                                        bool // the table has them
	completeSQL, notifySQL, withinSQL, readSQL, forgetSQL, old string
}

func newPostgresOnce(table, released string) postgresOnce {
	const done = `lease_id = '` + DoneID + `'`
	// The new id waits for guards, as a release does.
	// A record that an earlier try has made is kept no longer for that.
	complete := `UPDATE ` + table + ` SET id = DEFAULT, lease_id = '` + DoneID + `',
	expires_at = CASE WHEN ` + done + ` THEN expires_at ELSE ` + expires("$3") + ` END, result = $4::text, token = $5::bigint
WHERE lock_id = $1 AND `
	again := `(lease_id = $2 OR ` + done + ` AND token = $5) RETURNING ` + durable
	return postgresOnce{
		completeSQL: complete + again,
		notifySQL:   complete + again + `, ` + released + `::text`,
		withinSQL:   complete + `lease_id = $2 AND ` + markedSQL + ` = $2 RETURNING ` + transactionSQL,
		readSQL: `SELECT id, lock_id, creation_time, expires_at, holder, lease_id, token, result FROM ` + table + `
WHERE lock_id = $1 AND ` + done + ` AND expires_at > ` + now,
		forgetSQL: `DELETE FROM ` + table + ` WHERE lock_id = $1 AND ` + done + ` AND token = $2 RETURNING ` + durable,
		// now() lets the index on expires_at be used: clock_timestamp() changes from row to row.
		old: fmt.Sprintf(`DELETE FROM %s WHERE pg_catalog.set_config('synchronous_commit', 'off', true) = 'off'
AND id = ANY (ARRAY (SELECT id FROM %s WHERE expires_at <= pg_catalog.now()
	AND (%s OR expires_at <= pg_catalog.now() - interval '1 hour')
	ORDER BY expires_at LIMIT %d FOR UPDATE SKIP LOCKED))`, table, table, done, pruneRecords),
	}
}

func (p *postgres) keepRecords() {
	p.once.has = true
	p.lister.row = rowOfRecord
}

func (p *postgres) complete(on executor, k Key, r Record, notify bool) (bool, error) {
	query := p.once.completeSQL
	if notify {
		query = p.once.notifySQL
	}
	return on.exec(query, k.args(microseconds(&r.Keep), r.result(), r.Token))
}

// A transaction that is to leave a record has a setting of its own with the lease's id, which its end undoes.
const (
	markSQL   = `SELECT pg_catalog.set_config('dbmutex.lease', $1, true)`
	markedSQL = `pg_catalog.current_setting('dbmutex.lease', true)`
)

// completeIn changes nothing if the work has ended its transaction.
func (p *postgres) completeIn(tx executor, k Key, r Record) (found bool, transaction string, err error) {
	found, err = tx.queryOne(p.once.withinSQL, k.args(microseconds(&r.Keep), r.result(), r.Token), &transaction)
	if err != nil || found {
		return found, transaction, err
	}
	var ended bool
	if _, err = tx.queryOne(`SELECT `+markedSQL+` IS DISTINCT FROM $1::text`, []any{k.LeaseID}, &ended); err == nil && ended {
		err = errEndedWithin
	}
	return false, "", err
}

func (p *postgres) record(on executor, lockID string) (row *Row, result []byte, err error) {
	row = &Row{}
	var expires sql.NullTime
	found, err := on.queryOne(p.once.readSQL, []any{lockID}, &row.ID, &row.LockID, &row.CreationTime, &expires,
		&row.Holder, &row.LeaseID, &row.Token, &result)
	if err != nil || !found {
		return nil, nil, err
	}
	row.ExpiresAt = &expires.Time
	return row, result, nil
}

func (p *postgres) forget(on executor, record *Row) error {
	_, err := on.exec(p.once.forgetSQL, []any{record.LockID, record.Token})
	return err
}

func (p *postgres) pruneRecords(on executor) error {
	_, err := on.exec(p.once.old, nil)
	return err
}
