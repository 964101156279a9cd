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
