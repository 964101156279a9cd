package dbmutex

import (
	"testing"
	"time"
)

// Waiters is how many waiters this process has for a mutex.
func Waiters(m *Mutex) int {
	queues.mu.Lock()
	defer queues.mu.Unlock()
	q := queues.queues[m.queue]
	if q == nil {
		return 0
	}
	return len(q.waiters)
}

// Receivable is whether a releaser could hand a mutex to a waiter of this process.
func Receivable(m *Mutex) bool {
	queues.mu.Lock()
	defer queues.mu.Unlock()
	q := queues.queues[m.queue]
	return q != nil && len(q.waiters) > 0 && q.waiters[0].receptive()
}

// JoinAsHead makes a waiter that does nothing, and tells what it was handed last.
func JoinAsHead(t testing.TB, m *Mutex) (lease func() *Lease) {
	w, _ := queues.join(m.queue, m)
	queues.mu.Lock()
	defer queues.mu.Unlock()
	w.asking = false
	t.Cleanup(func() { queues.leave(m.queue, w, nil) })
	return func() *Lease {
		queues.mu.Lock()
		defer queues.mu.Unlock()
		return w.lease
	}
}

// Strangers is how many waiters of other processes this process knows of, that have not had their turn.
func Strangers(m *Mutex) (n int) {
	queues.mu.Lock()
	defer queues.mu.Unlock()
	if q := queues.queues[m.queue]; q != nil {
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
	q := queues.queues[m.queue]
	return q != nil && q.hears()
}

// Reserve ends a lease and keeps the mutex under a ticket.
func Reserve(l *Lease, ticket string) (found bool, err error) {
	to := turn{candidate{ticket, "the waiter", time.Minute.Microseconds()}, "{}"}
	found, _, err = l.reserve(to, time.Now().Add(settleLimit))
	return found, err
}

// Withdraw gives up what is kept under a ticket.
func Withdraw(m *Mutex, ticket string) { m.withdraw(ticket, 0) }
