package dbmutex

import (
	"database/sql"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
	"github.com/gorm-dbmutex/dbmutex/internal/wake"
)

// sweepPause is between two looks at queues that may go.
const sweepPause = 150 * time.Millisecond

// linger is for how long a queue stays after its last use, with what it knows. Tests change it, under queueSet.mu.
var linger = 3 * time.Second

// queueKey is a mutex, as this process's waiters see it.
type queueKey struct {
	pool      any
	table, id string
	notifies  bool // releases in other processes can be heard of
	semaphore bool
}

// listens says whether this process's queue can have a listener.
func (k queueKey) listens() bool { return k.notifies && wake.Listen != nil }

// takesTurns says whether processes tell each other of their waiters, and hand what they release on. Those of a semaphore
// are woken, and ask.
func (k queueKey) takesTurns() bool { return k.listens() && !k.semaphore }

// noticeKey is what a notification tells of a mutex, or of a semaphore.
type noticeKey struct {
	pool      any
	id        string
	semaphore bool
}

func (k queueKey) notice() noticeKey { return noticeKey{k.pool, k.id, k.semaphore} }

// queue is this process's waiters for one mutex, first come first served, and what it knows of those of other processes. Its
// head alone asks the database. If releases are heard of in other processes, a releaser of this process hands it the mutex
// without its asking.
type queue struct {
	fairness
	key      queueKey
	table    locktable.Table
	waiters  []*waiter
	watchers []chan struct{} // each holds an element when it is worth looking
	listener *listener       // nil: it does not listen
	used     time.Time       // it stays for a while after this
	seen     *HeldError      // what a head saw last
	seenEnds time.Time       // when that ends unless it is renewed; zero = never
	holder   *Lease          // the lease that the last head acquired; nil if it did not
	changes  int             // how often it heard that the mutex changes hands
	trip     time.Duration   // how long a question took last
}

// stage is how far a waiter has come. docs/architecture.md has the picture.
type stage int

const (
	resting  stage = iota // it waits for its turn, for a signal or for the next question
	asking                // it is at the database
	promised              // a releaser is handing it the mutex
	hurried               // the same, but its time is over, so that it is at the database as well
	handed                // it has been handed a lease
	gone                  // it waits no more, and has no lease
	served                // it waits no more, and has a lease
)

// waiter is one acquire in a queue. All its tries are for the same lease, so that it knows as its own what a releaser
// handed it while the answer was lost.
type waiter struct {
	mutex   *Mutex
	queue   *queue
	request locktable.Request
	head    chan struct{} // closed when it becomes the head
	wake    chan struct{} // holds an element when it is worth asking, or a lease has come

	doubtful bool  // a question for its request may still be under way: see locktable.Answer.Doubt
	busy     error // of the last question that others kept from being answered

	// Guarded by queueSet.mu:
	stage     stage
	lease     *Lease        // what it has been handed
	doubt     bool          // a releaser may have handed it the mutex, but has no answer
	turn      bool          // another process keeps the mutex for it
	asks      int           // how often it has asked for its request
	trip      time.Duration // how long it took last
	changes   int           // queue.changes when it last asked
	announced struct {      // to other processes
		at       time.Time // last
		times    int       // for its request
		passedBy string    // the lease that was in its way then
	}
}

// hasAnnounced says whether other processes may know of it.
func (w *waiter) hasAnnounced() bool { return !w.announced.at.IsZero() }

// unserved says whether it has not been promised the mutex.
func (w *waiter) unserved() bool { return w.stage == resting || w.stage == asking }

// receptive says whether a releaser can hand a head the mutex. Without a TTL, a lease whose waiter has gone could be left
// for ever.
func (w *waiter) receptive() bool { return w.stage == resting && w.request.TTL != nil }

func (w *waiter) signal() {
	select {
	case w.wake <- struct{}{}:
	default: // it has been told already
	}
}

