package contender

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	_ "github.com/mattn/go-sqlite3" // the driver "sqlite3"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
)

// OnSQLite are those on a SQLite file. The first is the measure: the statements of a cycle, prepared.
func OnSQLite() []Contender {
	return []Contender{
		{
			Name: "bare statements, prepared", Store: SQLite,
			Note: "the statements of a cycle of dbmutex through database/sql and mattn/go-sqlite3",
			Open: func(ctx context.Context, where Where) (Instance, error) { return openBareSQLite(ctx, where, true) },
		},
		{
			Name: "bare statements", Store: SQLite,
			Note: "the same, not prepared, which is how GORM and so dbmutex run them",
			Open: func(ctx context.Context, where Where) (Instance, error) { return openBareSQLite(ctx, where, false) },
		},
		{
			Name: "dbmutex", Module: module, Store: SQLite, Own: true,
			Note: "Do, plain gorm.Open",
			Open: func(_ context.Context, where Where) (Instance, error) {
				o, err := openDBMutex(sqlite.Open(where.DSN), gorm.Config{})
				return onSQLite{o}, err
			},
		},
	}
}

// CrowdOnSQLite are OnSQLite, and the measure with one connection, for which writers queue in the order of their calls.
func CrowdOnSQLite() []Contender {
	all := OnSQLite()
	one := all[0]
	one.Name += ", one connection"
	one.Variant = true
	one.Note = "the same as the first, with SetMaxOpenConns(1)"
	open := one.Open
	one.Open = func(ctx context.Context, where Where) (Instance, error) {
		instance, err := open(ctx, where)
		if err == nil {
			instance.(*bareSQLite).db.SetMaxOpenConns(1)
		}
		return instance, err
	}
	return slices.Insert(all, 1, one)
}

const (
	sqliteTable = `CREATE TABLE IF NOT EXISTS bare (
	id integer PRIMARY KEY AUTOINCREMENT,
	lock_id text NOT NULL UNIQUE,
	creation_time datetime NOT NULL,
	expires_at datetime,
	holder text NOT NULL,
	lease_id text NOT NULL)`
	sqliteForm = `'%Y-%m-%d %H:%M:%f'`
	sqliteNow  = `strftime(` + sqliteForm + `, 'now')`
	sqliteLook = `SELECT holder, creation_time, expires_at, lease_id, expires_at < ` + sqliteNow + `,
	CAST((julianday(expires_at) - julianday('now')) * 86400000 AS INTEGER) FROM bare WHERE lock_id = ?`
	sqliteAcquire = `INSERT OR REPLACE INTO bare (lock_id, creation_time, expires_at, holder, lease_id)
SELECT ?, ` + sqliteNow + `, strftime(` + sqliteForm + `, 'now', ?), ?, ?
WHERE NOT EXISTS (SELECT 1 FROM bare
	WHERE lock_id = ? AND lease_id <> ? AND (lease_id <> ? OR expires_at IS NULL OR expires_at >= ` + sqliteNow + `))
RETURNING id`
	sqliteRelease = `DELETE FROM bare WHERE lock_id = ? AND lease_id = ?`
)

// bareSQLite runs the statements of a cycle.
type bareSQLite struct {
	db *sql.DB
	// Each is nil if it is not prepared.
	look, acquire, release *sql.Stmt
}

func openBareSQLite(ctx context.Context, where Where, prepare bool) (_ Instance, err error) {
	b := &bareSQLite{}
	if b.db, err = openSQL("sqlite3", where.DSN); err != nil {
		return nil, err
	}
	if _, err = b.db.ExecContext(ctx, sqliteTable); err != nil || !prepare {
		return b, err
	}
	for query, stmt := range map[string]**sql.Stmt{sqliteLook: &b.look, sqliteAcquire: &b.acquire, sqliteRelease: &b.release} {
		if *stmt, err = b.db.PrepareContext(ctx, query); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (b *bareSQLite) query(ctx context.Context, stmt *sql.Stmt, query string, args ...any) *sql.Row {
	if stmt != nil {
		return stmt.QueryRowContext(ctx, args...)
	}
	return b.db.QueryRowContext(ctx, query, args...)
}

// answers says whose the row is that is there, if any, and whether it has ended.
func (b *bareSQLite) answers(ctx context.Context, id string) (leaseID string, ended bool, err error) {
	var holder string
	var since, expires time.Time
	var left int64
	err = b.query(ctx, b.look, sqliteLook, id).Scan(&holder, &since, &expires, &leaseID, &ended, &left)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	return leaseID, ended, err
}

// take acquires a free lock.
func (b *bareSQLite) take(ctx context.Context, id string, ttl time.Duration) (leaseID string, err error) {
	seen, ended, err := b.answers(ctx, id)
	if err != nil {
		return "", err
	}
	if seen != "" && !ended {
		return "", errRefused
	}
	leaseID = rand.Text()
	lasts := fmt.Sprintf("+%.3f seconds", ttl.Seconds())
	var token int64
	return leaseID, patiently(func() error {
		return b.query(ctx, b.acquire, sqliteAcquire, id, lasts, Holder, leaseID, id, leaseID, seen).Scan(&token)
	})
}

func (b *bareSQLite) give(ctx context.Context, id, leaseID string) (err error) {
	var result sql.Result
	err = patiently(func() error {
		if b.release != nil {
			result, err = b.release.ExecContext(ctx, id, leaseID)
		} else {
			result, err = b.db.ExecContext(ctx, sqliteRelease, id, leaseID)
		}
		return err
	})
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		return errors.Join(err, errLost)
	}
	return nil
}

// patiently runs a statement until no other connection locks it out for all of the driver's 5 s.
func patiently(statement func() error) error {
	for {
		err := statement()
		if err == nil || !strings.Contains(err.Error(), "database is locked") { // the driver's own type needs cgo
			return err
		}
	}
}

func (b *bareSQLite) Cycle(ctx context.Context, id string) error {
	leaseID, err := b.take(ctx, id, TTL)
	if err != nil {
		return err
	}
	return b.give(ctx, id, leaseID)
}

func (b *bareSQLite) Try(ctx context.Context, id string) error {
	seen, ended, err := b.answers(ctx, id)
	if err == nil && (seen == "" || ended) {
		err = errNotRefused
	}
	return err
}

func (b *bareSQLite) Acquire(context.Context, string) (func() error, error) {
	return nil, errors.ErrUnsupported
}

func (b *bareSQLite) Fill(ctx context.Context, n int) error {
	for i := range n {
		if _, err := b.take(ctx, fmt.Sprintf("held %d", i+1), time.Hour); err != nil {
			return err
		}
	}
	return nil
}

func (b *bareSQLite) Close() { _ = b.db.Close() }

// onSQLite is this package with rows that are made in SQLite's way.
type onSQLite struct{ *ours }

func (o onSQLite) Fill(ctx context.Context, n int) error {
	return o.db.WithContext(ctx).Exec(`INSERT INTO db_mutexes (lock_id, creation_time, expires_at, holder, lease_id)
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
SELECT 'held ' || n, `+sqliteNow+`, strftime(`+sqliteForm+`, 'now', '+1 hour'), 'other/1', 'lease' || n FROM numbers`,
		n).Error
}
