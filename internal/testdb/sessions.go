package testdb

import "testing"

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

// Victims is the same database for sessions that kill ends, all that there are.
func (d *Database) Victims(t testing.TB) (_ *Database, kill func() error) {
	t.Helper()
	return d.victims(t, d)
}
