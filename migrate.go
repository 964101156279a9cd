package dbmutex

import (
	"context"
	"time"
)

// migrationID is the mutex that Migrate holds.
const migrationID = "dbmutex.Migrate"

// migrationTTL is for how long a replica that crashed in Migrate keeps the others waiting.
const migrationTTL = 5 * time.Minute

// Migrate runs AutoMigrate of DBMutex and DBOnce, and then of models. Every replica of a program may call it at once; GORM's
// AutoMigrate then fails in some of them (https://github.com/go-gorm/gorm/issues/6618).
//
// It migrates the models under a mutex of its own, with renewal and outside of any transaction, and waits its turn until the
// handle's context is done. That mutex is "dbmutex.Migrate", should an operator have to force its release.
//
// It puts its own tables where mutexes look for them, in the main pool; AutoMigrate under dbresolver does not. On PostgreSQL
// it also sets vacuum_truncate=off for them, unless it is set: otherwise the plans of a mutex that is taken a thousand
// times a second get slower when VACUUM cuts the table.
//
// It returns what Mutex.Do returns: AutoMigrate's error, ErrTimeout if the lease ended meanwhile, the context's or the
// database's error. A failure leaves what was migrated before it.
func (db *DB) Migrate(models ...any) error {
	m := db.Mutex(migrationID, func(s *Settings) {
		*s = Settings{Holder: s.Holder, Observer: s.Observer}
		WithTTL(migrationTTL)(s)
		s.Wait, s.Renew = Forever, true
	})
	if m.err != nil {
		return m.err
	}
	if err := m.table.Migrate(m.ctx, &DBMutex{}); err != nil {
		return m.failed(m.ctx, "migrate", err)
	}
	if once, err := db.unnamed(true); err == nil { // else the NamingStrategy has no table for it
		if err := once.table.Migrate(m.ctx, &DBOnce{}); err != nil {
			return once.failed(m.ctx, "migrate", err)
		}
	}
	if len(models) == 0 {
		return nil
	}
	return m.Do(func(ctx context.Context) error {
		// dbresolver would ask a replica, which may be behind, what tables there are.
		return db.Gorm.WithContext(ctx).Set("gorm:db_resolver:write", true).AutoMigrate(models...)
	})
}
