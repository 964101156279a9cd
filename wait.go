package dbmutex

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/wake"
)

const (
	// The head of a queue asks the database after pollFirst, then after twice as long, up to pollLast, or when the lease
	// that is in its way runs out. A mutex that changes hands meanwhile is a busy one: it begins again.
	pollFirst = 5 * time.Millisecond
	pollLast  = 250 * time.Millisecond

	// pollBusy is pollLast where releases are not heard of and the mutex has changed hands during the wait: the gaps in
	// which it is free are short.
	pollBusy = 20 * time.Millisecond

	// A process that hands a mutex on to its own next waiter wins every race for it. So it stands back for yieldFor, to
	// let others go first, after localRuns runs of its own where somebody else has held the mutex within lately, and once
	// in that time in any case.
	localRuns = 4
	yieldFor  = 8 * time.Millisecond
	lately    = time.Second
)

// queueKey is a mutex, as this process's waiters see it.
type queueKey struct {
	pool      any
	table, id string
	notifies  bool // releases in other processes can be heard of
}

// hears says whether releases in other processes wake this process's waiters.
func (k queueKey) hears() bool { return k.notifies && wake.Listen != nil }

// queue is this process's waiters for one mutex, first come first served. Its head alone asks the database. Where releases
// are heard of in other processes, a releaser of this process hands it the mutex without its asking.
type queue struct {
	waiters []*waiter
	held    *HeldError // what a head saw last
	holder  *Lease     // the lease that a waiter acquired last
	taken   bool       // the last head acquired, so that the next has nothing to ask yet
	runs    int        // how often the mutex came to this process since it last stood back
	local   bool       // a waiter of this process had it last, as far as is known
	foreign time.Time  // when a head last saw it held by somebody else
	yielded time.Time  // when this process last stood back
}

// waiter is one acquire in a queue. All its tries are for the same lease, so that it knows as its own what a releaser
// handed it while the answer was lost.
type waiter struct {
	mutex   *Mutex
	request request
	head    chan struct{} // closed when it becomes the head
	wake    chan struct{} // holds an element when it is worth asking, or a lease has come

	// Guarded by waiting.mu:
	listening bool
	asking    bool   // it is at the database itself
	promised  bool   // a releaser is handing it the mutex
	lease     *Lease // what it has been handed
	doubt     bool   // a releaser may have handed it the mutex, but has no answer
	gone      bool   // it waits no more
}

// waiting has this process's queues, and what listens for them.
type waiting struct {
	mu        sync.Mutex
	queues    map[queueKey]*queue
	listeners map[*sql.DB]*listener
}

// listener is a connection that hears of releases in other processes, kept while anybody waits.
type listener struct {
	waiters int
	stop    context.CancelFunc
}

var queues = &waiting{queues: map[queueKey]*queue{}, listeners: map[*sql.DB]*listener{}}

// wait acquires the mutex, waiting for it as the settings say.
func (m *Mutex) wait() (lease *Lease, err error) {
	if m.settings.Wait == 0 {
		lease, _, err = m.try(m.request())
		return lease, err
	}
	var timeout <-chan time.Time
	if m.settings.Wait > 0 {
		timer := time.NewTimer(m.settings.Wait)
		defer timer.Stop()
		timeout = timer.C
	}
	w, q := queues.join(m.queue, m)
	defer func() {
		late, doubt := queues.leave(m.queue, w, lease)
		switch {
		case late != nil:
			late.undo()
		case doubt && lease == nil:
			_ = m.discard(w.request.proof)
		}
	}()

	pause, inTheWay, expired := time.Duration(-1), "", false
	select {
	case <-w.head: // and so it asks once, however short its wait
		pause = queues.firstPause(q)
	default:
		switch await(m.ctx, timeout, w.head, -1) {
		case woken:
			pause = queues.firstPause(q)
		case timedOut:
			if handed, promised := queues.stir(w); handed == nil && !promised {
				return nil, m.stillHeld(q)
			}
			expired = true
		case contextDone:
			return nil, m.failed(m.ctx, "wait for", m.ctx.Err())
		}
	}
	slowest := pollLast
	for poll := pollFirst; ; poll = min(2*poll, slowest) {
		reason := await(m.ctx, timeout, w.wake, pause)
		if reason == contextDone {
			return nil, m.failed(m.ctx, "wait for", m.ctx.Err())
		}
		expired = expired || reason == timedOut
		handed, promised := queues.stir(w)
		switch {
		case handed != nil:
			return handed, nil
		case promised: // it is on its way, for as long as a release may take
			pause = -1
			continue
		case reason == woken:
			poll = pollFirst
			expired = await(m.ctx, timeout, nil, queues.yield(q)) == timedOut || expired
		}
		var seen answer
		lease, seen, err = m.try(w.request)
		if !errors.Is(err, ErrNotAcquired) || expired {
			return lease, err
		}
		queues.saw(m.queue, w, q, seen, err)
		if seen.held != nil && seen.held.LeaseID != inTheWay {
			if inTheWay != "" && !m.queue.hears() {
				slowest = pollBusy
			}
			poll, inTheWay = pollFirst, seen.held.LeaseID
		}
		pause = poll/2 + rand.N(poll)
		if seen.left > 0 {
			pause = min(pause, seen.left+time.Millisecond)
		}
	}
}

