// Fencing protects a store outside of the database from a holder that does not know yet that its lease is over. Every lease
// has a greater token than the leases before it. The store refuses a token that is smaller than the greatest it has seen.
//
//	go run ./examples/fencing
//
// The mutex is in a SQLite file in a temporary folder.
package main

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/glebarez/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
)

// Store is the other side: a file server, a queue, a device. It knows nothing of mutexes.
type Store struct {
	mu       sync.Mutex
	greatest int64
	value    string
}

// Put sets the value, unless somebody with a greater token has set it before.
func (s *Store) Put(token int64, value string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if token < s.greatest {
		return fmt.Errorf("the store has seen token %d, and refuses %d", s.greatest, token)
	}
	s.greatest, s.value = token, value
	return nil
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	folder, err := os.MkdirTemp("", "dbmutex-fencing-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	gdb, err := gorm.Open(sqlite.Open(filepath.Join(folder, "fencing.db")), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		return err
	}
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil {
		return err
	}
	db := dbmutex.Wrap(gdb)
	if err := db.Migrate(); err != nil {
		return err
	}
	mutex := db.Mutex("report", dbmutex.WithTTL(200*time.Millisecond), dbmutex.WithWait(dbmutex.Forever))
	store := &Store{}

	slow, err := mutex.Acquire()
	if err != nil {
		return err
	}
	fmt.Printf("The slow holder has token %d. It pauses, say for a suspended machine.\n", slow.Token())

	next, err := mutex.Acquire() // when the slow holder's lease has run out
	if err != nil {
		return err
	}
	fmt.Printf("The next holder has token %d. Its write: %s.\n", next.Token(), outcome(store.Put(next.Token(), "new")))

	fmt.Printf("The slow holder wakes up. Its write: %s.\n", outcome(store.Put(slow.Token(), "old")))
	fmt.Printf("Its release: %s.\n", outcome(slow.Release()))
	fmt.Printf("The next holder's release: %s.\n", outcome(next.Release()))
	fmt.Printf("The store's value is %q.\n", store.value)
	return nil
}

func outcome(err error) string {
	if err != nil {
		return err.Error()
	}
	return "done"
}
