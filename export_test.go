package dbmutex

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
	return q != nil && !q.waiters[0].asking && !q.waiters[0].promised
}
