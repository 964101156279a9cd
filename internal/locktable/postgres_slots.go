package locktable

import (
	"database/sql"
	"strings"
	"time"
)

// lookSlotsSQL looks each slot up by itself, so that the index is used however small the table was when the statement was
// planned. The array comes from a SELECT, so that all plans are the same: PostgreSQL would else make a new one each time.
func (p *postgres) lookSlotsSQL() string {
	return `SELECT m.lock_id::text, m.lease_id::text, m.holder::text, m.creation_time, m.expires_at, ` + now + `
FROM pg_catalog.unnest((SELECT $1::text[])) AS s (slot) CROSS JOIN LATERAL (
	SELECT lock_id, lease_id, holder, creation_time, expires_at FROM ` + p.table + ` WHERE lock_id = s.slot LIMIT 1) AS m`
}

func (p *postgres) lookSlots(on executor, k Key, _ bool) (seen slotsSeen, err error) {
	ctx, cancel := gracefully(on.ctx)
	defer cancel()
	err = on.under(ctx).queryAll(p.lookSlotsSQL(), []any{textArray(slotIDs(k.LockID, k.Slots))}, func(rows *sql.Rows) error {
		row := &Row{}
		var expires sql.NullTime
		var now time.Time
		err := rows.Scan(&row.LockID, &row.LeaseID, &row.Holder, &row.CreationTime, &expires, &now)
		a := Answer{Held: row}
		if expires.Valid {
			row.ExpiresAt, a.Left = &expires.Time, expires.Time.Sub(now)
			a.Ended = a.Left <= 0
		}
		_, slot := SplitSlot(row.LockID)
		row.LockID = k.LockID
		seen.add(slot, a, k.LeaseID)
		return err
	})
	return seen, err
}

// textArray is an array of texts as PostgreSQL reads it: not every driver sends a slice.
func textArray(texts []string) string {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	for i, text := range texts {
		texts[i] = `"` + quote.Replace(text) + `"`
	}
	return `{` + strings.Join(texts, `,`) + `}`
}
