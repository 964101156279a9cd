package testdb

import (
	"database/sql/driver"
	"testing"
)

// Limit is a setting of a session's that limits how long it may do something.
type Limit struct {
	Name, Value string // a second at the most
	Error       string // what the error says of a statement that exceeds it
}

// With is the same database for sessions that have a setting of the server's.
func (d *Database) With(name, value string) *Database {
	return &Database{d.Kind, d.with(d.DSN, name, value)}
}

// StatementLimits are the limits for a statement that waits.
func (d *Database) StatementLimits(t testing.TB) []Limit {
	t.Helper()
	return d.limits(t, d, false)
}

// IdleLimits are the limits for a transaction in which nothing is done.
func (d *Database) IdleLimits(t testing.TB) []Limit {
	t.Helper()
	return d.limits(t, d, true)
}

// Ordinary is the same database for sessions of a user whom the server's settings bind.
func (d *Database) Ordinary(t testing.TB) *Database {
	t.Helper()
	return d.ordinary(t, d)
}

// Granted is the same database for sessions of a user who has no rights but these, such as "SELECT ON db_mutexes".
func (d *Database) Granted(t testing.TB, rights ...string) *Database {
	t.Helper()
	return d.granted(t, d, rights)
}

// Victims is the same database for sessions that kill ends, all that there are.
func (d *Database) Victims(t testing.TB) (_ *Database, kill func() error) {
	t.Helper()
	return d.victims(t, d)
}

// Connector makes connections without a pool, for a test that wraps them. Each is a SQLConn.
func (d *Database) Connector(t testing.TB) driver.Connector {
	t.Helper()
	connector, err := d.connector(d.DSN)
	if err != nil {
		t.Fatalf("testdb: %v", err)
	}
	return connector
}

// SQLConn is what database/sql asks of a connection.
type SQLConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.NamedValueChecker
	driver.SessionResetter
}

// AtLevel is the same database, for sessions of an isolation level such as "repeatable read".
func (d *Database) AtLevel(t testing.TB, level string) *Database {
	t.Helper()
	return d.atLevel(t, d, level)
}
