// Package leaseview is what the command and the dashboard have in common: leases as JSON, the words for their states and
// orders, and their groups.
package leaseview

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/gorm-dbmutex/dbmutex"
)

// The words for what a dbmutex.LeaseQuery can ask for.
var (
	States = map[string]dbmutex.LeaseState{
		"held": dbmutex.LeasesHeld, "expired": dbmutex.LeasesExpired, "all": dbmutex.LeasesAll,
	}
	Orders = map[string]dbmutex.LeaseOrder{
		"id": dbmutex.ByLockID, "oldest": dbmutex.OldestFirst, "ending": dbmutex.EndingFirst,
	}
)

// Page is a part of the leases.
type Page struct {
	Now      time.Time `json:"now"` // the database's clock, in UTC
	Leases   []Lease   `json:"leases"`
	Next     *string   `json:"next"`                // what to list after, if more follow that can be asked for
	NextSlot int       `json:"next_slot,omitempty"` // with Next, if that is a semaphore's
}

// Lease is one of them, or the record of a Once. Its times are in UTC.
type Lease struct {
	LockID       string     `json:"lock_id"`
	Slot         int        `json:"slot,omitempty"` // of a semaphore's, from 1 on
	Holder       string     `json:"holder"`
	LeaseID      string     `json:"lease_id"`
	CreationTime time.Time  `json:"creation_time"`
	ExpiresAt    *time.Time `json:"expires_at"` // nil = never
	State        string     `json:"state"`      // held, expired, or done for a record that is kept
	HeldSeconds  int64      `json:"held_seconds"`
	LeftSeconds  *int64     `json:"left_seconds"` // < 0: it ran out that long ago; nil = it never does
}

// NewPage has the leases. If more follow, then behind the last of these.
func NewPage(now time.Time, leases []dbmutex.LeaseInfo, more bool) Page {
	p := Page{Now: now.UTC(), Leases: make([]Lease, len(leases))}
	for i, lease := range leases {
		p.Leases[i] = NewLease(lease)
	}
	if more {
		last := leases[len(leases)-1]
		p.Next, p.NextSlot = &last.LockID, last.Slot
	}
	return p
}

// NewLease is the lease for JSON.
func NewLease(info dbmutex.LeaseInfo) Lease {
	l := Lease{
		LockID: info.LockID, Slot: info.Slot, Holder: info.Holder, LeaseID: info.LeaseID, CreationTime: info.CreationTime.UTC(),
		State: "held", HeldSeconds: int64(info.HeldFor() / time.Second),
	}
	if info.Expires() {
		until, left := info.ExpiresAt.UTC(), int64(info.Left/time.Second)
		l.ExpiresAt, l.LeftSeconds = &until, &left
	}
	switch {
	case info.Expired():
		l.State = "expired"
	case info.Done():
		l.State = "done"
	}
	return l
}

// Groups are the leases by their mutex or semaphore, in the order of the first of each. Those of a semaphore are sorted by
// slot.
func Groups(leases []dbmutex.LeaseInfo) (groups [][]dbmutex.LeaseInfo) {
	type lock struct {
		id        string
		semaphore bool
	}
	at := map[lock]int{}
	for _, lease := range leases {
		of := lock{lease.LockID, lease.Slot > 0}
		i, known := at[of]
		if !known {
			i = len(groups)
			at[of], groups = i, append(groups, nil)
		}
		groups[i] = append(groups[i], lease)
	}
	for _, group := range groups {
		slices.SortStableFunc(group, func(a, b dbmutex.LeaseInfo) int { return cmp.Compare(a.Slot, b.Slot) })
	}
	return groups
}

// Holders says how many of a semaphore's leases hold it, and how many ran out.
func Holders(group []dbmutex.LeaseInfo) string {
	expired := 0
	for _, lease := range group {
		if lease.Expired() {
			expired++
		}
	}
	held := fmt.Sprintf("%d holders", len(group)-expired)
	switch {
	case expired == len(group):
		return fmt.Sprintf("%d ran out", expired)
	case expired == len(group)-1:
		held = "1 holder"
	}
	if expired > 0 {
		held += fmt.Sprintf(", %d ran out", expired)
	}
	return held
}

// Find lists the leases that hold the mutex and the semaphore of an id. It has that of the mutex also if it ran out.
func Find(db *dbmutex.DB, id string) (leases []dbmutex.LeaseInfo, err error) {
	lease, err := db.Mutex(id).Inspect()
	if err != nil {
		return nil, err
	}
	if lease != nil {
		leases = append(leases, *lease)
	}
	permits, err := db.Semaphore(id, 1).Holders()
	if err != nil && !errors.Is(err, dbmutex.ErrInvalidLockID) { // a semaphore's may not be as long
		return nil, err
	}
	return append(leases, permits...), nil
}

// Release ends the lease of the mutex or the semaphore of an id, and says whether it was there.
func Release(db *dbmutex.DB, id, leaseID string, opts ...dbmutex.Option) (released bool, err error) {
	released, err = db.Mutex(id, opts...).ForceReleaseLease(leaseID)
	if err != nil || released {
		return released, err
	}
	released, err = db.Semaphore(id, 1, opts...).ForceReleaseLease(leaseID)
	if errors.Is(err, dbmutex.ErrInvalidLockID) { // a semaphore's may not be as long
		return false, nil
	}
	return released, err
}

// MissingTable says that an error is that of a table which is not there.
func MissingTable(err error) bool {
	return strings.Contains(err.Error(), "is missing: run AutoMigrate")
}

// Line is v as one line of JSON. It is plain to read in a terminal, too: what does not print is escaped.
func Line(v any) (string, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	var line strings.Builder
	for _, r := range string(text) {
		if unicode.IsPrint(r) {
			line.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) { // JSON has no other escapes
			fmt.Fprintf(&line, `\u%04x`, unit)
		}
	}
	line.WriteByte('\n')
	return line.String(), nil
}
