package contender

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"

	gormlock "github.com/go-co-op/gocron-gorm-lock/v2"
	"github.com/jackc/pgx/v5/pgconn"
	"gorm.io/gorm"
)

func gocronGormLock(store Store, dialector func(dsn string) gorm.Dialector) Contender {
	return Contender{
		Name: "gocron-gorm-lock", Module: "github.com/go-co-op/gocron-gorm-lock/v2", Store: store,
		Crash: "all of it",
		Note: "plain gorm.Open; one cycle is one tick of a job, as a tick cannot be locked twice; does not wait; " +
			"deletes old ticks every 5 s, as by default",
		Open: func(_ context.Context, where Where) (Instance, error) {
			db, pool, err := openGORM(dialector(where.DSN), gorm.Config{})
			if err == nil {
				err = db.AutoMigrate(&gormlock.CronJobLock{})
			}
			if err != nil {
				return nil, err
			}
			locker, err := gormlock.NewGormLocker(db, Holder, gormlock.WithTTL(TTL), gormlock.WithJobIdentifier(tickOf))
			return &gocron{pool, db, locker}, err
		},
	}
}

type gocron struct {
	pool   *sql.DB
	db     *gorm.DB
	locker *gormlock.GormLocker
}

type tickKey struct{}

// tickOf is the tick in a context.
func tickOf(ctx context.Context, _ string) string { return ctx.Value(tickKey{}).(string) }

const heldTick = "held"

func (g *gocron) Cycle(ctx context.Context, id string) error {
	lock, err := g.locker.Lock(context.WithValue(ctx, tickKey{}, rand.Text()), id)
	if err != nil {
		return err
	}
	return lock.Unlock(ctx)
}

func (g *gocron) Try(ctx context.Context, id string) error {
	_, err := g.Acquire(ctx, id)
	if refused := (*pgconn.PgError)(nil); errors.As(err, &refused) && refused.Code == "23505" { // unique_violation
		return nil
	}
	return mustBe(errDuplicate, err)
}

// Acquire does not wait.
func (g *gocron) Acquire(ctx context.Context, id string) (func() error, error) {
	lock, err := g.locker.Lock(context.WithValue(ctx, tickKey{}, heldTick), id)
	if err != nil {
		return nil, err
	}
	return func() error { return lock.Unlock(ctx) }, nil
}

func (g *gocron) Fill(ctx context.Context, n int) error {
	if g.db.Name() != "postgres" {
		return errors.ErrUnsupported
	}
	return g.db.WithContext(ctx).Exec(`
INSERT INTO cron_job_locks (created_at, updated_at, job_name, job_identifier, worker, status)
SELECT now(), now(), 'held ' || n, 'held', 'other', ? FROM generate_series(1, ?::int) n`, gormlock.StatusRunning, n).Error
}

func (g *gocron) Close() {
	g.locker.Close()
	_ = g.pool.Close()
}
