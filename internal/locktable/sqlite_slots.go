package locktable

import (
	"database/sql"
	"strconv"
	"strings"
	"unicode/utf8"
)

// lookSlotsSQL has one row, as each costs a driver as much as the statement. Its columns are those of the row that min() is
// of, the request's own or that of the lease that ends first: https://www.sqlite.org/lang_select.html#bareagg
//
// What has the prefix ?3 is before ?4, and a file whose texts are UTF-16 has others there, too.
func (s *sqlite) lookSlotsSQL() string {
	return `SELECT holder, CAST(creation_time AS text), CAST(expires_at AS text), lease_id, ` + sqliteNow + `, substr(lock_id, ?1),
	sum(id), group_concat(substr(lock_id, ?1)), min(CASE WHEN lease_id = ?2 THEN '' ELSE coalesce(expires_at, '9') END)
FROM ` + s.table + ` WHERE lock_id > ?3 AND lock_id < ?4
	AND lock_id = ?3 || CAST(substr(lock_id, ?1) AS integer) AND CAST(substr(lock_id, ?1) AS integer) BETWEEN 1 AND ?5`
}

func (s *sqlite) lookSlots(on executor, k Key) (seen slotsSeen, err error) {
	prefix := k.LockID + SlotMark
	args := []any{utf8.RuneCountInString(prefix) + 1, k.LeaseID, prefix, afterPrefix(prefix), k.Slots}
	err = s.connect(on, func(c *sqliteConn) error {
		return c.patiently(Limit, func(on executor) (err error) {
			seen, err = s.lookSlotsOnce(on, k, args)
			return err
		})
	})
	return seen, err
}

func (s *sqlite) lookSlotsOnce(on executor, k Key, args []any) (seen slotsSeen, err error) {
	var holder, since, expires, leaseID, slot, slots sql.NullString
	var now string
	var ids sql.NullInt64
	if _, err = on.queryOne(s.lookSlotsSQL(), args,
		&holder, &since, &expires, &leaseID, &now, &slot, &ids, &slots, new(any)); err != nil || !slots.Valid {
		return seen, err
	}
	row, clock := &Row{LockID: k.LockID, Holder: holder.String, LeaseID: leaseID.String}, &Row{}
	if err := row.setTimes(since.String, expires); err != nil {
		return seen, err
	}
	if err := clock.setTimes(now, sql.NullString{}); err != nil {
		return seen, err
	}
	a := Answer{Held: row}
	if row.ExpiresAt != nil {
		a.Left = row.ExpiresAt.Sub(clock.CreationTime)
		a.Ended = a.Left < 0
	}
	first, _ := strconv.Atoi(slot.String)
	seen.add(first, a, k.LeaseID)
	seen.taken = nil
	for _, text := range strings.Split(slots.String, ",") {
		slot, _ := strconv.Atoi(text)
		seen.taken = append(seen.taken, slot)
	}
	seen.first.Newest = ids.Int64
	return seen, nil
}
