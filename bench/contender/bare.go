package contender

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	bareTable = `CREATE TABLE IF NOT EXISTS bare (
	id bigserial PRIMARY KEY,
	lock_id varchar(256) NOT NULL UNIQUE,
	creation_time timestamptz NOT NULL,
	expires_at timestamptz,
	holder text NOT NULL,
	lease_id varchar(64) NOT NULL)`
	bareAcquire = `INSERT INTO bare (lock_id, expires_at, holder, lease_id, creation_time)
VALUES ($1, clock_timestamp() + $2::bigint * interval '1 microsecond', $3, $4, clock_timestamp())
ON CONFLICT (lock_id) DO UPDATE SET expires_at = excluded.expires_at, holder = excluded.holder,
	lease_id = excluded.lease_id, creation_time = excluded.creation_time
WHERE bare.expires_at <= clock_timestamp() RETURNING id`
	bareRelease = `DELETE FROM bare WHERE lock_id = $1 AND lease_id = $2`

	barePoll = 5 * time.Millisecond
)

// bares are the measure, and the same with a release that does not wait for the disk.
func bares() []Contender {
	return []Contender{
		{
			Name: "bare pair", Store: Postgres, Waits: true,
			Crash: "all of it",
			Note:  "an upsert and a DELETE through pgxpool, prepared; waits by asking every 5 ms",
			Open:  openBare(bareRelease),
		},
		{
			Name: "bare pair, asynchronous DELETE", Store: Postgres, Variant: true,
			Crash: "the lock; a release may be undone",
			Note:  "the same, but the DELETE returns set_config('synchronous_commit', 'off', true)",
			Open:  openBare(bareRelease + ` RETURNING set_config('synchronous_commit', 'off', true)`),
		},
	}
}

type bare struct {
	pool    *pgxpool.Pool
	release string
}

func openBare(release string) func(context.Context, Where) (Instance, error) {
	return func(ctx context.Context, where Where) (Instance, error) {
		pool, err := openPgx(ctx, where.DSN)
		if err == nil {
			_, err = pool.Exec(ctx, bareTable)
		}
		return &bare{pool, release}, err
	}
}

func (b *bare) acquire(ctx context.Context, id string) (leaseID string, err error) {
	leaseID = rand.Text()
	var row int64
	err = b.pool.QueryRow(ctx, bareAcquire, id, TTL.Microseconds(), Holder, leaseID).Scan(&row)
	return leaseID, err
}

func (b *bare) give(ctx context.Context, id, leaseID string) error {
	tag, err := b.pool.Exec(ctx, b.release, id, leaseID)
	if err == nil && tag.RowsAffected() != 1 {
		err = errLost
	}
	return err
}

func (b *bare) Cycle(ctx context.Context, id string) error {
	leaseID, err := b.acquire(ctx, id)
	if err != nil {
		return err
	}
	return b.give(ctx, id, leaseID)
}

func (b *bare) Try(ctx context.Context, id string) error {
	_, err := b.acquire(ctx, id)
	return mustBe(pgx.ErrNoRows, err)
}

func (b *bare) Acquire(ctx context.Context, id string) (func() error, error) {
	for {
		leaseID, err := b.acquire(ctx, id)
		if err == nil {
			return func() error { return b.give(context.WithoutCancel(ctx), id, leaseID) }, nil
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(barePoll):
		}
	}
}

func (b *bare) Fill(ctx context.Context, n int) error {
	_, err := b.pool.Exec(ctx, `INSERT INTO bare (lock_id, expires_at, holder, lease_id, creation_time)
SELECT 'held ' || n, now() + interval '1 hour', 'other/1', md5(n::text), now() FROM generate_series(1, $1::int) n`, n)
	return err
}

func (b *bare) Close() { b.pool.Close() }

// mustBe is nil for the error of a refusal.
func mustBe(refusal, err error) error {
	switch {
	case err == nil:
		return errNotRefused
	case errors.Is(err, refusal):
		return nil
	}
	return err
}
