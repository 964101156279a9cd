package dbmutex

import (
	"crypto/rand"
	"encoding/binary"
	"hash/maphash"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// A lease's id, and a ticket, has LeaseIDLength letters. The first markLength are the mark of its process's pool; the others
// are 90 bits at random.
const markLength = 8

var markSeed = maphash.MakeSeed()

// newLeaseID makes the id of a lease, or a ticket.
func newLeaseID(pool any) string {
	id := make([]byte, locktable.LeaseIDLength)
	binary.LittleEndian.PutUint64(id, maphash.Comparable(markSeed, pool))
	_, _ = rand.Read(id[markLength:]) // it cannot fail
	for i, b := range id {
		id[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[b%32]
	}
	return string(id)
}

// samePool says whether two ids, each a lease's or a ticket, are of the same pool of one process.
func samePool(id, other string) bool {
	return len(id) == locktable.LeaseIDLength && len(other) == locktable.LeaseIDLength && id[:markLength] == other[:markLength]
}
