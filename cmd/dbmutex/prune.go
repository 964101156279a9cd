package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gorm-dbmutex/dbmutex"
)

func newPrune(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "prune",
		Short: "Remove the rows of leases that ran out",
		Long: `Prune removes the rows of leases that ran out, and the records of run --once-per that are not to be kept any more;
on MySQL and MariaDB also the rows of free mutexes. It ends no lease.
Nothing needs it but the size of the table. It goes on for as long as a part of it is done within --timeout.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return g.withDB(false, g.prune) },
	}
}

func (g *global) prune(ctx context.Context, db *dbmutex.DB) error {
	var total int64
	for {
		var removed int64
		err := g.within(ctx, db, func(db *dbmutex.DB) (err error) {
			removed, err = db.Prune()
			return err
		})
		total += removed
		switch {
		case err == nil:
			_, err := fmt.Println("removed " + count(total, "row", "rows"))
			return err
		case errors.Is(err, context.DeadlineExceeded) && removed > 0: // it is a large table
		case total > 0:
			return fmt.Errorf("after %s were removed: %w", count(total, "row", "rows"), err)
		default:
			return err
		}
	}
}
