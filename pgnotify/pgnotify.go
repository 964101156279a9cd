// Package pgnotify makes waiting for a mutex on PostgreSQL quick across processes: a release notifies the waiters of
// other processes, which would otherwise find out when they ask the database next, within 0.4 seconds. Import it for its
// effect, in the processes that wait and in those that release:
//
//	import _ "github.com/gorm-dbmutex/dbmutex/pgnotify"
//
// Waiters of the releasing process then get the mutex from each other with one statement, but now and then, so that others
// have their turn.
//
// While anybody waits, the process keeps one connection of its own, beside the pool and like the pool's, that runs LISTEN
// (https://www.postgresql.org/docs/current/sql-notify.html). Where that is not to be had, as with PgBouncer in
// transaction mode or a driver other than pgx, waiters ask the database, and everything else is the same. Releases of
// leases that never expire, Mutex.ForceRelease, and the releases of Mutex.Transaction and Lease.ReleaseIn do not notify.
package pgnotify

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/gorm-dbmutex/dbmutex/internal/wake"
)

func init() { wake.Listen = listen }

func listen(ctx context.Context, pool *sql.DB, channel string, ready func(), notified func(payload string)) error {
	config, err := configOf(ctx, pool)
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{channel}.Sanitize()); err != nil {
		return err
	}
	ready()
	for {
		notification, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		notified(notification.Payload)
	}
}

// configOf is how the pool connects.
func configOf(ctx context.Context, pool *sql.DB) (config *pgx.ConnConfig, err error) {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	err = conn.Raw(func(driver any) error {
		pgxConn, ok := driver.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("pgnotify: the pool's driver is %T, not pgx", driver)
		}
		config = pgxConn.Conn().Config()
		config.OnNotification = nil // it is that connection's
		return nil
	})
	return config, err
}
