package locktable

import (
	"database/sql"
	"math/rand/v2"
	"time"
)

// sqliteSlots are the lock_ids of a semaphore's slots, from one on: its parameters are the number of slots twice, the id, the
// first slot, and their number again.
const sqliteSlots = `WITH RECURSIVE number (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number LIMIT ?),
slot (id) AS (SELECT ? || char(31) || ((n + ?) % ? + 1) FROM number) `

// lookSlotsSQL finds the request's own row, or else that of the lease that ends first. It tells how many slots have rows, and
// when the newest lease was acquired.
func (s *sqlite) lookSlotsSQL() string {
	return sqliteSlots + `SELECT lock_id, holder, CAST(creation_time AS text), CAST(expires_at AS text), lease_id,
	expires_at < ` + sqliteNow + `, CAST((julianday(expires_at) - julianday('now')) * 86400000 AS INTEGER),
	count(*) OVER (), max(CAST(creation_time AS text)) OVER ()
FROM slot CROSS JOIN ` + s.table + ` ON lock_id = slot.id
ORDER BY lease_id = ? DESC, expires_at IS NULL, expires_at LIMIT 1`
}

// acquireSlotSQL is acquireSQL for the first of some slots that can be taken.
func (s *sqlite) acquireSlotSQL() string {
	return `INSERT OR REPLACE INTO ` + s.table + ` (lock_id, creation_time, expires_at, holder, lease_id)
` + sqliteSlots + `SELECT slot.id, ` + sqliteNow + `, strftime(` + sqliteForm + `, 'now', ?), ?, ? FROM slot
WHERE NOT EXISTS (SELECT 1 FROM ` + s.table + ` AS m WHERE m.lock_id = slot.id
	AND m.lease_id <> ? AND (m.lease_id <> ? OR m.expires_at IS NULL OR m.expires_at >= ` + sqliteNow + `))
LIMIT 1 RETURNING id, lock_id`
}

// slotLook is what lookSlotsSQL finds.
type slotLook struct {
	Answer
	slot, taken int
}

func (s *sqlite) acquireSlot(on executor, r Request, _ bool) (a Answer, err error) {
	err = s.connect(on, func(c *sqliteConn) error {
		for range maxRaces(r.Slots) {
			var seen slotLook
			if err := c.patiently(Limit, func(on executor) error { return s.lookSlots(on, r, &seen) }); err != nil {
				return err
			}
			a = seen.Answer
			first, lease := rand.IntN(r.Slots), ""
			switch own := a.Held != nil && a.Held.LeaseID == r.LeaseID; {
			case own, seen.taken == r.Slots && a.Ended:
				first, lease = seen.slot-1, a.Held.LeaseID
			case seen.taken == r.Slots:
				return nil
			}
			// SQLite answers with the row before it commits: see acquire.
			var token int64
			var lockID string
			err := c.patiently(Limit, func(on executor) error {
				token = 0
				_, err := on.queryOne(s.acquireSlotSQL(), []any{
					r.Slots, r.LockID, first, r.Slots, modifier(r.TTL), r.Holder, r.LeaseID, r.LeaseID, lease,
				}, &token, &lockID)
				return err
			})
			if err != nil {
				return err
			}
			if token != 0 {
				taken := Answer{Token: token}
				if _, taken.Slot = SplitSlot(lockID); lease != "" && taken.Slot == seen.slot {
					taken.Past = r.past(a.Held)
				}
				a = taken
				return nil
			}
		}
		return nil
	})
	return a, err
}

func (s *sqlite) lookSlots(on executor, r Request, seen *slotLook) error {
	var lockID, since, newest string
	var expires sql.NullString
	var ended sql.NullBool
	var left sql.NullInt64
	*seen = slotLook{}
	row := &Row{LockID: r.LockID}
	found, err := on.queryOne(s.lookSlotsSQL(), []any{r.Slots, r.LockID, 0, r.Slots, r.LeaseID},
		&lockID, &row.Holder, &since, &expires, &row.LeaseID, &ended, &left, &seen.taken, &newest)
	if err != nil || !found {
		return err
	}
	if err := row.setTimes(since, expires); err != nil {
		return err
	}
	_, seen.slot = SplitSlot(lockID)
	seen.Answer = Answer{Held: row, Left: time.Duration(left.Int64) * time.Millisecond, Ended: ended.Bool}
	latest := &Row{}
	if err := latest.setTimes(newest, sql.NullString{}); err != nil {
		return err
	}
	seen.Newest = latest.CreationTime.UnixMicro()
	return nil
}

func (s *sqlite) releaseSlot(on executor, k Key) (bool, error) {
	return s.writeRow(on, `DELETE FROM `+s.table+` WHERE lease_id = ? AND lock_id IN (`+sqliteSlots+`SELECT id FROM slot)`,
		[]any{k.LeaseID, k.Slots, k.LockID, 0, k.Slots})
}