// stillHeld is the error of a waiter that never came to ask: who holds the mutex, or that the database does not say.
func (m *Mutex) stillHeld(q *queue) error {
	if held := queues.lastHeld(q); held != nil {
		own := *held
		return &own
	}
	ctx, cancel := context.WithTimeout(m.ctx, time.Second)
	defer cancel()
	row, err := m.lookUp(ctx, "wait for")
	if err != nil {
		return err
	}
	return answer{held: row}.heldError(m.id)
}

// reason is why a waiter goes on.
type reason int

const (
	due reason = iota
	woken
	timedOut
	contextDone
)

// await waits for a signal, or for pause (0 not at all, < 0 for ever), the timeout or the context's end.
func await(ctx context.Context, timeout <-chan time.Time, signal <-chan struct{}, pause time.Duration) reason {
	if pause == 0 {
		return due
	}
	var timer <-chan time.Time
	if pause > 0 {
		t := time.NewTimer(pause)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-timer:
		return due
	case <-signal:
		return woken
	case <-timeout:
		return timedOut
	case <-ctx.Done():
		return contextDone
	}
}

// join puts a waiter at a queue's end.
func (a *waiting) join(key queueKey, m *Mutex) (*waiter, *queue) {
	w := &waiter{mutex: m, request: m.request(), head: make(chan struct{}), wake: make(chan struct{}, 1)}
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.queues[key]
	if q == nil {
		q = &queue{yielded: time.Now()}
		a.queues[key] = q
	}
	q.waiters = append(q.waiters, w)
	if q.waiters[0] == w {
		w.asking = true
		close(w.head)
	} else {
		a.listen(key, w)
	}
	return w, q
}

// leave takes a waiter out of its queue and makes the next one the head. It returns a lease that came too late, or whether
// there may be one.
func (a *waiting) leave(key queueKey, w *waiter, acquired *Lease) (late *Lease, doubt bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.queues[key]
	i := slices.Index(q.waiters, w)
	q.waiters = slices.Delete(q.waiters, i, i+1)
	w.gone = true
	if acquired != nil {
		q.held, q.holder, q.local = nil, acquired, true
		q.runs++
	} else {
		late = w.lease
	}
	switch {
	case len(q.waiters) == 0:
		delete(a.queues, key)
	case i == 0:
		q.taken = acquired != nil
		close(q.waiters[0].head)
	}
	a.unlisten(key, w)
	return late, w.doubt
}

// wake tells a queue's head that the mutex may be free.
func (a *waiting) wake(key queueKey) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if q := a.queues[key]; q != nil {
		q.waiters[0].signal()
	}
}

func (w *waiter) signal() {
	select {
	case w.wake <- struct{}{}:
	default: // it has been told already
	}
}

