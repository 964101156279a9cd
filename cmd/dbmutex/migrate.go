package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/gorm-dbmutex/dbmutex"
)

func newMigrate(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "migrate",
		Short: "Make the tables, or add what they lack",
		Long: `Migrate makes the table of the mutexes and that of run --once-per, or adds what they lack. It may run while mutexes
are held, and on many machines at once. It makes a SQLite file that is missing; no other command does.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return g.withDB(true, func(ctx context.Context, db *dbmutex.DB) error {
				if err := g.within(ctx, db, func(db *dbmutex.DB) error { return db.Migrate() }); err != nil {
					return err
				}
				g.log.Info("the tables " + g.table + " and " + onceTable(g.table) + " are ready")
				return nil
			})
		},
	}
}
