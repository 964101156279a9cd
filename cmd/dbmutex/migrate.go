package main

import (
	"context"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func newMigrate(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "migrate",
		Short: "Make the table, or add what it lacks",
		Long: `Migrate makes the table of the mutexes, or adds what it lacks. It may run while mutexes are held, and on many
machines at once. It makes a SQLite file that is missing; no other command does.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			ctx, cancel := context.WithTimeout(ctx, g.timeout)
			defer cancel()
			db, err := g.open(ctx, true)
			if err != nil {
				return err
			}
			defer closeSoon(db)
			if err := db.WithContext(ctx).Migrate(); err != nil {
				return err
			}
			g.log.Info("the table " + g.table + " is ready")
			return nil
		},
	}
}
