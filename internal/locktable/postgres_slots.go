package locktable

import (
	"database/sql"
	"time"
)

// lookSlotsSQL looks each slot up by itself, so that the index is used however small the table was when the statement was
// planned. The number comes from a SELECT, so that all plans are the same: PostgreSQL would else make a new one each time.
func (p *postgres) lookSlotsSQL() string {
	return `SELECT s.slot, m.lease_id::text, m.holder::text, m.creation_time, m.expires_at, ` + now + `
FROM pg_catalog.generate_series(1, (SELECT $2::int)) AS s (slot) CROSS JOIN LATERAL (
	SELECT lease_id, holder, creation_time, expires_at FROM ` + p.table + `
	WHERE lock_id = $1::text || s.slot::text LIMIT 1) AS m`
}

func (p *postgres) lookSlots(on executor, k Key, _ bool) (seen slotsSeen, err error) {
	ctx, cancel := gracefully(on.ctx)
	defer cancel()
	err = on.under(ctx).queryAll(p.lookSlotsSQL(), []any{k.LockID + SlotMark, k.Slots}, func(rows *sql.Rows) error {
		row := &Row{LockID: k.LockID}
		var slot int
		var expires sql.NullTime
		var now time.Time
		err := rows.Scan(&slot, &row.LeaseID, &row.Holder, &row.CreationTime, &expires, &now)
		a := Answer{Held: row}
		if expires.Valid {
			row.ExpiresAt, a.Left = &expires.Time, expires.Time.Sub(now)
			a.Ended = a.Left <= 0
		}
		seen.add(slot, a, k.LeaseID)
		return err
	})
	return seen, err
}
