package contender

import (
	"context"
	"database/sql"

	"cirello.io/pglock"
	_ "github.com/lib/pq" // the driver "postgres", which pglock.New wants
)

func pglocks() []Contender {
	of := func(name, driver, note string, client func(*sql.DB, ...pglock.ClientOption) (*pglock.Client, error)) Contender {
		return Contender{
			Name: name, Module: "cirello.io/pglock", Store: Postgres, Waits: true,
			Crash: "all of it",
			Note: note + "; without its heartbeat, as the others do not renew either; waits by asking every TTL, " +
				"which no block of the hot lock is long enough for",
			Open: func(_ context.Context, where Where) (Instance, error) {
				db, err := openSQL(driver, where.DSN)
				if err != nil {
					return nil, err
				}
				c, err := client(db, pglock.WithLeaseDuration(TTL), pglock.WithHeartbeatFrequency(0))
				if err == nil {
					err = c.TryCreateTable()
				}
				return &cirello{db, c}, err
			},
		}
	}
	all := []Contender{
		of("pglock", "postgres", "on database/sql with lib/pq, as its New demands", pglock.New),
		of("pglock on pgx", "pgx", "the same by its UnsafeNew, with pgx as the driver", pglock.UnsafeNew),
	}
	all[1].Variant = true
	return all
}

type cirello struct {
	db     *sql.DB
	client *pglock.Client
}

func (c *cirello) Cycle(ctx context.Context, id string) error {
	lock, err := c.client.AcquireContext(ctx, id)
	if err != nil {
		return err
	}
	return lock.Close()
}

func (c *cirello) Try(ctx context.Context, id string) error {
	_, err := c.client.AcquireContext(ctx, id, pglock.FailIfLocked())
	return mustBe(pglock.ErrNotAcquired, err)
}

func (c *cirello) Acquire(ctx context.Context, id string) (func() error, error) {
	lock, err := c.client.AcquireContext(ctx, id)
	if err != nil {
		return nil, err
	}
	return lock.Close, nil
}

func (c *cirello) Fill(ctx context.Context, n int) error {
	_, err := c.db.ExecContext(ctx, `INSERT INTO locks (name, record_version_number, owner)
SELECT 'held ' || n, nextval('locks_rvn'), 'other' FROM generate_series(1, $1::int) n`, n)
	return err
}

func (c *cirello) Close() { _ = c.db.Close() }
