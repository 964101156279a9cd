package locktable

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"
)

// A semaphore's permit is a mutex of its own: the semaphore's id, SlotMark and the slot's number are its lock_id. No mutex of a
// user's has the mark in its id.
const (
	SlotMark = "\x1f"
	MaxSlots = 256
)

// slotted takes permits of semaphores.
type slotted interface {
	// acquireSlot is acquire for any of the request's slots. It takes one that is free, or whose lease has run out, unless one
	// bears the request's own lease already. Answer.Held is else the lease that ends first. again says that a try before it had
	// no answer.
	acquireSlot(on executor, r Request, again bool) (Answer, error)
	// releaseSlot is a durable release for any of the key's slots.
	releaseSlot(on executor, k Key) (found bool, err error)
}

// maxRaces is how often an acquire looks for a slot when others take those that it finds free, before it calls the semaphore
// full.
func maxRaces(slots int) int { return slots + maxLooks }

// SlotID is the lock_id of a semaphore's slot.
func SlotID(id string, slot int) string { return id + SlotMark + strconv.Itoa(slot) }

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

// slotIDs are the lock_ids of so many slots, from any one on.
func slotIDs(id string, slots int) []string {
	ids, start := make([]string, slots), rand.IntN(slots)
	for i := range ids {
		ids[i] = SlotID(id, (start+i)%slots+1)
	}
	return ids
}

// Permits lists the leases of a semaphore in whichever slot, in no order.
func (t Table) Permits(ctx context.Context, id string, which Which) ([]Listed, error) {
	return t.List(ctx, Query{LockIDs: slotIDs(id, MaxSlots), Which: which, Limit: MaxSlots})
}
