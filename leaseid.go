package dbmutex

import (
	"crypto/rand"
	"encoding/binary"
	"hash/maphash"
)

// A lease's id, and a ticket, has leaseIDLength letters. The first markLength are the mark of its process's pool; the others
// are 90 bits at random.
const (
	leaseIDLength = 26
	markLength    = 8
)

var markSeed = maphash.MakeSeed()

// newLeaseID makes the id of a lease, or a ticket.
func newLeaseID(pool any) string {
	id := make([]byte, leaseIDLength)
	binary.LittleEndian.PutUint64(id, maphash.Comparable(markSeed, pool))
	_, _ = rand.Read(id[markLength:]) // it cannot fail
	for i, b := range id {
		id[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[b%32]
	}
	return string(id)
}

// samePool says whether two ids, each a lease's or a ticket, are of the same pool of one process.
func samePool(id, other string) bool {
	return len(id) == leaseIDLength && len(other) == leaseIDLength && id[:markLength] == other[:markLength]
}
