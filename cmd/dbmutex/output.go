package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/leaseview"
)

// page is a part of the leases.
type page struct {
	now    time.Time
	leases []dbmutex.LeaseInfo
	more   bool // leases follow the last one, and can be asked for
}

// writeJSON writes one line.
func (p page) writeJSON(w io.Writer) error {
	line, err := leaseview.Line(leaseview.NewPage(p.now, p.leases, p.more))
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, line)
	return err
}

// writeTable writes a line for each mutex. A semaphore has one, and one for each of its slots.
func writeTable(w io.Writer, leases []dbmutex.LeaseInfo) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "MUTEX\tHOLDER\tHELD FOR\tENDS IN") // Flush has the error
	for _, group := range leaseview.Groups(leases) {
		if group[0].Slot > 0 {
			_, _ = fmt.Fprintf(table, "%s\t%s\t\t\n", printable(group[0].LockID), leaseview.Holders(group))
		}
		for _, lease := range group {
			name := printable(lease.LockID)
			if lease.Slot > 0 {
				name = fmt.Sprintf("  slot %d", lease.Slot)
			}
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", name, printable(lease.Holder), inWords(lease.HeldFor()), endsIn(lease))
		}
	}
	return table.Flush()
}

// writeOnces writes a line for each run and each record.
func writeOnces(w io.Writer, rows []dbmutex.LeaseInfo) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "ONCE\tSTATE\tHOLDER\tBEGUN\tENDS IN")
	for _, row := range rows {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s ago\t%s\n",
			printable(row.LockID), onceState(row), printable(row.Holder), inWords(row.HeldFor()), endsIn(row))
	}
	return table.Flush()
}

// writeText writes all that there is to say of each lease.
func writeText(w io.Writer, leases []dbmutex.LeaseInfo) error {
	texts := make([]string, len(leases))
	for i, lease := range leases {
		texts[i] = "mutex     " + printable(lease.LockID) + "\n"
		if lease.Slot > 0 {
			texts[i] += fmt.Sprintf("slot      %d\n", lease.Slot)
		}
		texts[i] += facts(lease, stateInWords(lease), "held for  "+inWords(lease.HeldFor())+", since "+utc(lease.CreationTime))
	}
	_, err := io.WriteString(w, strings.Join(texts, "\n"))
	return err
}

// writeOnce is writeText for a run or a record of a Once.
func writeOnce(w io.Writer, row dbmutex.LeaseInfo) error {
	_, err := io.WriteString(w, "once      "+printable(row.LockID)+"\n"+facts(row, onceState(row), begun(row)))
	return err
}

// facts are the lines that follow the id.
func facts(lease dbmutex.LeaseInfo, state, since string) string {
	ends := "ends in   never"
	switch {
	case lease.Expired():
		since = begun(lease)
		ends = fmt.Sprintf("ended     %s ago, at %s", inWords(-lease.Left), utc(*lease.ExpiresAt))
	case lease.Done():
		ends = fmt.Sprintf("kept for  %s, until %s", inWords(lease.Left), utc(*lease.ExpiresAt))
	case lease.Expires():
		ends = fmt.Sprintf("ends in   %s, at %s", inWords(lease.Left), utc(*lease.ExpiresAt))
	}
	return fmt.Sprintf("state     %s\nholder    %s\n%s\n%s\nlease     %s\n",
		state, printable(lease.Holder), since, ends, printable(lease.LeaseID))
}

func begun(lease dbmutex.LeaseInfo) string {
	return fmt.Sprintf("begun     %s ago, at %s", inWords(lease.HeldFor()), utc(lease.CreationTime))
}

func stateInWords(lease dbmutex.LeaseInfo) string {
	switch {
	case lease.Expired():
		return "ran out, not taken over"
	case lease.Resting():
		return "held: the work has ended, and --min-hold keeps the mutex"
	}
	return "held"
}

func onceState(row dbmutex.LeaseInfo) string {
	switch {
	case row.Done() && row.Expired():
		return "no longer kept"
	case row.Done():
		return "done"
	case row.Expired():
		return "ran out"
	}
	return "running"
}

func utc(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
