package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/gorm-dbmutex/dbmutex"
)

// document is what is written as JSON.
type document struct {
	Now    time.Time `json:"now"`
	Leases []record  `json:"leases"`
	Next   *string   `json:"next"`
}

// record is a lease.
type record struct {
	LockID       string     `json:"lock_id"`
	Holder       string     `json:"holder"`
	LeaseID      string     `json:"lease_id"`
	CreationTime time.Time  `json:"creation_time"`
	ExpiresAt    *time.Time `json:"expires_at"`
	State        string     `json:"state"`
	HeldSeconds  int64      `json:"held_seconds"`
	LeftSeconds  *int64     `json:"left_seconds"`
}

func newRecord(lease dbmutex.LeaseInfo) record {
	r := record{
		LockID: lease.LockID, Holder: lease.Holder, LeaseID: lease.LeaseID, CreationTime: lease.CreationTime.UTC(),
		State: "held", HeldSeconds: int64(lease.HeldFor() / time.Second),
	}
	if lease.Expires() {
		expires, left := lease.ExpiresAt.UTC(), int64(lease.Left/time.Second)
		r.ExpiresAt, r.LeftSeconds = &expires, &left
	}
	if lease.Expired() {
		r.State = "expired"
	}
	return r
}

// page is a part of the leases.
type page struct {
	now    time.Time
	leases []dbmutex.LeaseInfo
	next   *string // the last lock id, if more leases follow that can be asked for
}

// writeJSON writes one line. It is plain to read in a terminal, too.
func (p page) writeJSON(w io.Writer) error {
	d := document{Now: p.now.UTC(), Leases: make([]record, len(p.leases)), Next: p.next}
	for i, lease := range p.leases {
		d.Leases[i] = newRecord(lease)
	}
	text, err := json.Marshal(d)
	if err != nil {
		return err
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
	_, err = fmt.Fprintln(w, line.String())
	return err
}

// writeTable writes a line for each lease.
func writeTable(w io.Writer, leases []dbmutex.LeaseInfo) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "MUTEX\tHOLDER\tHELD FOR\tENDS IN") // Flush has the error
	for _, lease := range leases {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n",
			printable(lease.LockID), printable(lease.Holder), inWords(lease.HeldFor()), endsIn(lease))
	}
	return table.Flush()
}
