package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/gorm-dbmutex/dbmutex"
)

func newForget(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "forget ID",
		Short: "Forget that a Once is done, so that it may run again",
		Long: `Forget removes the record of run --once-per, or of a program's Once, so that the work may run again. The id is that
of dbmutex list --once: ID@TIME. The exit code is 1 if there is no record, or if the work runs: then nothing is changed.`,
		Example: `  dbmutex list --once nightly-report@
  dbmutex forget nightly-report@2026-11-27T00:00:00Z`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return g.ask(func(db *dbmutex.DB) error { return g.forget(db, args[0]) })
		},
	}
}

func (g *global) forget(db *dbmutex.DB, id string) error {
	once := db.Once(id, time.Hour)
	record, err := once.Done()
	if err != nil {
		return err
	}
	switch err := once.Forget(); {
	case errors.Is(err, dbmutex.ErrNotAcquired):
		return &exitError{exitNo, fmt.Errorf("it runs, so that there is nothing to forget: %w", err)}
	case err != nil:
		return err
	case record == nil:
		return &exitError{exitNo, fmt.Errorf("%q is not done: there is nothing to forget (ids of --once-per are ID@TIME: "+
			"dbmutex list --once shows them)", id)}
	}
	g.log.Info(fmt.Sprintf("forgot that %q was done by %s", id, printable(record.Holder)), "lock_id", id)
	return nil
}
