// Package pgnotify makes waiting for a mutex on PostgreSQL quick across processes: a release notifies the waiters of other
// processes. Without it they find out when they ask the database next, within 0.4 seconds. Import the package for its
// effect, in all processes that use a mutex, so that nobody starves:
//
//	import _ "github.com/gorm-dbmutex/dbmutex/pgnotify"
//
// Waiters of the releasing process then get the mutex from each other with one statement. A waiter of another process tells
// that process that it waits. It has its turn after four runs, or after fewer if the releasing process has fewer clients.
// The mutex is then kept for the waiter, for a second or more. Meanwhile HeldError and Mutex.Holder name it.
//
// While anybody waits on a pool, and for some seconds after, the process keeps one connection beside the pool, which is like
// the pool's. So it does while anybody watches a mutex. It runs LISTEN
// (https://www.postgresql.org/docs/current/sql-notify.html). A process that only releases also keeps one, once it has seen
// that somebody waits elsewhere.
//
// LISTEN is impossible with a driver other than pgx, and behind PgBouncer in transaction mode. (The package finds out by a
// trial.) Waiters then ask the database again and again, and everything else is the same.
//
// These releases do not notify: that of a lease that never expires, Mutex.ForceRelease, Mutex.Transaction and
// Lease.ReleaseIn. While the mutex does not change hands, a waiter asks the database every 1 to 3 seconds, and may learn
// of such a release as late. A role that may not call pg_notify releases without.
package pgnotify

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/gorm-dbmutex/dbmutex/internal/wake"
)

func init() { wake.Listen = listen }

func listen(
	ctx context.Context, pool *sql.DB, channels []string, ready func(), notified func(channel, payload string),
) error {
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
	proof := "dbmutex " + rand.Text()
	session, err := run(ctx, conn, listenTo(append(channels, proof)))
	if err != nil {
		return err
	}
	if err := prove(ctx, pool, conn, proof, notified); err != nil {
		unlisten(ctx, conn, session)
		return err
	}
	ready()
	for {
		notification, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		notified(notification.Channel, notification.Payload)
	}
}

// proofLimit is how long a notification may take.
const proofLimit = 2 * time.Second

// errUnproven is for a pooler in transaction mode: it answers LISTEN, but passes no notification on.
var errUnproven = errors.New("pgnotify: notifications do not reach this session")

// prove notifies the connection through the pool, and waits for the notification. If the connection notified itself, that
// would prove nothing: such a notification always comes, with the answer.
func prove(ctx context.Context, pool *sql.DB, conn *pgx.Conn, channel string, notified func(channel, payload string)) error {
	ctx, cancel := context.WithTimeout(ctx, proofLimit)
	defer cancel()
	if _, err := pool.ExecContext(ctx, "NOTIFY "+pgx.Identifier{channel}.Sanitize()); err != nil {
		return err
	}
	for {
		notification, err := conn.WaitForNotification(ctx)
		switch {
		case err != nil:
			return errors.Join(errUnproven, err)
		case notification.Channel == channel:
			return nil
		}
		notified(notification.Channel, notification.Payload)
	}
}

func listenTo(channels []string) (statements string) {
	for _, channel := range channels {
		statements += "LISTEN " + pgx.Identifier{channel}.Sanitize() + "; "
	}
	return statements
}

// unlisten ends LISTEN in a session that belongs to a pooler, which may give it to somebody else next.
func unlisten(ctx context.Context, conn *pgx.Conn, session string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	for range 10 {
		if reached, err := run(ctx, conn, "UNLISTEN *; "); err != nil || reached == session {
			return
		}
	}
}

// run runs statements in one session, and returns the session's process id.
func run(ctx context.Context, conn *pgx.Conn, statements string) (session string, err error) {
	results, err := conn.PgConn().Exec(ctx, statements+"SELECT pg_backend_pid()").ReadAll()
	if err != nil {
		return "", err
	}
	return string(results[len(results)-1].Rows[0][0]), nil
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
		config.OnNotification = nil // it is for the pool's connection alone
		return nil
	})
	return config, err
}
