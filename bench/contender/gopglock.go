package contender

import (
	"context"
	"database/sql"
	"errors"

	"github.com/allisson/go-pglock/v3"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
)

func goPglock() Contender {
	return Contender{
		Name: "go-pglock", Module: "github.com/allisson/go-pglock/v3", Store: Postgres, Waits: true, KeepsOne: true,
		Crash: "nothing; it ends with its connection, too",
		Note:  "advisory locks on database/sql, with pgx as the driver",
		Open: func(_ context.Context, where Where) (Instance, error) {
			db, err := openSQL("pgx", where.DSN)
			return &allisson{db}, err
		},
	}
}

type allisson struct{ db *sql.DB }

func (a *allisson) Cycle(ctx context.Context, id string) error {
	lock, err := pglock.NewLock(ctx, key("go-pglock", id), a.db)
	if err != nil {
		return err
	}
	ok, err := lock.Lock(ctx)
	if err == nil && !ok {
		err = errRefused
	}
	if err == nil {
		err = lock.Unlock(ctx)
	}
	return errors.Join(err, lock.Close())
}

func (a *allisson) Try(ctx context.Context, id string) error {
	lock, err := pglock.NewLock(ctx, key("go-pglock", id), a.db)
	if err != nil {
		return err
	}
	ok, err := lock.Lock(ctx)
	if ok {
		err = errNotRefused
	}
	return errors.Join(err, lock.Close())
}

func (a *allisson) Acquire(ctx context.Context, id string) (func() error, error) {
	lock, err := pglock.NewLock(ctx, key("go-pglock", id), a.db)
	if err != nil {
		return nil, err
	}
	if err := lock.WaitAndLock(ctx); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return func() error {
		return errors.Join(lock.Unlock(context.WithoutCancel(ctx)), lock.Close())
	}, nil
}

func (a *allisson) Fill(context.Context, int) error { return errors.ErrUnsupported }

func (a *allisson) Close() { _ = a.db.Close() }
