package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/gorm-dbmutex/dbmutex"
)

func newShow(g *global) *cobra.Command {
	var output string
	command := &cobra.Command{
		Use:   "show ID",
		Short: "Show who holds a mutex; exit with 1 if nobody does",
		Long: `Show says who holds a mutex. The exit code is 0 if somebody does, and 1 if nobody does: also if the lease ran out,
and nobody has taken the mutex since. -o json is that of dbmutex list.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			text := func(p page) error { return writeText(args[0], p) }
			write, err := choose("--output", output, map[string]func(page) error{"text": text, "json": writeJSON})
			if err != nil {
				return err
			}
			return g.ask(func(db *dbmutex.DB) error { return show(db, args[0], write) })
		},
	}
	command.Flags().StringVarP(&output, "output", "o", "text", "the `format`: text or json")
	return command
}

func show(db *dbmutex.DB, id string, write func(page) error) error {
	lease, err := db.Mutex(id).Inspect()
	if err != nil {
		return err
	}
	var p page
	if lease != nil {
		p.now, p.leases = lease.Now, []dbmutex.LeaseInfo{*lease}
	} else {
		stats, err := db.LeaseStats()
		if err != nil {
			return err
		}
		p.now = stats.Now
	}
	if err := write(p); err != nil {
		return err
	}
	if lease == nil || lease.Expired() {
		return &exitError{code: exitNo}
	}
	return nil
}

func writeText(id string, p page) error {
	if len(p.leases) == 0 {
		_, err := fmt.Printf("%q is not held\n", id)
		return err
	}
	lease := p.leases[0]
	ends := endsIn(lease)
	if lease.Expires() {
		ends += ", at " + utc(*lease.ExpiresAt)
	}
	_, err := fmt.Printf("mutex     %s\nstate     %s\nholder    %s\nheld for  %s, since %s\nends in   %s\nlease     %s\n",
		printable(lease.LockID), stateInWords(lease), printable(lease.Holder),
		inWords(lease.HeldFor()), utc(lease.CreationTime), ends, printable(lease.LeaseID))
	return err
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

func utc(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
