package contender

import (
	"context"
	"database/sql"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/wake"
	_ "github.com/gorm-dbmutex/dbmutex/pgnotify" // sets wake.Listen
)

// listen is what an import of pgnotify changes. It is off but for the contender that has it.
var listen = wake.Listen

func init() { Notify(false) }

// Notify makes this process be as one that imports pgnotify, or one that does not.
func Notify(on bool) {
	wake.Listen = nil
	if on {
		wake.Listen = listen
	}
}

const (
	module       = "github.com/gorm-dbmutex/dbmutex"
	durableLease = "the lock; a release may be undone, until the TTL"
)

func dbmutexes() []Contender {
	of := func(name, note string, config gorm.Config) Contender {
		return Contender{
			Name: name, Module: module, Store: Postgres, Own: true, Crash: durableLease, Note: note,
			Open: func(_ context.Context, where Where) (Instance, error) {
				return openDBMutex(postgres.Open(where.DSN), config)
			},
		}
	}
	all := []Contender{
		of("dbmutex", "Do, plain gorm.Open", gorm.Config{}),
		of("dbmutex with pgnotify", "the same where pgnotify is imported", gorm.Config{}),
		of("dbmutex, PrepareStmt", "the same with gorm.Config{PrepareStmt: true}", gorm.Config{PrepareStmt: true}),
		of("dbmutex, SkipDefaultTransaction", "the same with gorm.Config{SkipDefaultTransaction: true}",
			gorm.Config{SkipDefaultTransaction: true}),
	}
	for i := range all {
		all[i].Variant = i > 0
		all[i].Waits = i < 2 // the others wait as the first does
	}
	all[1].Switch = Notify
	return all
}

type ours struct {
	pool *sql.DB
	db   *dbmutex.DB
}

func openDBMutex(dialector gorm.Dialector, config gorm.Config) (*ours, error) {
	db, pool, err := openGORM(dialector, config)
	if err != nil {
		return nil, err
	}
	ttl := TTL
	if err := db.Use(dbmutex.New(dbmutex.Settings{TTL: &ttl, Holder: Holder})); err != nil {
		return nil, err
	}
	wrapped := dbmutex.Wrap(db)
	return &ours{pool, wrapped}, wrapped.Migrate()
}

func (o *ours) Cycle(ctx context.Context, id string) error {
	return o.db.WithContext(ctx).Mutex(id).Do(func(context.Context) error { return nil })
}

func (o *ours) Try(ctx context.Context, id string) error {
	return mustBe(dbmutex.ErrNotAcquired, o.Cycle(ctx, id))
}

func (o *ours) Acquire(ctx context.Context, id string) (func() error, error) {
	lease, err := o.db.WithContext(ctx).Mutex(id, dbmutex.WithWait(dbmutex.Forever)).Acquire()
	if err != nil {
		return nil, err
	}
	return lease.Release, nil
}

func (o *ours) Fill(ctx context.Context, n int) error {
	return o.db.WithContext(ctx).Exec(`INSERT INTO db_mutexes (lock_id, creation_time, expires_at, holder, lease_id)
SELECT 'held ' || n, now(), now() + interval '1 hour', 'other/1', md5(n::text) FROM generate_series(1, ?::int) n`, n).Error
}

func (o *ours) Close() { _ = o.pool.Close() }