// receiver is the waiter that a releaser can hand the mutex to, if any: a head that is not at the database itself and has
// not been handed it already, unless it is time to let other processes go first. Without a TTL a lease whose waiter has
// gone could be left for good.
func (a *waiting) receiver(key queueKey) *waiter {
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.queues[key]
	if q == nil || !key.hears() || q.standsBack(time.Now()) {
		return nil
	}
	w := q.waiters[0]
	if !w.receptive() {
		return nil
	}
	w.promised = true
	return w
}

func (w *waiter) receptive() bool {
	return !w.asking && !w.promised && w.lease == nil && w.request.ttl != nil
}

// hand keeps the promise to a receiver, or takes it back where there is no lease; in doubt there may be one in the database.
// What comes too late is undone.
func (a *waiting) hand(w *waiter, lease *Lease, doubt bool) {
	a.mu.Lock()
	w.promised = false
	late := w.gone
	if !late {
		w.lease, w.doubt = lease, w.doubt || doubt
		w.signal()
	}
	a.mu.Unlock()
	switch {
	case late && lease != nil:
		lease.undo()
	case late && doubt:
		_ = w.mutex.discard(w.request.proof)
	}
}

// stir tells a waiter that is about to ask what a releaser has for it.
func (a *waiting) stir(w *waiter) (lease *Lease, promised bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.asking = w.lease == nil && !w.promised
	return w.lease, w.promised
}

// firstPause is how long a new head lets pass before it asks. Where its predecessor has just acquired, that one's release
// reaches it by itself.
func (a *waiting) firstPause(q *queue) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !q.taken {
		return 0
	}
	pause := pollLast
	if deadline, expires := q.holder.ExpiresAt(); expires {
		pause = min(pause, time.Until(deadline)+time.Millisecond)
	}
	return max(pause, time.Millisecond)
}

// saw keeps what a head learned of the holder. It waits again.
func (a *waiting) saw(key queueKey, w *waiter, q *queue, seen answer, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listen(key, w)
	w.asking = false
	errors.As(err, &q.held)
	if seen.held != nil && (q.holder == nil || seen.held.LeaseID != q.holder.proof.leaseID) {
		q.foreign, q.runs, q.local = time.Now(), 0, false
	}
}

// lastHeld is what a queue's heads saw last, if anything.
func (a *waiting) lastHeld(q *queue) *HeldError {
	a.mu.Lock()
	defer a.mu.Unlock()
	return q.held
}

// yield is for how long a head that was woken lets other processes go first.
func (a *waiting) yield(q *queue) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if !q.standsBack(now) {
		return 0
	}
	q.runs, q.yielded = 0, now
	return yieldFor
}

// standsBack says whether it is time to let other processes go first.
func (q *queue) standsBack(now time.Time) bool {
	return q.local && (now.Sub(q.yielded) >= lately || q.runs >= localRuns && now.Sub(q.foreign) <= lately)
}

// listen opens the listener with the first waiter on a pool that has to wait, unlisten closes it with the last.
func (a *waiting) listen(key queueKey, w *waiter) {
	pool, ok := key.pool.(*sql.DB)
	if !ok || !key.hears() || w.listening {
		return
	}
	w.listening = true
	if l := a.listeners[pool]; l != nil {
		l.waiters++
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	a.listeners[pool] = &listener{waiters: 1, stop: stop}
	go func() {
		pause := pollLast
		ready := func() { pause = pollLast; a.notified(pool, nil) }
		for ctx.Err() == nil {
			_ = wake.Listen(ctx, pool, notifyChannel, ready, func(id string) { a.notified(pool, &id) })
			_ = sleep(ctx, pause) // the poll goes on meanwhile
			pause = min(2*pause, time.Minute)
		}
	}()
}

func (a *waiting) unlisten(key queueKey, w *waiter) {
	if !w.listening {
		return
	}
	pool := key.pool.(*sql.DB)
	l := a.listeners[pool]
	if l.waiters--; l.waiters == 0 {
		l.stop()
		delete(a.listeners, pool)
	}
}

// notified wakes the heads of the queues for an id, or of all.
func (a *waiting) notified(pool *sql.DB, id *string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, q := range a.queues {
		if key.pool == pool && key.notifies && (id == nil || *id == key.id) {
			q.waiters[0].signal()
		}
	}
}
