package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/leaseview"
)

// pageLimit is the most that the database gives at once.
const pageLimit = 1000

// lister is one dbmutex list.
type lister struct {
	*global

	state, order, output string
	query                dbmutex.LeaseQuery
}

func newList(g *global) *cobra.Command {
	l := &lister{global: g}
	command := &cobra.Command{
		Use:     "list [PREFIX]",
		Aliases: []string{"ls"},
		Short:   "List the mutexes that are held, or those whose id begins with PREFIX",
		Long: `List shows which mutexes are held, by whom, since when, and until when if nobody renews the lease. All times are by
the database's clock.

A mutex that "ran out" is free: its holder has crashed, or is late, and nobody has taken the mutex since. --state expired
lists those, and dbmutex prune removes them.

What run --slots, or a program's Semaphore, holds is listed as one mutex with its holders, one for each slot.

--once lists what run --once-per, or a program's Once, has done and is doing: "done" is a record, which is kept until it
ends. That of run --once-per has the id ID@TIME, where TIME is that of the period.

With -o json the answer is one object:

    {"now":T,"leases":[{"lock_id","slot":N,"holder","lease_id","creation_time","expires_at":T or null,"state":"held",
    "expired" or "done","held_seconds":N,"left_seconds":N or null}],"next":ID or null,"next_slot":N}

Times are in UTC. A lease has a slot only if it is a semaphore's. If next is an id, more leases follow: --after ID lists
them, with --after-slot N if there is a next_slot.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			l.query.Prefix = strings.Join(args, "")
			return l.run()
		},
	}
	flags := command.Flags()
	flags.StringVar(&l.state, "state", "held", "`which` leases: held, expired or all")
	flags.StringVar(&l.query.Holder, "holder", "", "only leases whose holder contains this `text`")
	flags.StringVar(&l.order, "order", "id",
		"the `order`: id, oldest, or ending: what ends first, and last what never expires")
	flags.IntVar(&l.query.Limit, "limit", 100, "how `many` leases at the most")
	flags.StringVar(&l.query.After, "after", "", "begin behind this `id`; with --order id alone")
	flags.IntVar(&l.query.AfterSlot, "after-slot", 0, "and behind this slot `number` of it")
	flags.BoolVar(&l.query.Once, "once", false, "list what run --once-per, or a program's Once, has done and is doing")
	flags.StringVarP(&l.output, "output", "o", "table", "the `format`: table, json or ids")
	return command
}

func (l *lister) run() (err error) {
	if l.query.State, err = choose("--state", l.state, leaseview.States); err != nil {
		return err
	}
	if l.query.Order, err = choose("--order", l.order, leaseview.Orders); err != nil {
		return err
	}
	formats := map[string]func(page) error{"table": l.writeTable, "json": writeJSON, "ids": l.writeIDs}
	write, err := choose("--output", l.output, formats)
	switch {
	case err != nil:
		return err
	case l.query.Limit < 1:
		return fmt.Errorf("--limit %d: want 1 or more", l.query.Limit)
	case l.query.After != "" && l.query.Order != dbmutex.ByLockID:
		return errors.New("--after goes with --order id alone")
	case l.query.AfterSlot < 0, l.query.AfterSlot > 0 && l.query.After == "":
		return fmt.Errorf("--after-slot %d: want a slot, and --after", l.query.AfterSlot)
	}
	return l.ask(func(db *dbmutex.DB) error {
		p, more, err := leases(db, l.query)
		if err != nil {
			return err
		}
		if err := write(p); err != nil {
			return err
		}
		switch {
		case l.output == "json":
		case p.more:
			last := p.leases[len(p.leases)-1]
			text := "more follow: --after " + strconv.Quote(last.LockID)
			if last.Slot > 0 {
				text += fmt.Sprintf(" --after-slot %d", last.Slot)
			}
			l.log.Info(text)
		case more:
			l.log.Info("more follow: --limit says how many are listed")
		}
		return nil
	})
}

// choose is what one of the words of a flag stands for.
func choose[T any](flag, word string, words map[string]T) (T, error) {
	value, found := words[word]
	if !found {
		return value, fmt.Errorf("%s %q: want one of %s", flag, word, strings.Join(slices.Sorted(maps.Keys(words)), ", "))
	}
	return value, nil
}

// leases reads as many as the query's limit says, also if the database does not give so many at once, and whether more
// follow.
func leases(db *dbmutex.DB, query dbmutex.LeaseQuery) (p page, more bool, err error) {
	limit := query.Limit
	query.Limit = min(limit+1, pageLimit)
	for lease, err := range db.AllLeases(query) {
		if err != nil {
			return p, false, err
		}
		if more = len(p.leases) == limit; more {
			break
		}
		p.leases = append(p.leases, lease)
	}
	if len(p.leases) == 0 {
		stats, err := db.LeaseStats()
		p.now = stats.Now
		return p, false, err
	}
	p.now = p.leases[0].Now
	p.more = more && query.Order == dbmutex.ByLockID
	return p, more, nil
}

func (l *lister) writeTable(p page) error {
	switch {
	case len(p.leases) > 0 && l.query.Once:
		return writeOnces(os.Stdout, p.leases)
	case len(p.leases) > 0:
		return writeTable(os.Stdout, p.leases)
	case l.query.Once && l.query.State != dbmutex.LeasesExpired:
		l.log.Info("nothing is done, and nothing runs")
		return nil
	}
	l.log.Info(map[string]string{
		"held": "nothing is held", "expired": "nothing ran out", "all": "nothing is held, and nothing ran out",
	}[l.state])
	return nil
}

// writeIDs writes each once, however many leases it has.
func (l *lister) writeIDs(p page) error {
	written := map[string]bool{}
	for _, lease := range p.leases {
		if written[lease.LockID] {
			continue
		}
		written[lease.LockID] = true
		if _, err := fmt.Println(printable(lease.LockID)); err != nil {
			return err
		}
	}
	return nil
}

func writeJSON(p page) error { return p.writeJSON(os.Stdout) }
