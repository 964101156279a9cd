package dbmutex

import (
	"database/sql"
	"strconv"
	"testing"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// Waiters is how many waiters this process has for a mutex.
func Waiters(m *Mutex) int {
	queues.mu.Lock()
	defer queues.mu.Unlock()
	q := queues.queues[m.key]
	if q == nil {
		return 0
	}
	return len(q.waiters)
}

// MutexOfOnce is what a Once is made of.
func MutexOfOnce(o *Once) *Mutex { return o.mutex }

// PruneRecords is what is done now and then after a success.
func PruneRecords(o *Once) error { return o.mutex.table.PruneRecords(o.mutex.ctx) }

// Receivable is whether a releaser could hand a mutex to a waiter of this process.
func Receivable(m *Mutex) bool {
	queues.mu.Lock()
	defer queues.mu.Unlock()
	q := queues.queues[m.key]
	return q != nil && len(q.waiters) > 0 && q.waiters[0].receptive()
}

// SawHeld is what the head of a mutex's queue has seen.
func SawHeld(m *Mutex) {
	queues.mu.Lock()
	defer queues.mu.Unlock()
	queues.queues[m.key].seen = &HeldError{LockID: m.id}
}

// JoinAsHead makes a waiter that does nothing, and tells what it was handed last.
func JoinAsHead(t testing.TB, m *Mutex) (lease func() *Lease) {
	w := queues.join(m)
	queues.mu.Lock()
	defer queues.mu.Unlock()
	w.stage = resting
	t.Cleanup(func() { queues.leave(w, nil) })
	return func() *Lease {
		queues.mu.Lock()
		defer queues.mu.Unlock()
		return w.lease
	}
}

// HeadOf makes a waiter that does nothing the head of a mutex's queue, and says whether it was woken since the last call.
func HeadOf(t testing.TB, m *Mutex) (woken func() bool) {
	w := queues.join(m)
	t.Cleanup(func() { queues.leave(w, nil) })
	return func() bool {
		select {
		case <-w.wake:
			return true
		default:
			return false
		}
	}
}

// Watch makes a watcher of a mutex that looks at nothing, and says whether it was told of news since the last call.
func Watch(t testing.TB, m *Mutex) (told func() bool) {
	news, stop := queues.watch(m)
	t.Cleanup(stop)
	return func() bool {
		select {
		case <-news:
			return true
		default:
			return false
		}
	}
}

// Watchers is how many watchers of a mutex this process has, and whether it remembers the mutex at all.
func Watchers(m *Mutex) (n int, remembered bool) {
	queues.mu.Lock()
	defer queues.mu.Unlock()
	q := queues.queues[m.key]
	if q == nil {
		return 0, false
	}
	return len(q.watchers), true
}

// Notify does what the listener does when it hears of a release.
func Notify(m *Mutex) {
	queues.wakeID(m.key.pool.(*sql.DB), strconv.FormatUint(uint64(m.table.ID()), 10), m.id)
}

// Strangers is how many waiters of other processes this process knows of, that have not had their turn.
func Strangers(m *Mutex) (n int) {
	queues.mu.Lock()
	defer queues.mu.Unlock()
	if q := queues.queues[m.key]; q != nil {
		for _, o := range q.others {
			if !o.over {
				n++
			}
		}
	}
	return n
}

// Linger changes how long queues stay, for a test that runs alone.
func Linger(t testing.TB, d time.Duration) {
	queues.mu.Lock()
	defer queues.mu.Unlock()
	before := linger
	linger = d
	t.Cleanup(func() {
		queues.mu.Lock()
		defer queues.mu.Unlock()
		linger = before
	})
}

// Hears is whether this process hears of releases and waiters in other processes.
func Hears(m *Mutex) bool {
	queues.mu.Lock()
	defer queues.mu.Unlock()
	q := queues.queues[m.key]
	return q != nil && q.hears()
}

// Reserve ends a lease and keeps the mutex under a ticket.
func Reserve(l *Lease, ticket string) (found bool, err error) {
	to := locktable.Reservation{Ticket: ticket, Holder: "the waiter", For: time.Minute, Message: "{}"}
	o := l.mutex.table.Reserve(l.parent, time.Now().Add(locktable.Limit), l.key, to, true)
	return o.Row == locktable.RowFound, o.Err
}

// PassDeadline sets a lease's deadline to a moment that has passed. Its timer stays.
func PassDeadline(l *Lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = time.Now().Add(-time.Millisecond)
}

// Withdraw gives up what is kept under a ticket.
func Withdraw(m *Mutex, ticket string) { m.withdraw(ticket, 0) }

// Remembered is how many tables a plugin keeps.
func Remembered(p *Plugin) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.tables)
}

// MutexOf is what a semaphore's verbs run on.
func MutexOf(s *Semaphore) *Mutex { return &s.m }

// SeenBy is what a waiter sees of a full semaphore: what tells whether one of its leases is another, and how much time the
// one that ends first has left.
func SeenBy(t testing.TB, s *Semaphore) (newest int64, left time.Duration) {
	t.Helper()
	answer, err := s.m.table.Acquire(s.m.ctx, s.m.request())
	if err != nil || answer.Token != 0 {
		t.Fatalf("the semaphore is not full: %v", err)
	}
	return answer.Newest, answer.Left
}

// FirstPause is how long the next head of a mutex's queue lets pass before it asks.
func FirstPause(m *Mutex) time.Duration {
	queues.mu.Lock()
	q := queues.queues[m.key]
	queues.mu.Unlock()
	if q == nil { // it has gone, and with it what it knew
		return 0
	}
	return queues.firstPause(q)
}

// Members is how many acquires on a mutex's table wait for others.
func Members(m *Mutex) int { return m.table.Waiting() }
