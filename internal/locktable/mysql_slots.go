package locktable

import (
	"database/sql"
	"encoding/hex"
	"slices"
	"strings"
	"time"
)

// lookSlotsSQL finds the request's own row, or else a free one, any of them, or else that of the lease that ends first. It
// tells how many slots have rows, and when the newest lease was acquired.
func (m *mysql) lookSlotsSQL(slots int) string {
	const micros = microsecondsOf
	return `SELECT id, lock_id, CAST(holder AS BINARY), ` + micros + `creation_time), ` + micros + `expires_at), lease_id,
	TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), expires_at), COUNT(*) OVER (), MAX(` + micros + `creation_time)) OVER ()
FROM ` + m.table + ` WHERE lock_id IN (` + places(slots) + `)
ORDER BY lease_id = ? DESC, lease_id = '' DESC, CASE WHEN lease_id = '' THEN RAND() END, expires_at IS NULL, expires_at LIMIT 1`
}

// places are parameters.
func places(n int) string { return `?` + strings.Repeat(`, ?`, n-1) }

// mysqlSlot is what lookSlotsSQL finds.
type mysqlSlot struct {
	*Row
	left   time.Duration
	rows   int
	newest int64
}

func (m *mysql) acquireSlot(on executor, r Request, again bool) (Answer, error) {
	return m.acquireAny(on, r, again)
}

// trySlot is tryOnce for any of the request's slots. After a try without an answer it looks first, as the request may have
// one.
func (m *mysql) trySlot(on executor, r Request, again bool) (a Answer, err error) {
	ttl, holder, ids := microseconds(r.TTL), hex.EncodeToString([]byte(r.Holder)), slotIDs(r.LockID, r.Slots)
	if !again {
		if id, rowID := m.freed.takeOne(ids); id != "" {
			token, taken, err := m.update(on, retakes, []any{ttl, holder, r.LeaseID, rowID, []byte(id)})
			if err != nil || taken && token != 0 {
				return takenSlot(id, token, rowID), err
			}
		}
	}
	for len(ids) > 0 {
		row, err := m.lookSlots(on, r, ids)
		if err != nil {
			return a, err
		}
		if row == nil || row.LeaseID != "" && row.LeaseID != r.LeaseID && row.rows < len(ids) {
			id, added, err := m.addSlot(on, r, ids)
			if err != nil || added.Token != 0 {
				return added, err
			}
			ids = without(ids, id)
			continue
		}
		var past *Row
		if row.LeaseID != "" {
			held := *row.Row
			held.LockID = r.LockID
			seen := Answer{Held: &held, Left: row.left, Ended: row.ExpiresAt != nil && row.left <= 0, Newest: row.newest}
			if !a.Ended {
				a = seen
			}
			if row.LeaseID != r.LeaseID && !seen.Ended {
				return a, nil
			}
			past = r.past(&held)
		}
		token, taken, err := m.update(on, takes,
			[]any{ttl, holder, r.LeaseID, row.ID, []byte(row.LockID), row.LeaseID, r.LeaseID})
		if err == nil && taken && token == 0 { // a trigger on the table hides it
			_, err = on.queryOne(`SELECT token FROM `+m.table+` WHERE id = ?`, []any{row.ID}, &token)
		}
		switch {
		case err != nil:
			return a, err
		case taken:
			a = takenSlot(row.LockID, token, row.ID)
			a.Past = past
			return a, nil
		case row.LeaseID == r.LeaseID: // of a try without an answer, whose session has not gone yet
			return a, nil
		}
		ids = without(ids, row.LockID)
	}
	return a, nil
}

func takenSlot(lockID string, token, rowID int64) Answer {
	_, slot := SplitSlot(lockID)
	return Answer{Token: token, RowID: rowID, Slot: slot}
}

// without leaves out a slot that somebody else has taken, or pins.
func without(ids []string, id string) []string {
	return slices.DeleteFunc(ids, func(other string) bool { return other == id })
}

// addSlot makes the row of a slot that has none. There is no token if somebody else has made it, or pins it; there is no slot
// if all have rows by now.
func (m *mysql) addSlot(on executor, r Request, ids []string) (id string, a Answer, err error) {
	there := map[string]bool{}
	err = on.queryAll(`SELECT lock_id FROM `+m.table+` WHERE lock_id IN (`+places(len(ids))+`)`, asBytes(ids),
		func(rows *sql.Rows) error {
			var id string
			err := rows.Scan(&id)
			there[id] = true
			return err
		})
	if err != nil {
		return "", a, err
	}
	for _, id := range ids {
		if there[id] {
			continue
		}
		on.judge = lockWaits{m}
		rowID, _, err := on.execID(m.insertSQL,
			[]any{[]byte(id), microseconds(r.TTL), hex.EncodeToString([]byte(r.Holder)), r.LeaseID})
		switch {
		case isLocked(err):
			return id, a, nil
		case err != nil || rowID == 0:
			return id, a, err
		}
		m.sweep(on, rowID)
		return id, takenSlot(id, rowID<<24, rowID), nil
	}
	return "", a, nil
}

func (m *mysql) lookSlots(on executor, r Request, ids []string) (*mysqlSlot, error) {
	s := &mysqlSlot{Row: &Row{}}
	var since int64
	var expires, left sql.NullInt64
	found, err := on.queryOne(m.lookSlotsSQL(len(ids)), append(asBytes(ids), r.LeaseID),
		&s.ID, &s.LockID, &s.Holder, &since, &expires, &s.LeaseID, &left, &s.rows, &s.newest)
	if err != nil || !found {
		return nil, err
	}
	s.setMicroseconds(since, expires)
	s.left = time.Duration(left.Int64) * time.Microsecond
	return s, nil
}

func asBytes(texts []string) (args []any) {
	for _, text := range texts {
		args = append(args, []byte(text))
	}
	return args
}

func (m *mysql) releaseSlot(on executor, k Key) (found bool, err error) {
	ids := slotIDs(k.LockID, k.Slots)
	var owned []Key
	err = m.outside(on, func() error {
		owned = nil
		return on.queryAll(`SELECT lock_id, id FROM `+m.table+` WHERE lock_id IN (`+places(len(ids))+`) AND lease_id = ?`,
			append(asBytes(ids), k.LeaseID), func(rows *sql.Rows) error {
				var id string
				var rowID int64
				err := rows.Scan(&id, &rowID)
				own := NewKey(id, k.LeaseID)
				own.RowID = rowID
				owned = append(owned, own)
				return err
			})
	})
	for _, own := range owned {
		if err != nil {
			break
		}
		var one bool
		one, err = m.release(on, Release{Key: own})
		found = found || one
	}
	return found, err
}

// takeOne is take for one of some ids, the first that has a row.
func (f *freedRows) takeOne(lockIDs []string) (lockID string, rowID int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range lockIDs {
		if rowID := f.ids[id]; rowID != 0 {
			delete(f.ids, id)
			return id, rowID
		}
	}
	return "", 0
}
