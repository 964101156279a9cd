package locktable

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// A semaphore's permit is a mutex of its own: the semaphore's id, SlotMark and the slot's number are its lock_id. No mutex
// of a user's has the mark in its id. So the statements are those of a mutex; one more looks which slots are free.
const (
	SlotMark = "\x1f"
	MaxSlots = 256
)

// slotted is what a dialect does for semaphores.
type slotted interface {
	// lookSlots looks at the slots of a request, whose own lease may be among them if own says so. It writes nothing, and waits
	// for nobody.
	lookSlots(on executor, k Key, own bool) (slotsSeen, error)
}

// slotsSeen are the slots of a semaphore, as they were in a moment.
type slotsSeen struct {
	full  bool   // none of them is free, or has ended: then only first is said
	taken []int  // those that have a lease, also one that has ended
	ended []int  // of them, those whose lease has ended: all, or that which ended first
	own   []int  // those that have the request's own lease: of a try whose answer was lost
	first Answer // with the lease in Held that ends first
}

// add puts in one of the slots, whose row is a lease of an Answer.
func (s *slotsSeen) add(slot int, a Answer, leaseID string) {
	s.taken = append(s.taken, slot)
	if a.Held.LeaseID == leaseID {
		s.own = append(s.own, slot)
	}
	if a.Ended {
		s.ended = append(s.ended, slot)
	}
	newest := max(s.first.Newest, a.Held.CreationTime.UnixMicro())
	if s.first.Held == nil || endsBefore(a.Held, s.first.Held) {
		s.first = a
	}
	s.first.Newest = newest
}

func endsBefore(row, other *Row) bool {
	return row.ExpiresAt != nil && (other.ExpiresAt == nil || row.ExpiresAt.Before(*other.ExpiresAt))
}

// candidates are the slots that a request may have, the best first. Processes begin with different ones.
func (s slotsSeen) candidates(slots int) (best []int) {
	if s.full {
		return nil
	}
	if len(s.own) > 0 {
		return s.own[:1]
	}
	for slot := range slots {
		if !slices.Contains(s.taken, slot+1) {
			best = append(best, slot+1)
		}
	}
	rand.Shuffle(len(best), func(i, j int) { best[i], best[j] = best[j], best[i] })
	return append(best, s.ended...)
}

// acquireSlot is acquire for any of the request's slots, as none is said. One that this process has freed it tries at
// once, but after a try without an answer (again) it looks first: the request may have a slot already.
func (t Table) acquireSlot(on executor, r Request, again bool) (a Answer, err error) {
	if !again {
		if slot := int(t.freed.take(r.LockID, int64(r.Slots))); slot != 0 {
			if a, err = t.acquireAt(on, r, slot); err != nil || a.Token != 0 {
				return a, err
			}
		}
	}
	for tries := 0; ; {
		if err := on.ctx.Err(); err != nil && tries > 0 {
			return Answer{}, &unsentError{error: err}
		}
		seen, err := t.lookSlots(on, r.Key, again)
		if err != nil {
			return Answer{}, err
		}
		candidates, raced := seen.candidates(r.Slots), false
		for _, slot := range candidates {
			if a, err = t.acquireAt(on, r, slot); err != nil || a.Token != 0 {
				return a, err
			}
			raced = raced || !a.Ended
			tries++
		}
		if len(candidates) == 0 || !raced || tries > r.Slots+maxLooks {
			return seen.first, nil // others are in all slots, or pin what has ended
		}
	}
}

// acquireAt is acquire for one of the request's slots.
func (t Table) acquireAt(on executor, r Request, slot int) (Answer, error) {
	id := r.LockID
	r.Key = r.At(slot)
	a, err := t.acquire(on, r)
	if a.Token != 0 {
		a.Slot = slot
	}
	for _, row := range []*Row{a.Held, a.Past} {
		if row != nil {
			row.LockID = id
		}
	}
	return a, err
}

// removeSlot deletes the row of a lease that may have been made in any of the key's slots.
func (t Table) removeSlot(on executor, k Key) (found bool, err error) {
	seen, err := t.lookSlots(on, k, true)
	for _, slot := range seen.own {
		if err != nil {
			break
		}
		var one bool
		one, err = t.release(on, Release{Key: k.At(slot)})
		found = found || one
	}
	return found, err
}

// SlotID is the lock_id of a semaphore's slot, or of a mutex, whose slot is 0.
func SlotID(id string, slot int) string {
	if slot == 0 {
		return id
	}
	return id + SlotMark + strconv.Itoa(slot)
}

// SplitSlot is the id and the slot of a lock_id. The slot of a mutex is 0.
func SplitSlot(lockID string) (id string, slot int) {
	at := strings.LastIndex(lockID, SlotMark)
	if at < 0 {
		return lockID, 0
	}
	text := lockID[at+len(SlotMark):]
	slot, err := strconv.Atoi(text)
	if err != nil || slot < 1 || slot > MaxSlots || strconv.Itoa(slot) != text {
		return lockID, 0
	}
	return lockID[:at], slot
}

// At is the key of one of the slots.
func (k Key) At(slot int) Key {
	if slot == 0 {
		return k
	}
	return NewKey(SlotID(k.LockID, slot), k.LeaseID)
}

// slotIDs are the lock_ids of the first so many slots.
func slotIDs(id string, slots int) []string {
	ids := make([]string, slots)
	for i := range ids {
		ids[i] = SlotID(id, i+1)
	}
	return ids
}

// Permits lists the leases of a semaphore in whichever slot, in no order.
func (t Table) Permits(ctx context.Context, id string, which Which) ([]Listed, error) {
	return t.List(ctx, Query{LockIDs: slotIDs(id, MaxSlots), Which: which, Limit: MaxSlots})
}
