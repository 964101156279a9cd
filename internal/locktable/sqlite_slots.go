package locktable

import (
	"database/sql"
	"strconv"
	"strings"
	"unicode/utf8"
)

// sqliteSlots are the columns and the table of statements that have one row: each row costs a driver as much as a statement.
// The columns are those of the row that the statement's min() is of: https://www.sqlite.org/lang_select.html#bareagg
const sqliteSlots = `SELECT holder, CAST(creation_time AS text), CAST(expires_at AS text), lease_id,
	` + sqliteNow + `, sum(id), `

// fullSQL finds the lease that ends first of all slots, also of those that are not the request's, and sums up what tells
// whether they are the first n. It is a third of lookSlotsSQL's cost, most of which is to prepare it.
func (s *sqlite) fullSQL() string {
	return sqliteSlots + `sum(substr(lock_id, ?) + 100000), min(expires_at)
FROM ` + s.table + ` WHERE lock_id > ? AND lock_id < ?`
}

// lookSlotsSQL finds the request's own lease, or the one that ends first, and the slots that are taken. What has the
// prefix ?3 is before ?4; a file whose texts are UTF-16 has others there, too.
func (s *sqlite) lookSlotsSQL() string {
	return sqliteSlots + `min(CASE WHEN lease_id = ?2 THEN '' ELSE expires_at END),
	substr(lock_id, ?1), group_concat(substr(lock_id, ?1))
FROM ` + s.table + ` WHERE lock_id > ?3 AND lock_id < ?4
	AND lock_id = ?3 || CAST(substr(lock_id, ?1) AS integer) AND CAST(substr(lock_id, ?1) AS integer) BETWEEN 1 AND ?5`
}

func (s *sqlite) lookSlots(on executor, k Key, own bool) (seen slotsSeen, err error) {
	prefix := k.LockID + SlotMark
	number, end := utf8.RuneCountInString(prefix)+1, afterPrefix(prefix)
	err = s.connect(on, func(c *sqliteConn) error {
		return c.patiently(Limit, func(on executor) (err error) {
			if !own {
				var sum sql.NullFloat64
				seen, err = s.lookSlotsBy(on, k, s.fullSQL(), []any{number, prefix, end}, &sum, new(any))
				n := float64(k.Slots) // no other n numbers from 1 on have their sum
				if err != nil {
					return err
				}
				if seen.full = sum.Float64 == 100000*n+n*(n+1)/2 && !seen.first.Ended; seen.full {
					return nil
				}
			}
			var first, taken sql.NullString
			seen, err = s.lookSlotsBy(on, k, s.lookSlotsSQL(), []any{number, k.LeaseID, prefix, end, k.Slots},
				new(any), &first, &taken)
			if err != nil || seen.first.Held == nil {
				return err
			}
			for _, text := range strings.Split(taken.String, ",") {
				slot, _ := strconv.Atoi(text)
				seen.taken = append(seen.taken, slot)
			}
			slot, _ := strconv.Atoi(first.String)
			if seen.first.Held.LeaseID == k.LeaseID {
				seen.own = []int{slot}
			}
			if seen.first.Ended {
				seen.ended = []int{slot}
			}
			return nil
		})
	})
	return seen, err
}

// lookSlotsBy reads the row of a statement, which has columns of its own after those that both have.
func (s *sqlite) lookSlotsBy(on executor, k Key, query string, args []any, own ...any) (seen slotsSeen, err error) {
	var holder, since, expires, leaseID sql.NullString
	var now string
	var ids sql.NullInt64
	dest := append([]any{&holder, &since, &expires, &leaseID, &now, &ids}, own...)
	if _, err = on.queryOne(query, args, dest...); err != nil || !leaseID.Valid {
		return seen, err
	}
	row, clock := &Row{LockID: k.LockID, Holder: holder.String, LeaseID: leaseID.String}, &Row{}
	if err := row.setTimes(since.String, expires); err != nil {
		return seen, err
	}
	if err := clock.setTimes(now, sql.NullString{}); err != nil {
		return seen, err
	}
	seen.first = Answer{Held: row, Newest: ids.Int64}
	if row.ExpiresAt != nil {
		seen.first.Left = row.ExpiresAt.Sub(clock.CreationTime)
		seen.first.Ended = seen.first.Left < 0
	}
	return seen, nil
}
