package contender

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"gorm.io/driver/mysql"
	"gorm.io/gorm"
)

// OnMySQL are those on MySQL or MariaDB. The first is the measure of all.
func OnMySQL() []Contender {
	of := func(name, note string, open func(dsn string) (Instance, error)) Contender {
		return Contender{
			Name: name, Module: module, Store: MySQL, Own: true, Waits: true, Crash: "all of it", Note: note,
			Open: func(_ context.Context, where Where) (Instance, error) { return open(where.DSN) },
		}
	}
	ours := []Contender{
		of("dbmutex", "Do, plain gorm.Open, so that each statement is prepared anew", func(dsn string) (Instance, error) {
			return openOnMySQL(dsn, gorm.Config{})
		}),
		of("dbmutex, interpolateParams", "the same with interpolateParams=true in the DSN", func(dsn string) (Instance, error) {
			return openOnMySQL(interpolating(dsn), gorm.Config{})
		}),
		of("dbmutex, PrepareStmt", "the same with gorm.Config{PrepareStmt: true}", func(dsn string) (Instance, error) {
			return openOnMySQL(dsn, gorm.Config{PrepareStmt: true})
		}),
	}
	return append([]Contender{bareOnMySQL()}, append(ours, namedLock(), gocronGormLock(MySQL, mysql.Open))...)
}

const (
	mysqlTable = `CREATE TABLE IF NOT EXISTS bare (
	id bigint AUTO_INCREMENT PRIMARY KEY,
	lock_id varbinary(1024) NOT NULL UNIQUE,
	creation_time datetime(6) NOT NULL,
	expires_at datetime(6),
	holder text NOT NULL,
	lease_id varchar(64) NOT NULL)`
	mysqlAcquire = `INSERT INTO bare (lock_id, creation_time, expires_at, holder, lease_id)
VALUES (?, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND, ?, ?)`
	mysqlRelease = `DELETE FROM bare WHERE lock_id = ? AND lease_id = ?`
)

var (
	errDuplicate = &driver.MySQLError{Number: 1062}
	errDeadlock  = &driver.MySQLError{Number: 1213}
)

// interpolating is a DSN by which the driver puts arguments into statements, rather than preparing them.
func interpolating(dsn string) string {
	config, err := driver.ParseDSN(dsn)
	if err != nil {
		return dsn // for the driver to refuse
	}
	config.InterpolateParams = true
	return config.FormatDSN()
}

func bareOnMySQL() Contender {
	return Contender{
		Name: "bare pair", Store: MySQL, Waits: true,
		Crash: "all of it",
		Note:  "an INSERT and a DELETE through database/sql, prepared, again after a deadlock; waits by asking every 5 ms",
		Open: func(ctx context.Context, where Where) (Instance, error) {
			db, err := openSQL("mysql", where.DSN)
			if err != nil {
				return nil, err
			}
			b := &bareMySQL{db: db}
			if _, err = db.ExecContext(ctx, mysqlTable); err == nil {
				b.acquiring, err = db.PrepareContext(ctx, mysqlAcquire)
			}
			if err == nil {
				b.releasing, err = db.PrepareContext(ctx, mysqlRelease)
			}
			return b, err
		},
	}
}

type bareMySQL struct {
	db                   *sql.DB
	acquiring, releasing *sql.Stmt
}

// execute runs a statement until it is no deadlock's victim: InnoDB has those even between different ids.
func execute(ctx context.Context, stmt *sql.Stmt, args ...any) (sql.Result, error) {
	for {
		result, err := stmt.ExecContext(ctx, args...)
		if !errors.Is(err, errDeadlock) {
			return result, err
		}
	}
}

func (b *bareMySQL) acquire(ctx context.Context, id string) (leaseID string, err error) {
	leaseID = rand.Text()
	_, err = execute(ctx, b.acquiring, id, TTL.Microseconds(), Holder, leaseID)
	return leaseID, err
}

func (b *bareMySQL) give(ctx context.Context, id, leaseID string) error {
	result, err := execute(ctx, b.releasing, id, leaseID)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		return errors.Join(err, errLost)
	}
	return nil
}

