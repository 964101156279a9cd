package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/leaseview"
)

// shower is one dbmutex show.
type shower struct {
	*global

	id, output string
	once       bool
}

func newShow(g *global) *cobra.Command {
	s := &shower{global: g}
	command := &cobra.Command{
		Use:   "show ID",
		Short: "Show who holds a mutex; exit with 1 if nobody does",
		Long: `Show says who holds a mutex, and who has which slot of run --slots. The exit code is 0 if somebody does, and 1 if
nobody does: also if the lease ran out, and nobody has taken the mutex since.

--once says who runs the work of a Once, or that it is done, and until when that is kept. That of run --once-per has the id
ID@TIME, which list --once shows. The exit code is 1 if nobody runs it and it is not done.

-o json is that of dbmutex list.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			s.id = args[0]
			write, err := choose("--output", s.output, map[string]func(page) error{"text": s.writeText, "json": writeJSON})
			if err != nil {
				return err
			}
			return g.ask(func(db *dbmutex.DB) error { return s.show(db, write) })
		},
	}
	command.Flags().BoolVar(&s.once, "once", false, "a run or a record of run --once-per, or of a program's Once")
	command.Flags().StringVarP(&s.output, "output", "o", "text", "the `format`: text or json")
	return command
}

func (s *shower) show(db *dbmutex.DB, write func(page) error) (err error) {
	var p page
	if s.once {
		p.leases, err = onceRow(db, s.id)
	} else {
		p.leases, err = leaseview.Find(db, s.id)
	}
	if err != nil {
		return err
	}
	if len(p.leases) > 0 {
		p.now = p.leases[0].Now
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
	for _, lease := range p.leases {
		if !lease.Expired() {
			return nil
		}
	}
	return &exitError{code: exitNo}
}

// onceRow is the run or the record of a Once, if there is one.
func onceRow(db *dbmutex.DB, id string) ([]dbmutex.LeaseInfo, error) {
	rows, err := db.Leases(dbmutex.LeaseQuery{Once: true, State: dbmutex.LeasesAll, Prefix: id, Limit: 1})
	if len(rows) > 0 && rows[0].LockID != id { // the id itself would come first
		rows = nil
	}
	return rows, err
}

func (s *shower) writeText(p page) error {
	switch {
	case len(p.leases) > 0 && s.once:
		return writeOnce(os.Stdout, p.leases[0])
	case len(p.leases) > 0:
		return writeText(os.Stdout, p.leases)
	}
	text := "is not held"
	if s.once {
		text = "is not done, and nobody runs it"
	}
	_, err := fmt.Printf("%q %s\n", s.id, text)
	return err
}
