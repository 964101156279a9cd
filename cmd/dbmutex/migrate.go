package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/gorm-dbmutex/dbmutex"
)

func newMigrate(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "migrate",
		Short: "Make the table, or add what it lacks",
		Long: `Migrate makes the table of the mutexes, or adds what it lacks. It may run while mutexes are held, and on many
machines at once. It makes a SQLite file that is missing; no other command does.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return g.withDB(true, func(ctx context.Context, db *dbmutex.DB) error {
				if err := g.within(ctx, db, func(db *dbmutex.DB) error { return db.Migrate() }); err != nil {
					return err
				}
				g.log.Info("the table " + g.table + " is ready")
				return nil
			})
		},
	}
}
