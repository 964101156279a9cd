package dbmutex

import "testing"

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
