package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/leasejson"
)

// page is a part of the leases.
type page struct {
	now    time.Time
	leases []dbmutex.LeaseInfo
	next   *string // the last lock id, if more leases follow that can be asked for
}

// writeJSON writes one line.
func (p page) writeJSON(w io.Writer) error {
	document := leasejson.NewPage(p.now, p.leases)
	document.Next = p.next
	line, err := leasejson.Line(document)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, line)
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