func (b *bareMySQL) Cycle(ctx context.Context, id string) error {
	leaseID, err := b.acquire(ctx, id)
	if err != nil {
		return err
	}
	return b.give(ctx, id, leaseID)
}

func (b *bareMySQL) Try(ctx context.Context, id string) error {
	_, err := b.acquire(ctx, id)
	return mustBe(errDuplicate, err)
}

func (b *bareMySQL) Acquire(ctx context.Context, id string) (func() error, error) {
	for {
		leaseID, err := b.acquire(ctx, id)
		if err == nil {
			return func() error { return b.give(context.WithoutCancel(ctx), id, leaseID) }, nil
		}
		if !errors.Is(err, errDuplicate) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(barePoll):
		}
	}
}

func (b *bareMySQL) Fill(ctx context.Context, n int) error {
	for i := range n {
		if _, err := b.acquire(ctx, fmt.Sprintf("held %d", i+1)); err != nil {
			return err
		}
	}
	return nil
}

func (b *bareMySQL) Close() { _ = b.db.Close() }

// onMySQL is this package with rows that are made in MySQL's way.
type onMySQL struct{ *ours }

func openOnMySQL(dsn string, config gorm.Config) (Instance, error) {
	o, err := openDBMutex(mysql.Open(dsn), config)
	return onMySQL{o}, err
}

func (o onMySQL) Fill(ctx context.Context, n int) error {
	const row = `INSERT INTO db_mutexes (lock_id, creation_time, expires_at, holder, lease_id)
VALUES (?, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6) + INTERVAL 1 HOUR, 'other/1', ?)`
	for i := range n {
		if err := o.db.WithContext(ctx).Exec(row, fmt.Sprintf("held %d", i+1), rand.Text()).Error; err != nil {
			return err
		}
	}
	return nil
}

func namedLock() Contender {
	return Contender{
		Name: "GET_LOCK", Store: MySQL, Waits: true, KeepsOne: true,
		Crash: "nothing; it ends with its connection, too",
		Note:  "GET_LOCK and RELEASE_LOCK through database/sql, with interpolateParams=true",
		Open: func(_ context.Context, where Where) (Instance, error) {
			db, err := openSQL("mysql", interpolating(where.DSN))
			return &named{db}, err
		},
	}
}

type named struct{ db *sql.DB }

// lock returns the connection that has the lock, or nil if somebody else had it for that long.
func (n *named) lock(ctx context.Context, id string, wait time.Duration) (*sql.Conn, error) {
	conn, err := n.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	var ok sql.NullBool
	err = conn.QueryRowContext(ctx, `SELECT GET_LOCK(?, ?)`, "bench "+id, wait.Seconds()).Scan(&ok)
	if err == nil && ok.Bool {
		return conn, nil
	}
	return nil, errors.Join(err, conn.Close())
}

func (n *named) give(ctx context.Context, conn *sql.Conn, id string) error {
	var ok sql.NullBool
	err := conn.QueryRowContext(ctx, `SELECT RELEASE_LOCK(?)`, "bench "+id).Scan(&ok)
	if err == nil && !ok.Bool {
		err = errLost
	}
	return errors.Join(err, conn.Close())
}

func (n *named) Cycle(ctx context.Context, id string) error {
	conn, err := n.lock(ctx, id, 0)
	if err == nil && conn == nil {
		err = errRefused
	}
	if err != nil {
		return err
	}
	return n.give(ctx, conn, id)
}

func (n *named) Try(ctx context.Context, id string) error {
	conn, err := n.lock(ctx, id, 0)
	if conn != nil {
		err = errors.Join(errNotRefused, conn.Close())
	}
	return err
}

func (n *named) Acquire(ctx context.Context, id string) (func() error, error) {
	conn, err := n.lock(ctx, id, time.Hour)
	if err == nil && conn == nil {
		err = errRefused
	}
	if err != nil {
		return nil, err
	}
	return func() error { return n.give(context.WithoutCancel(ctx), conn, id) }, nil
}

func (n *named) Fill(context.Context, int) error { return errors.ErrUnsupported }

func (n *named) Close() { _ = n.db.Close() }
