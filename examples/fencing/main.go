// Fencing protects a store outside of the database from a holder that does not know yet that its lease is over. Every lease
// has a greater token than the leases before it. The store refuses a token that is smaller than the greatest it has seen.
//
//	go run ./examples/fencing
//	go run ./examples/fencing -dsn mysql://user:password@localhost/database
//
// Without -dsn the mutex is in a temporary SQLite file.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"sync"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/examples/internal/database"
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
	dsn := flag.String("dsn", "", database.Usage)
	flag.Parse()
	if err := run(*dsn); err != nil {
		log.Fatal(err)
	}
}

func run(dsn string) (err error) {
	d, err := database.New(dsn)
	if err != nil {
		return err
	}
	gdb, err := d.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Remove(&dbmutex.DBMutex{}, &dbmutex.DBOnce{})) }()
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
