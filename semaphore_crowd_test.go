package dbmutex_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// witness counts who works, outside of any database.
type witness struct {
	mu     sync.Mutex
	inside map[int]bool // by slot
	runs   int
	tokens map[int]int64 // the last of each slot
	errs   []error
}

// enter and leave are called by who has a permit.
func (w *witness) enter(n, slot int, token int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.runs++
	switch {
	case slot < 1 || slot > n:
		w.errs = append(w.errs, fmt.Errorf("slot %d", slot))
	case w.inside[slot] || len(w.inside) >= n:
		w.errs = append(w.errs, fmt.Errorf("slot %d is the second of its kind, or one too many beside %v", slot, w.inside))
	case token <= w.tokens[slot]:
		w.errs = append(w.errs, fmt.Errorf("slot %d has the token %d after %d", slot, token, w.tokens[slot]))
	}
	w.inside[slot], w.tokens[slot] = true, token
}

func (w *witness) leave(slot int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.inside, slot)
}

// serve is for processes that have no other way to the witness. It answers each line that it has read.
func (w *witness) serve(t *testing.T, n int) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					var slot int
					var token int64
					if _, err := fmt.Sscan(lines.Text(), &slot, &token); err == nil && token != 0 {
						w.enter(n, slot, token)
					} else {
						w.leave(slot)
					}
					_, _ = fmt.Fprintln(conn)
				}
			}()
		}
	}()
	return l.Addr().String()
}

const (
	crowdN          = 4
	crowdRounds     = 8
	witnessVariable = "DBMUTEX_TEST_WITNESS"
)

// crowd is a child process's task: goroutines that work under permits, and tell the parent's witness.
func crowd(db *dbmutex.DB, _ io.Reader) error {
	errs := make(chan error)
	for range crowdN {
		go func() { errs <- oneOfTheCrowd(db) }()
	}
	var all error
	for range crowdN {
		all = errors.Join(all, <-errs)
	}
	return all
}

func oneOfTheCrowd(db *dbmutex.DB) error {
	conn, err := net.Dial("tcp", os.Getenv(witnessVariable))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	answers := bufio.NewReader(conn)
	tell := func(slot int, token int64) error {
		if _, err := fmt.Fprintln(conn, slot, token); err != nil {
			return err
		}
		_, err := answers.ReadString('\n')
		return err
	}
	for range crowdRounds {
		err := db.Semaphore("api", crowdN, dbmutex.WithWait(dbmutex.Forever)).Do(func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			return errors.Join(tell(lease.Slot(), lease.Token()), tell(lease.Slot(), 0))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func TestNoMoreThanNHaveAPermit(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		w := &witness{inside: map[int]bool{}, tokens: map[int]int64{}}
		address := w.serve(t, crowdN)
		var children []*testprocess.Process
		for range 2 {
			children = append(children, testprocess.Start(t, d, "crowd", witnessVariable+"="+address))
		}
		var wg sync.WaitGroup
		for worker := range 2 * crowdN {
			own := db
			if worker%2 == 0 {
				own = open(t, d)
			}
			s := own.WithContext(limited(t)).Semaphore("api", crowdN, dbmutex.WithWait(dbmutex.Forever))
			wg.Go(func() {
				for round := range crowdRounds {
					lease, err := s.Acquire()
					if err != nil {
						t.Error(err)
						return
					}
					w.enter(crowdN, lease.Slot(), lease.Token())
					w.leave(lease.Slot())
					if (worker+round)%4 == 0 { // it vanishes
						expireSlot(t, db, lease)
					} else if err := lease.Release(); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		for _, child := range children {
			child.End(t)
		}
		w.mu.Lock() // its server has had the children's calls
		defer w.mu.Unlock()
		require.NoError(t, errors.Join(w.errs...))
		require.Equal(t, 4*crowdN*crowdRounds, w.runs)
	})
}

// Tries that race for the last free slots must not find it taken without having seen all taken.
func TestOneTryTakesTheOnlyFreeSlot(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		const n = 6
		s := db.Semaphore("api", n)
		for range 6 {
			errs := make(chan error, n)
			for range n {
				go func() {
					_, err := s.Acquire()
					errs <- err
				}()
			}
			for range n {
				require.NoError(t, <-errs, "there were as many slots as tries")
			}
			_ = requireFull(t, s)
			for range n {
				require.NoError(t, s.ForceRelease())
			}
		}
	})
}

// On MySQL and MariaDB no statement of the lock's waits within the server, or is the victim of a deadlock.
func TestPermitsDoNotDeadlock(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t).NewServer(t, "innodb_print_all_deadlocks = ON", "max_connections = 1000").Database()
	for _, level := range []string{"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"} {
		require.NoError(t, d.Open(t).Exec(`SET GLOBAL TRANSACTION ISOLATION LEVEL `+level).Error)
		db := open(t, d).WithContext(limited(t)) // a new pool
		var wg sync.WaitGroup
		for worker := range 16 {
			wg.Go(func() {
				for i := range 8 {
					s := db.Semaphore(fmt.Sprint("api ", (worker+i)%2), 1+i%12, dbmutex.WithWait(dbmutex.Forever))
					if err := useOnce(db, s, i); err != nil {
						t.Errorf("%s: %v", level, err)
						return
					}
				}
			})
		}
		wg.Wait()
		_, err := db.Prune()
		require.NoError(t, err)
	}
	var engine, state string
	require.NoError(t, open(t, d).Raw(`SHOW ENGINE INNODB STATUS`).Row().Scan(&engine, new(string), &state))
	require.NotContains(t, state, "LATEST DETECTED DEADLOCK")
}

// useOnce takes a permit in one of the ways that there are.
func useOnce(db *dbmutex.DB, s *dbmutex.Semaphore, i int) error {
	switch i % 3 {
	case 0:
		return s.Do(nothing)
	case 1:
		return s.Transaction(func(*gorm.DB) error { return nil })
	}
	lease, err := s.Acquire()
	if err != nil {
		return err
	}
	return errors.Join(db.Gorm.Transaction(lease.Guard), db.Gorm.Transaction(lease.ReleaseIn), lease.Release())
}
