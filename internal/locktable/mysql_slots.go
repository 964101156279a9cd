package locktable

import (
	"database/sql"
	"time"
)

// lookSlotsSQL finds all rows with a semaphore's id, as one range of the index. lock_id is compared byte for byte.
func (m *mysql) lookSlotsSQL() string {
	const times = microsecondsOf + `creation_time), ` + microsecondsOf + `expires_at)`
	return `SELECT lock_id, lease_id, CAST(holder AS BINARY), ` + times + `,
	TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), expires_at) FROM ` + m.table + ` WHERE lock_id >= ? AND lock_id < ?`
}

func (m *mysql) lookSlots(on executor, k Key, _ bool) (seen slotsSeen, err error) {
	ctx, cancel := gracefully(on.ctx)
	defer cancel()
	on = on.under(ctx)
	from := k.LockID + SlotMark
	args := []any{[]byte(from), []byte(afterPrefix(from))}
	err = m.outside(on, func() error {
		seen = slotsSeen{}
		return on.queryAll(m.lookSlotsSQL(), args, func(rows *sql.Rows) error {
			row := &Row{}
			var since int64
			var expires, left sql.NullInt64
			err := rows.Scan(&row.LockID, &row.LeaseID, &row.Holder, &since, &expires, &left)
			id, slot := SplitSlot(row.LockID)
			if err != nil || row.LeaseID == "" || id != k.LockID || slot > k.Slots {
				return err
			}
			row.setMicroseconds(since, expires)
			row.LockID = id
			a := Answer{Held: row, Left: time.Duration(left.Int64) * time.Microsecond}
			a.Ended = row.ExpiresAt != nil && a.Left <= 0
			seen.add(slot, a, k.LeaseID)
			return nil
		})
	})
	return seen, err
}
