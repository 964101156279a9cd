// Package leasejson is how programs see leases: as JSON that is the same from the command and from the dashboard, and by the
// same words for states and orders.
package leasejson

import (
	"encoding/json"
	"fmt"
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
	Now    time.Time `json:"now"` // the database's clock, in UTC
	Leases []Lease   `json:"leases"`
	Next   *string   `json:"next"` // what to list after, if more follow that can be asked for
}

// Lease is one of them. Its times are in UTC.
type Lease struct {
	LockID       string     `json:"lock_id"`
	Holder       string     `json:"holder"`
	LeaseID      string     `json:"lease_id"`
	CreationTime time.Time  `json:"creation_time"`
	ExpiresAt    *time.Time `json:"expires_at"` // nil = never
	State        string     `json:"state"`
	HeldSeconds  int64      `json:"held_seconds"`
	LeftSeconds  *int64     `json:"left_seconds"` // < 0: it ran out that long ago; nil = it never does
}

// NewPage has the leases, and nothing to list after.
func NewPage(now time.Time, leases []dbmutex.LeaseInfo) Page {
	p := Page{Now: now.UTC(), Leases: make([]Lease, len(leases))}
	for i, lease := range leases {
		p.Leases[i] = NewLease(lease)
	}
	return p
}

// NewLease is the lease for JSON.
func NewLease(info dbmutex.LeaseInfo) Lease {
	l := Lease{
		LockID: info.LockID, Holder: info.Holder, LeaseID: info.LeaseID, CreationTime: info.CreationTime.UTC(),
		State: "held", HeldSeconds: int64(info.HeldFor() / time.Second),
	}
	if info.Expires() {
		until, left := info.ExpiresAt.UTC(), int64(info.Left/time.Second)
		l.ExpiresAt, l.LeftSeconds = &until, &left
	}
	if info.Expired() {
		l.State = "expired"
	}
	return l
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