// queueSet has this process's queues, and what listens for them. Its methods take mu, but for of, remove, listen and
// unlisten, which need it held. So do all methods of queue. Nothing blocks while mu is held. A Lease's mu may be taken
// under it, never the other way round.
type queueSet struct {
	mu        sync.Mutex
	queues    map[queueKey]*queue
	byNotice  map[noticeKey][]*queue // those that can be notified
	listeners map[*sql.DB]*listener
	sweeper   *time.Timer // nil while there is nothing to sweep
}

var queues = &queueSet{
	queues: map[queueKey]*queue{}, byNotice: map[noticeKey][]*queue{}, listeners: map[*sql.DB]*listener{},
}

// of is the queue of a mutex; it is made if there is none.
func (qs *queueSet) of(m *Mutex) *queue {
	now := time.Now()
	q := qs.queues[m.key]
	if q == nil {
		q = &queue{key: m.key, table: m.table, fairness: fairness{number: rand.Uint64(), stoodBack: now}}
		qs.queues[m.key] = q
		if m.key.notifies {
			notice := m.key.notice()
			qs.byNotice[notice] = append(qs.byNotice[notice], q)
		}
		if qs.sweeper == nil {
			qs.sweeper = time.AfterFunc(sweepPause, qs.sweep)
		}
	}
	q.used, q.slots = now, max(m.slots, 1)
	return q
}

func (qs *queueSet) remove(q *queue) {
	qs.unlisten(q)
	delete(qs.queues, q.key)
	notice := q.key.notice()
	same := slices.DeleteFunc(qs.byNotice[notice], func(other *queue) bool { return other == q })
	if len(same) == 0 {
		delete(qs.byNotice, notice)
	} else {
		qs.byNotice[notice] = same
	}
}

// sweep removes queues that were not used for a while, and those of pools that are closed.
func (qs *queueSet) sweep() {
	closed := map[any]bool{}
	for _, pool := range qs.listened() {
		closed[pool] = locktable.IsClosed(pool)
	}
	qs.mu.Lock()
	defer qs.mu.Unlock()
	for _, q := range qs.queues {
		switch {
		case q.idle() || closed[q.key.pool] && len(q.waiters) == 0:
			qs.remove(q)
		case closed[q.key.pool]:
			qs.unlisten(q)
		}
	}
	if len(qs.queues) == 0 {
		qs.sweeper = nil
	} else {
		qs.sweeper.Reset(sweepPause)
	}
}

// idle says that nobody needs the queue any more.
func (q *queue) idle() bool {
	return len(q.waiters) == 0 && len(q.watchers) == 0 && time.Since(q.used) >= linger
}

// join puts a waiter at a queue's end.
func (qs *queueSet) join(m *Mutex) *waiter {
	w := &waiter{mutex: m, request: m.waitersRequest(), head: make(chan struct{}), wake: make(chan struct{}, 1)}
	qs.mu.Lock()
	defer qs.mu.Unlock()
	q := qs.of(m)
	w.queue = q
	q.waiters = append(q.waiters, w)
	if q.waiters[0] == w {
		q.holder = nil
		w.stage = asking
		close(w.head)
	} else {
		qs.listen(q)
	}
	return w
}

// remains are what is left to do for a waiter that waits no more.
type remains struct {
	late     *Lease // a lease that came too late
	doubt    bool   // there may be such a lease
	acquired bool   // the waiter has that lease by itself
	announce bool   // other processes are to hear that it has gone
}

// leave takes a waiter out of its queue, and makes the next one the head.
func (qs *queueSet) leave(w *waiter, acquired *Lease) remains {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	q := w.queue
	i := slices.Index(q.waiters, w)
	q.waiters = slices.Delete(q.waiters, i, i+1)
	q.used = time.Now()
	r := remains{doubt: w.doubt, acquired: acquired != nil}
	if w.lease != acquired {
		r.late = w.lease
	}
	if acquired != nil {
		w.stage = served
		q.seen, q.local = nil, true
		if w.hasAnnounced() && !w.turn {
			acquired.ticket = w.request.Ticket
		}
	} else {
		promise := w.stage == promised || w.stage == hurried
		r.announce = w.hasAnnounced() && !promise // else hand does it
		w.stage = gone
	}
	if i == 0 {
		if !q.key.semaphore { // which may have another free slot
			q.holder = acquired
		}
		if len(q.waiters) > 0 {
			close(q.waiters[0].head)
		}
	}
	return r
}

