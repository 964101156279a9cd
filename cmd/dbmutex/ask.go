package main

import (
	"context"
	"fmt"
	"os/signal"
	"syscall"

	"github.com/gorm-dbmutex/dbmutex"
)

// withDB runs fn on the database. A signal that ends programs ends the context.
func (g *global) withDB(mayMake bool, fn func(ctx context.Context, db *dbmutex.DB) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	db, err := g.open(ctx, mayMake)
	if err != nil {
		return err
	}
	defer closeSoon(db)
	return fn(ctx, db)
}

// ask is withDB for what must be done within the timeout.
func (g *global) ask(fn func(db *dbmutex.DB) error) error {
	return g.withDB(false, func(ctx context.Context, db *dbmutex.DB) error { return g.within(ctx, db, fn) })
}

// within runs fn on a handle whose time is limited to the timeout.
func (g *global) within(ctx context.Context, db *dbmutex.DB, fn func(db *dbmutex.DB) error) error {
	limited, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	err := fn(db.WithContext(limited))
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("no answer within %v: %w", g.timeout, err)
	}
	return err
}
