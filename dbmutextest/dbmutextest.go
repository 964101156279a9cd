// Package dbmutextest helps to test code that uses mutexes of package dbmutex. It needs no server: Open gives a test a
// SQLite database of its own, with a driver in pure Go. The other functions work with any handle, also of a server.
//
// It is a module of its own, for tests alone:
//
//	go get github.com/gorm-dbmutex/dbmutex/dbmutextest
//
// The driver has the name sqlite in database/sql. A program that imports modernc.org/sqlite, whose name is the same, cannot
// import this package.
package dbmutextest

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"github.com/glebarez/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/ends"
)

// Open opens a new SQLite database in a temporary file. The plugin has its default settings, and the lock's table is there.
// When the test ends, the database is closed and removed. Nothing is logged: give a Session a Logger to see more. A failure
// ends the test.
//
// Many goroutines and many handles may use the database. Code that wants a *gorm.DB gets the field Gorm.
func Open(t testing.TB) *dbmutex.DB {
	t.Helper()
	file := filepath.Join(t.TempDir(), "test.db") // its removal comes after the end of the pool
	dsn := file + "?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)"
	gdb, err := gorm.Open(sqlite.Open(dsn), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatalf("dbmutextest: open a SQLite database: %v", err)
	}
	pool, err := gdb.DB()
	if err != nil {
		t.Fatalf("dbmutextest: open a SQLite database: %v", err)
	}
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Errorf("dbmutextest: close the database: %v", err)
		}
	})
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil {
		t.Fatalf("dbmutextest: register the plugin: %v", err)
	}
	db := dbmutex.Wrap(gdb)
	if err := db.Migrate(); err != nil {
		t.Fatalf("dbmutextest: make the lock's table: %v", err)
	}
	return db
}

// Hold lets somebody else hold the mutex: its holder is "somebody else", for 30 minutes. release ends that, and so does the
// test's end; release may be called again, and on any goroutine. It is no error if the lease was taken away meanwhile.
//
// A mutex that is held already ends the test, and so does any other failure. A release that fails makes the test fail.
func Hold(t testing.TB, db *dbmutex.DB, id string) (release func()) {
	t.Helper()
	if db == nil || db.Gorm == nil {
		t.Fatalf("dbmutextest: hold %q: the handle is nil", id)
	}
	lease, err := db.WithContext(context.Background()).Mutex(id, somebodyElse).Acquire()
	if err != nil {
		t.Fatalf("dbmutextest: hold %q for somebody else: %v", id, err)
	}
	release = sync.OnceFunc(func() {
		if err := lease.Release(); err != nil && !errors.Is(err, dbmutex.ErrTimeout) {
			t.Errorf("dbmutextest: somebody else's release of %q: %v", id, err)
		}
	})
	t.Cleanup(release)
	return release
}

// somebodyElse has settings of its own, whatever the plugin's are.
func somebodyElse(s *dbmutex.Settings) {
	*s = dbmutex.DefaultSettings()
	s.Holder = "somebody else"
}

// RunOut makes a lease run out now, as if its TTL had passed without a renewal. Its context has ended when RunOut returns,
// and the mutex is free for others. Its row is there until somebody comes. So the work gets dbmutex.ErrTimeout: if nobody
// came, with Lost false. Within the work, dbmutex.LeaseFrom finds the lease.
//
// A lease that was lost or released already, one without a TTL and a failure of the database end the test. Nothing happens
// if it ran out before. A transaction that has pinned the lease keeps RunOut waiting, on SQLite for ever if it is the
// test's own.
func RunOut(t testing.TB, lease *dbmutex.Lease) {
	t.Helper()
	if err := ends.RunOut(lease); err != nil {
		t.Fatalf("dbmutextest: let a lease run out: %v", err)
	}
}

// Lose takes a lease's row away, as dbmutex.Mutex.ForceRelease does, and lets the lease renew. So its context has ended when
// Lose returns, the mutex is free, and the work gets dbmutex.ErrTimeout with Lost true.
//
// A lease that was lost or released already and a failure of the database end the test. A transaction that has pinned the
// lease keeps Lose waiting, for 5 seconds at the most.
func Lose(t testing.TB, lease *dbmutex.Lease) {
	t.Helper()
	if err := ends.Lose(lease); err != nil {
		t.Fatalf("dbmutextest: take a lease away: %v", err)
	}
}

// Held says whether anybody holds the mutex now. A failure ends the test.
func Held(t testing.TB, db *dbmutex.DB, id string) bool {
	t.Helper()
	if db == nil || db.Gorm == nil {
		t.Fatalf("dbmutextest: is %q held: the handle is nil", id)
	}
	holder, err := db.WithContext(context.Background()).Mutex(id).Holder()
	if err != nil {
		t.Fatalf("dbmutextest: is %q held: %v", id, err)
	}
	return holder != nil
}
