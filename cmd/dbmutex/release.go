package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/leaseview"
)

// releaser is one dbmutex release.
type releaser struct {
	*global

	id, lease        string
	force, yes, once bool
}

const releaseWarning = "Its work is not stopped. It learns of this by its next renewal, or at its end. " +
	"Until then the next holder may run beside it."

func newRelease(g *global) *cobra.Command {
	r := &releaser{global: g}
	command := &cobra.Command{
		Use:   "release ID --lease LEASE | [--once] --force",
		Short: "End the lease of a mutex, whosever it is",
		Long: "Release ends a lease. " + releaseWarning + `

--lease ends exactly the lease that dbmutex show, or list -o json, has shown. A successor is spared: the exit code is 1 if
that lease had ended. --force ends the lease that is there, whichever it is. In a terminal you must then type the mutex's id,
and only the lease that you have seen is ended; elsewhere you must say --yes. The exit code is 1 if there was no lease.

What run --slots holds has a lease for each slot. --lease ends one of them; --force ends none, and says which there are.

--once --force ends the run that is under way of run --once-per, or of a program's Once, so that others may try. A record
stays: dbmutex forget removes it.`,
		Example: `  dbmutex show nightly-report
  dbmutex release nightly-report --lease TKL4YA3ZLFCWPPMSJJH5FEAHQU`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.id = args[0]
			switch byLease := cmd.Flags().Changed("lease"); {
			case byLease == r.force:
				return errors.New("want either --lease LEASE or --force")
			case byLease && r.once:
				return errors.New("--once goes with --force alone")
			case byLease:
				return r.ask(r.releaseLease)
			case isatty.IsTerminal(os.Stdin.Fd()):
				return r.withDB(false, r.releaseSeen)
			case !r.yes:
				return errors.New("--force needs --yes, as there is no terminal to type the id in")
			}
			return r.ask(r.releaseAny)
		},
	}
	flags := command.Flags()
	flags.StringVar(&r.lease, "lease", "", "the id of the `lease` to end")
	flags.BoolVar(&r.force, "force", false, "end the lease that is there, whichever it is")
	flags.BoolVar(&r.once, "once", false, "end a run of run --once-per, or of a program's Once")
	flags.BoolVar(&r.yes, "yes", false, "do so without a terminal")
	return command
}

// releaseLease ends the lease whose id is known.
func (r *releaser) releaseLease(db *dbmutex.DB) error {
	released, err := leaseview.Release(silent(db), r.id, r.lease)
	switch {
	case err != nil:
		return err
	case !released:
		return &exitError{exitNo, errors.New("that lease had ended: nothing was released")}
	}
	r.log.Info(fmt.Sprintf("released %q", r.id), "lock_id", r.id)
	return nil
}

// releaseSeen shows the lease, and ends it when its mutex's id was typed.
func (r *releaser) releaseSeen(ctx context.Context, db *dbmutex.DB) error {
	var leases []dbmutex.LeaseInfo
	err := r.within(ctx, db, func(db *dbmutex.DB) (err error) {
		leases, err = r.find(db)
		return err
	})
	switch {
	case err != nil:
		return err
	case len(leases) == 0 || leases[0].Slot > 0 || leases[0].Done():
		return r.none(leases)
	case r.once:
		err = writeOnce(os.Stdout, leases[0])
	default:
		err = writeText(os.Stdout, leases[:1])
	}
	if err != nil {
		return err
	}
	fmt.Fprint(os.Stderr, releaseWarning+"\nType the mutex's id to release it: ")
	typed, err := typedLine(ctx)
	switch {
	case err != nil:
		return err
	case typed != r.id:
		return errors.New("that is not the id: nothing was released")
	}
	if r.once {
		return r.within(ctx, db, r.releaseAny)
	}
	r.lease = leases[0].LeaseID
	return r.within(ctx, db, r.releaseLease)
}

// typedLine reads a line from the terminal, until the context is done.
func typedLine(ctx context.Context) (string, error) {
	lines := make(chan string, 1)
	go func() {
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil {
			line = "" // what is not complete is not the id
		}
		lines <- strings.TrimRight(line, "\r\n")
	}()
	select {
	case line := <-lines:
		return line, nil
	case <-ctx.Done():
		return "", errors.New("nothing was released")
	}
}

// releaseAny ends whichever lease is there.
func (r *releaser) releaseAny(db *dbmutex.DB) error {
	told := &forced{}
	forceRelease := silent(db).Mutex(r.id, dbmutex.WithObserver(told)).ForceRelease
	if r.once {
		forceRelease = silent(db).Once(r.id, time.Hour, dbmutex.WithObserver(told)).ForceRelease
	}
	switch err := forceRelease(); {
	case err != nil:
		return err
	case told.Event == nil:
		others, err := r.find(db)
		if err != nil {
			return err
		}
		return r.none(others)
	}
	r.log.Info(fmt.Sprintf("released %q, which %s had", r.id, printable(told.Holder)), "lock_id", r.id)
	return nil
}

// silent is the handle without GORM's log, which would say of a release what the command says itself.
func silent(db *dbmutex.DB) *dbmutex.DB { return db.Session(&gorm.Session{Logger: logger.Discard}) }

// find is what holds the id.
func (r *releaser) find(db *dbmutex.DB) ([]dbmutex.LeaseInfo, error) {
	if r.once {
		return onceRow(db, r.id)
	}
	return leaseview.Find(db, r.id)
}

// none is the error of --force if the mutex is not held, or nobody runs the work of a Once. A semaphore of that id may be
// held, or a record kept.
func (r *releaser) none(others []dbmutex.LeaseInfo) error {
	permits := slices.DeleteFunc(others, func(lease dbmutex.LeaseInfo) bool { return lease.Slot == 0 })
	switch {
	case r.once && len(others) > 0:
		return &exitError{exitNo, fmt.Errorf("nobody runs %q, as it is done: dbmutex forget lets it run again", r.id)}
	case r.once:
		return &exitError{exitNo, fmt.Errorf("nobody runs %q: nothing was released", r.id)}
	case len(permits) == 0:
		return &exitError{exitNo, fmt.Errorf("%q is not held: nothing was released", r.id)}
	}
	which := make([]string, len(permits))
	for i, p := range permits {
		which[i] = fmt.Sprintf("--lease %s of %s in slot %d", printable(p.LeaseID), printable(p.Holder), p.Slot)
	}
	return fmt.Errorf("%q has %s, and --force does not choose: nothing was released; want one of: %s",
		r.id, count(int64(len(permits)), "holder", "holders"), strings.Join(which, ", "))
}

// forced is told of a lease that was ended by force.
type forced struct{ *dbmutex.Event }

// Observe keeps the event.
func (f *forced) Observe(ctx context.Context, e dbmutex.Event) context.Context {
	f.Event = &e
	return ctx
}