// settle undoes what came too late for a waiter, unless the waiter has acquired that lease by itself.
func (w *waiter) settle(r remains) {
	switch {
	case r.late != nil && r.acquired:
		r.late.end(released, nil)
	case r.late != nil:
		r.late.undo()
	case r.doubt && !r.acquired:
		w.mutex.discard(w.request.Key, w.request.TTL)
	}
	if r.announce {
		w.mutex.withdraw(w.request.Ticket, w.trip)
	}
}

// wake tells a queue's head that the mutex may be free.
func (qs *queueSet) wake(key queueKey) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if q := qs.queues[key]; q != nil {
		q.signal()
	}
}

// released is wake after an end that did not ask next: it counts the run.
func (qs *queueSet) released(key queueKey) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if q := qs.queues[key]; q != nil {
		q.ran(time.Now())
		q.signal()
	}
}

// signal tells the head, and who watches, that the mutex may be free. What was seen of the holder is out of date then.
func (q *queue) signal() {
	q.seen = nil
	if len(q.waiters) > 0 {
		q.waiters[0].signal()
	}
	for _, watcher := range q.watchers {
		select {
		case watcher <- struct{}{}:
		default: // it has been told already
		}
	}
}

// ask lets a waiter ask the database, unless a releaser has the mutex for it or is handing it. A waiter whose time is over
// asks in the second case, too.
func (qs *queueSet) ask(w *waiter, over bool) (s stage, lease *Lease, turn bool) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	switch {
	case w.stage == resting:
		w.stage = asking
	case w.stage == promised && over:
		w.stage = hurried
	}
	return w.stage, w.lease, w.turn
}

// firstPause is how long a new head lets pass before it asks. If its predecessor has just acquired, that one's release
// reaches it by itself.
func (qs *queueSet) firstPause(q *queue) time.Duration {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if q.holder == nil {
		if q.deaf() {
			return q.standBack(time.Now())
		}
		return 0
	}
	pause := pollLast
	if deadline, expires := q.holder.ExpiresAt(); expires {
		pause = min(pause, time.Until(deadline)+time.Millisecond)
	}
	return max(pause, time.Millisecond)
}

// stillHeldBy keeps what a head learned of the holder. The head rests then. Other processes are to hear the news, if there
// are any. hears says whether changes of the holder are heard of, and heard whether the last one was.
func (qs *queueSet) stillHeldBy(
	w *waiter, seen locktable.Answer, err error, trip time.Duration,
) (hears, heard bool, news string) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	q := w.queue
	qs.listen(q)
	w.stage, w.turn = resting, false
	w.asks++
	hears = q.hears()
	heard = hears && q.changes > w.changes
	w.changes, w.trip, q.trip = q.changes, trip, trip
	if errors.As(err, &q.seen); seen.Left > 0 {
		q.seenEnds = time.Now().Add(seen.Left)
	} else {
		q.seenEnds = time.Time{}
	}
	if seen.Held != nil && !samePool(seen.Held.LeaseID, w.request.LeaseID) {
		now := time.Now()
		q.foreign, q.sinceBack, q.local = now, 0, false
		if w.request.Ticket != "" && q.announces(w, seen.Held.LeaseID, now) {
			m := q.message()
			m.Wait = q.announce(w, seen.Held.LeaseID, now)
			news = m.text()
		}
	}
	return hears, heard, news
}

// rests says that a head asks no more for the moment.
func (qs *queueSet) rests(w *waiter) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if w.stage == asking {
		w.stage = resting
	}
}

// lastHeld is what a queue's heads saw last, or nil if that is nothing, or has ended since.
func (qs *queueSet) lastHeld(q *queue) *HeldError {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if q.seen == nil || !q.seenEnds.IsZero() && time.Until(q.seenEnds) <= 0 {
		return nil
	}
	own := *q.seen
	return &own
}
