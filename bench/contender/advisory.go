package contender

import (
	"context"
	"errors"
	"hash/fnv"

	"github.com/jackc/pgx/v5/pgxpool"
)

func advisoryLock() Contender {
	return Contender{
		Name: "advisory lock", Store: Postgres, Waits: true, KeepsOne: true,
		Crash: "nothing; it ends with its connection, too",
		Note:  "pg_try_advisory_lock or pg_advisory_lock, and pg_advisory_unlock through pgxpool, prepared",
		Open: func(ctx context.Context, where Where) (Instance, error) {
			pool, err := openPgx(ctx, where.DSN)
			return &advisory{pool}, err
		},
	}
}

type advisory struct{ pool *pgxpool.Pool }

// key is an id as advisory locks have them. They are the whole database's, so each contender has its own.
func key(contender, id string) int64 {
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(contender + " " + id))
	return int64(hash.Sum64())
}

// on runs a statement that answers with a boolean on the lock's connection.
func (a *advisory) on(ctx context.Context, conn *pgxpool.Conn, function, id string) (ok bool, err error) {
	err = conn.QueryRow(ctx, `SELECT `+function+`($1)`, key("advisory", id)).Scan(&ok)
	return ok, err
}

func (a *advisory) Cycle(ctx context.Context, id string) error {
	return a.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		ok, err := a.on(ctx, conn, "pg_try_advisory_lock", id)
		if err != nil {
			return err
		}
		if !ok {
			return errRefused
		}
		return a.give(ctx, conn, id)
	})
}

func (a *advisory) give(ctx context.Context, conn *pgxpool.Conn, id string) error {
	ok, err := a.on(ctx, conn, "pg_advisory_unlock", id)
	if err == nil && !ok {
		err = errLost
	}
	return err
}

func (a *advisory) Try(ctx context.Context, id string) error {
	return a.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		ok, err := a.on(ctx, conn, "pg_try_advisory_lock", id)
		if ok {
			return errNotRefused
		}
		return err
	})
}

func (a *advisory) Acquire(ctx context.Context, id string) (func() error, error) {
	conn, err := a.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, key("advisory", id)); err != nil {
		conn.Release()
		return nil, err
	}
	return func() error {
		defer conn.Release()
		return a.give(context.WithoutCancel(ctx), conn, id)
	}, nil
}

func (a *advisory) Fill(context.Context, int) error { return errors.ErrUnsupported }

func (a *advisory) Close() { a.pool.Close() }
