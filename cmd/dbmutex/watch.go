package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/gorm-dbmutex/dbmutex"
)

// watcher is one dbmutex watch.
type watcher struct {
	*global

	interval time.Duration
	query    dbmutex.LeaseQuery

	terminal bool
	said     string // what was written last, or what failed, but for the times in it
}

// mostWatched is how many leases are looked at.
const mostWatched = 10_000

func newWatch(g *global) *cobra.Command {
	w := &watcher{global: g}
	command := &cobra.Command{
		Use:   "watch [PREFIX]",
		Short: "Show again and again which mutexes are held",
		Long: `Watch shows which mutexes are held, or those whose id begins with PREFIX, until it is ended. In a terminal it draws
the table of dbmutex list anew. Elsewhere it writes a line of its JSON at first, and whenever a lease has come or
gone; renewals are no change. It goes on while the database does not answer, and writes a line when it answers again. ^C and
TERM end it with the exit code 0.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if w.interval <= 0 {
				return fmt.Errorf("--interval %v: want a time above 0", w.interval)
			}
			w.query = dbmutex.LeaseQuery{Prefix: strings.Join(args, ""), Limit: mostWatched}
			w.terminal = isatty.IsTerminal(os.Stdout.Fd())
			return w.withDB(false, w.watch)
		},
	}
	command.Flags().DurationVar(&w.interval, "interval", 2*time.Second, "how long to wait between two looks")
	return command
}

// watch looks again and again. That the first look fails is an error.
func (w *watcher) watch(ctx context.Context, db *dbmutex.DB) error {
	ticks := time.NewTicker(w.interval)
	defer ticks.Stop()
	for first := true; ; first = false {
		var p page
		err := w.within(ctx, db, func(db *dbmutex.DB) (err error) {
			p, _, err = leases(db, w.query)
			return err
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && first:
			return err
		case err != nil:
			w.complain(err)
		default:
			if err := w.write(p); err != nil {
				return err
			}
		}
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// complain says once that the database does not answer.
func (w *watcher) complain(err error) {
	if text := "the database does not answer: " + oneLine(err.Error()); text != w.said {
		w.log.Warn(text)
		w.said = text
	}
}

func (w *watcher) write(p page) error {
	if w.terminal {
		return w.draw(p)
	}
	var seen strings.Builder
	seen.WriteString("leases:")
	for _, lease := range p.leases {
		fmt.Fprintf(&seen, "%q %q\n", lease.LockID, lease.LeaseID)
	}
	if seen.String() == w.said {
		return nil
	}
	w.said = seen.String()
	return p.writeJSON(os.Stdout)
}

// draw clears the screen, and writes the table.
func (w *watcher) draw(p page) error {
	w.said = ""
	var screen strings.Builder
	fmt.Fprintf(&screen, "\x1b[H\x1b[2J%s, every %v\n\n", utc(p.now), w.interval)
	if len(p.leases) == 0 {
		screen.WriteString("Nothing is held\n")
	} else if err := writeTable(&screen, p.leases); err != nil {
		return err
	}
	_, err := fmt.Print(screen.String())
	return err
}
