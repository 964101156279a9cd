package contender

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
)

// OnceOnPostgres are ways to do work once, each behind a Cycle, which is a first run, and a Try, which finds that the work
// is done. The first two are the measures: the bare pair of a first run, and a mutex of a run that is not the first.
func OnceOnPostgres() []Contender {
	measures := []Contender{bares()[0], dbmutexes()[0], bareRecord()}
	return append(append(measures, onces(Postgres, postgres.Open)...), gocronGormLock(Postgres, postgres.Open))
}

// OnceOnMySQL are the same on MySQL or MariaDB.
func OnceOnMySQL() []Contender {
	measures := OnMySQL()[:2]
	return append(append(measures, onces(MySQL, mysql.Open)...), gocronGormLock(MySQL, mysql.Open))
}

func onces(store Store, dialector func(dsn string) gorm.Dialector) (all []Contender) {
	for _, c := range []struct {
		name, note   string
		transactions bool
	}{
		{"dbmutex, Once", "Once.Do, plain gorm.Open, a record kept for an hour", false},
		{"dbmutex, Once in a transaction", "Once.Transaction, likewise", true},
	} {
		all = append(all, Contender{
			Name: c.name, Module: module, Store: store, Own: true, Crash: "all of it", Note: c.note,
			Open: func(_ context.Context, where Where) (Instance, error) {
				o, err := openDBMutex(dialector(where.DSN), gorm.Config{})
				return &once{o, c.transactions}, err
			},
		})
	}
	return all
}

// kept is for how long what is done is known.
const kept = time.Hour

type once struct {
	*ours
	transactions bool
}

func (o *once) visit(ctx context.Context, id string) (ran bool, err error) {
	work := o.db.WithContext(ctx).Once(id, kept)
	if o.transactions {
		err = work.Transaction(func(*gorm.DB) error { ran = true; return nil })
	} else {
		err = work.Do(func(context.Context) error { ran = true; return nil })
	}
	return ran, err
}

// Cycle is a first run.
func (o *once) Cycle(ctx context.Context, id string) error {
	ran, err := o.visit(ctx, id)
	if err == nil && !ran {
		err = errRefused
	}
	return err
}

// Try finds the record.
func (o *once) Try(ctx context.Context, id string) error {
	ran, err := o.visit(ctx, id)
	if err == nil && ran {
		err = errNotRefused
	}
	return err
}

func (o *once) Acquire(context.Context, string) (func() error, error) {
	return nil, errors.ErrUnsupported
}

// Fill makes a record.
func (o *once) Fill(ctx context.Context, n int) error { return fillOneByOne(ctx, o, n) }

// fillOneByOne is Fill for those whose first run leaves what Try finds.
func fillOneByOne(ctx context.Context, instance Instance, n int) error {
	for i := range n {
		if err := instance.Cycle(ctx, fmt.Sprintf("held %d", i+1)); err != nil {
			return err
		}
	}
	return nil
}

const (
	recordTable = `CREATE TABLE IF NOT EXISTS record (
	id bigserial PRIMARY KEY,
	lock_id varchar(256) NOT NULL UNIQUE,
	creation_time timestamptz NOT NULL,
	expires_at timestamptz,
	holder text NOT NULL,
	lease_id varchar(64) NOT NULL);
CREATE INDEX IF NOT EXISTS record_expires_at ON record (expires_at)`
	recordAcquire = `INSERT INTO record (lock_id, expires_at, holder, lease_id, creation_time)
VALUES ($1, clock_timestamp() + $2::bigint * interval '1 microsecond', $3, $4, clock_timestamp())
ON CONFLICT (lock_id) DO NOTHING RETURNING id`
	recordDone = `UPDATE record SET lease_id = 'done', expires_at = clock_timestamp() + $3::bigint * interval '1 microsecond'
WHERE lock_id = $1 AND lease_id = $2`
)

func bareRecord() Contender {
	return Contender{
		Name: "bare record", Store: Postgres, Crash: "all of it",
		Note: "an INSERT ON CONFLICT DO NOTHING and an UPDATE through pgxpool, prepared, with an index on expires_at",
		Open: func(ctx context.Context, where Where) (Instance, error) {
			pool, err := openPgx(ctx, where.DSN)
			if err == nil {
				_, err = pool.Exec(ctx, recordTable)
			}
			return &record{pool}, err
		},
	}
}

type record struct{ pool *pgxpool.Pool }

func (r *record) acquire(ctx context.Context, id string) (leaseID string, err error) {
	leaseID = rand.Text()
	var row int64
	err = r.pool.QueryRow(ctx, recordAcquire, id, TTL.Microseconds(), Holder, leaseID).Scan(&row)
	return leaseID, err
}

// Cycle is a first run.
func (r *record) Cycle(ctx context.Context, id string) error {
	leaseID, err := r.acquire(ctx, id)
	if err != nil {
		return err
	}
	tag, err := r.pool.Exec(ctx, recordDone, id, leaseID, kept.Microseconds())
	if err == nil && tag.RowsAffected() != 1 {
		err = errLost
	}
	return err
}

// Try finds the record.
func (r *record) Try(ctx context.Context, id string) error {
	_, err := r.acquire(ctx, id)
	return mustBe(pgx.ErrNoRows, err)
}

func (r *record) Acquire(context.Context, string) (func() error, error) {
	return nil, errors.ErrUnsupported
}

// Fill makes a record.
func (r *record) Fill(ctx context.Context, n int) error { return fillOneByOne(ctx, r, n) }

func (r *record) Close() { r.pool.Close() }
