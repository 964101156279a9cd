// Package contender has what the benchmark compares: this package, its peers and the bare statements, each behind one
// small interface, and each as its own documentation uses it. Pool size and TTL are the same for all; intervals of
// heartbeats and of polling are their defaults.
package contender

import (
	"context"
	"errors"
	"time"

	"gorm.io/driver/postgres"
)

const (
	// TTL is that of every lease.
	TTL = 20 * time.Second
	// Pool is how many connections each may have, and keep.
	Pool = 16
	// Holder is who holds the rows of those that keep a text for people.
	Holder = "bench/1"
)

// Store is the server that a contender needs.
type Store string

// The stores.
const (
	Postgres      Store = "PostgreSQL"
	DurableRedis  Store = "Redis, appendfsync always"
	VolatileRedis Store = "Redis, in memory"
	SQLite        Store = "SQLite"
	MySQL         Store = "MySQL" // or MariaDB
)

// Where is what a contender opens: a schema, a database or a file of its own.
type Where struct {
	DSN     string // of PostgreSQL, with a search_path, of MySQL, or of SQLite
	Redis   string // host:port
	RedisDB int
}

// Contender is one way to lock.
type Contender struct {
	Name    string
	Module  string // that it is from, "" for bare statements
	Store   Store
	Own     bool   // it is this package
	Variant bool   // it differs from another in a setting, and is left out when others hold many locks
	Crash   string // what a crash of the server leaves of a lock
	Note    string // how it is used here, if that is not plain
	Open    func(ctx context.Context, where Where) (Instance, error)

	Waits    bool // for a held lock, in Acquire
	KeepsOne bool // keeps a connection meanwhile

	// Switch, unless nil, makes ready for its own operations, and then for those of others.
	Switch func(on bool)
}

// Instance is one pool of a contender, which is safe for many goroutines.
type Instance interface {
	// Cycle acquires and releases a free lock.
	Cycle(ctx context.Context, id string) error
	// Try is refused a lock that another instance holds, which is no error.
	Try(ctx context.Context, id string) error
	// Acquire waits for the lock and returns what releases it.
	Acquire(ctx context.Context, id string) (release func() error, err error)
	// Fill makes n locks that others hold for an hour, or returns errors.ErrUnsupported.
	Fill(ctx context.Context, n int) error
	// Close closes the pool.
	Close()
}

var (
	errRefused    = errors.New("a free lock was refused")
	errNotRefused = errors.New("a held lock was not refused")
	errLost       = errors.New("the lock was lost")
)

// All are those on servers, but for MySQL. The first is the measure of all.
func All() []Contender {
	all := append(bares(), dbmutexes()...)
	all = append(all, pglocks()...)
	all = append(all, gocronGormLock(Postgres, postgres.Open), goPglock(), advisoryLock())
	for _, store := range []Store{DurableRedis, VolatileRedis} {
		all = append(all, redisLock(store), redsyncLock(store))
	}
	return all
}

// ByName is one of All, or of OnMySQL.
func ByName(store Store, name string) (Contender, bool) {
	for _, c := range append(All(), OnMySQL()...) {
		if c.Store == store && c.Name == name {
			return c, true
		}
	}
	return Contender{}, false
}
