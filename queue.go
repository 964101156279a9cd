package dbmutex

import (
	"database/sql"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/wake"
)

const (
	// A process that hands a mutex on to its own next waiter wins every race for it. So after localRuns runs, or as many as
	// it has clients if they are fewer, it gives the mutex to a waiter of another process that it has heard of.
	//
	// A process that cannot hear leaves the mutex free for yieldLong, which is longer than others pause between two
	// questions: once within lately, and after localRuns runs where somebody else has held it within lately.
	localRuns = 4
	yieldLong = 32 * time.Millisecond
	lately    = time.Second

	// yieldShort is yieldLong where waiters of other processes are heard of: it is for those who tell of nothing.
	yieldShort = 8 * time.Millisecond

	// A waiter tells other processes of itself when it has asked tellAt times, and again after remindAfter. It also does when
	// it was passed by a process that has told of nobody, and so may not have listened: after remindPause, then after twice
	// as long. It is believed for believed.
	tellAt      = 2
	remindAfter = 2 * time.Second
	remindPause = 50 * time.Millisecond
	believed    = 5 * time.Second

	// The mutex is kept for a waiter whose turn it is for reserveLeast and some round trips of its, up to reserveMost.
	reserveLeast = time.Second
	reserveMost  = 5 * time.Second
	reserveTrips = 8

	// holderLimit is how many characters of its holder's name a waiter tells: a notification has less than 8000 bytes.
	holderLimit = 256

	// sweepPause is between two looks at queues that may go.
	sweepPause = 150 * time.Millisecond
)

// linger is for how long a queue stays after its last use, with what it knows. Tests change it, under waiting.mu.
var linger = 3 * time.Second

// queueKey is a mutex, as this process's waiters see it.
type queueKey struct {
	pool      any
	table, id string
	notifies  bool // releases in other processes can be heard of
}

// listens says whether this process's queue can have a listener.
func (k queueKey) listens() bool { return k.notifies && wake.Listen != nil }

// poolID is what a notification tells of a mutex.
type poolID struct {
	pool any
	id   string
}

// queue is this process's waiters for one mutex, first come first served, and what is known of those of other processes. Its
// head alone asks the database. Where releases are heard of in other processes, a releaser of this process hands it the
// mutex without its asking.
type queue struct {
	key      queueKey
	dialect  dialect
	number   uint64 // tells it apart, for all processes
	waiters  []*waiter
	others   []*stranger   // in the order in which they were heard of
	listener *listener     // nil: it does not listen
	used     time.Time     // it stays for a while after this
	held     *HeldError    // what a head saw last
	holder   *Lease        // the lease that the last head acquired; nil if it did not
	runs     int           // how often this process released the mutex since it last stood back
	inTurn   int           // how often since it last kept the mutex for another process's waiter
	local    bool          // this process had it last, as far as is known
	freed    time.Time     // when this process last released it
	foreign  time.Time     // when a head last saw it held by somebody else
	heard    int           // how often it was heard that the mutex changes hands
	yielded  time.Time     // when this process last let others go first
	trip     time.Duration // how long a question took last
}

// stranger is a waiter of another process.
type stranger struct {
	candidate
	heard time.Time
	over  bool // it has had its turn or has gone; what it said before may come late
}

// outdated says whether there is nothing in it any more.
func (o *stranger) outdated(now time.Time) bool {
	if o.over {
		return now.Sub(o.heard) >= lately
	}
	return now.Sub(o.heard) >= believed
}

// candidate is a waiter, as it tells of itself.
type candidate struct {
	Ticket  string `json:"ticket"` // what the mutex is to be kept under for it; never a lease's id, so that it brings none back
	Holder  string `json:"holder"`
	Reserve int64  `json:"reserve"` // for how long it needs the mutex to be kept for it, in microseconds
}

// message is what processes tell each other of their waiters.
type message struct {
	Table uint32     `json:"table"` // the same id in another table is another mutex
	ID    string     `json:"id"`
	From  uint64     `json:"from"`           // the queue that it comes from
	Turn  string     `json:"turn,omitempty"` // the ticket that the mutex is kept under
	Gone  string     `json:"gone,omitempty"` // that of a waiter which waits no more
	Wait  *candidate `json:"wait,omitempty"` // one that waits
}

// turn is another process's waiter to keep the mutex for, and what to tell of it.
type turn struct {
	candidate
	message string
}

// waiter is one acquire in a queue. All its tries are for the same lease, so that it knows as its own what a releaser
// handed it while the answer was lost.
type waiter struct {
	mutex   *Mutex
	request request
	head    chan struct{} // closed when it becomes the head
	wake    chan struct{} // holds an element when it is worth asking, or a lease has come

	// Guarded by waiting.mu:
	asking   bool          // it is at the database itself
	promised bool          // a releaser is handing it the mutex
	lease    *Lease        // what it has been handed
	doubt    bool          // a releaser may have handed it the mutex, but has no answer
	gone     bool          // it waits no more
	acquired bool          // and has the mutex
	turn     bool          // another process keeps the mutex for it
	asks     int           // how often it has asked for its request
	trip     time.Duration // how long it took last
	heard    int           // queue.heard when it last asked
	tells    int           // how often it told other processes of itself
	told     time.Time     // when it last did
	passedBy string        // the lease that was in its way then
}

// waiting has this process's queues, and what listens for them.
type waiting struct {
	mu        sync.Mutex
	queues    map[queueKey]*queue
	byID      map[poolID][]*queue // those that can be notified
	listeners map[*sql.DB]*listener
	sweeper   *time.Timer // nil while there is nothing to sweep
}

var queues = &waiting{
	queues: map[queueKey]*queue{}, byID: map[poolID][]*queue{}, listeners: map[*sql.DB]*listener{},
}

// queue is a mutex's; it is made where there is none.
func (a *waiting) queue(key queueKey, d dialect) *queue {
	now := time.Now()
	q := a.queues[key]
	if q == nil {
		q = &queue{key: key, dialect: d, number: rand.Uint64(), yielded: now}
		a.queues[key] = q
		if key.notifies {
			a.byID[poolID{key.pool, key.id}] = append(a.byID[poolID{key.pool, key.id}], q)
		}
		if a.sweeper == nil {
			a.sweeper = time.AfterFunc(sweepPause, a.sweep)
		}
	}
	q.used = now
	return q
}

func (a *waiting) remove(q *queue) {
	a.unlisten(q)
	delete(a.queues, q.key)
	id := poolID{q.key.pool, q.key.id}
	same := slices.DeleteFunc(a.byID[id], func(other *queue) bool { return other == q })
	if len(same) == 0 {
		delete(a.byID, id)
	} else {
		a.byID[id] = same
	}
}

// sweep removes queues that were not used for a while, and those of pools that are closed.
func (a *waiting) sweep() {
	closed := map[any]bool{}
	for _, pool := range a.listened() {
		closed[pool] = isClosed(pool)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, q := range a.queues {
		switch {
		case len(q.waiters) == 0 && (closed[q.key.pool] || time.Since(q.used) >= linger):
			a.remove(q)
		case closed[q.key.pool]:
			a.unlisten(q)
		}
	}
	if len(a.queues) == 0 {
		a.sweeper = nil
	} else {
		a.sweeper.Reset(sweepPause)
	}
}

func (a *waiting) listened() (pools []*sql.DB) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for pool := range a.listeners {
		pools = append(pools, pool)
	}
	return pools
}

// join puts a waiter at a queue's end.
func (a *waiting) join(key queueKey, m *Mutex) (*waiter, *queue) {
	w := &waiter{mutex: m, request: m.waitersRequest(), head: make(chan struct{}), wake: make(chan struct{}, 1)}
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.queue(key, m.dialect)
	q.waiters = append(q.waiters, w)
	if q.waiters[0] == w {
		q.holder = nil
		w.asking = true
		close(w.head)
	} else {
		a.listen(q)
	}
	return w, q
}

// leave takes a waiter out of its queue and makes the next one the head. It returns a lease that came too late, whether
// there may be one, and whether other processes are to hear that the waiter has gone.
func (a *waiting) leave(key queueKey, w *waiter, acquired *Lease) (late *Lease, doubt, told bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.queues[key]
	i := slices.Index(q.waiters, w)
	q.waiters = slices.Delete(q.waiters, i, i+1)
	q.used = time.Now()
	w.gone, w.acquired = true, acquired != nil
	if acquired != nil {
		q.held, q.local = nil, true
		if !w.told.IsZero() && !w.turn {
			acquired.ticket = w.request.ticket
		}
	} else {
		told = !w.told.IsZero() && !w.promised // else hand does what is to do
	}
	if w.lease != acquired {
		late = w.lease
	}
	if i == 0 {
		q.holder = acquired
		if len(q.waiters) > 0 {
			close(q.waiters[0].head)
		}
	}
	return late, w.doubt, told
}

// wake tells a queue's head that the mutex may be free.
func (a *waiting) wake(key queueKey) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if q := a.queues[key]; q != nil {
		q.signal()
	}
}

// released is wake after a release that handed the mutex to nobody.
func (a *waiting) released(key queueKey) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if q := a.queues[key]; q != nil {
		q.ran(time.Now())
		q.signal()
	}
}

func (q *queue) signal() {
	if len(q.waiters) > 0 {
		q.waiters[0].signal()
	}
}

func (w *waiter) signal() {
	select {
	case w.wake <- struct{}{}:
	default: // it has been told already
	}
}

// ran counts a run of this process's.
func (q *queue) ran(now time.Time) {
	q.runs++
	q.inTurn++
	q.local, q.freed, q.used = true, now, now
}

// next is who gets the mutex from a lease's release, if anybody: a waiter of another process whose turn it is, or the head
// of this process's queue. It is nobody unless the release is open: it leaves no row behind, as MinHold and ReleaseIn do.
func (a *waiting) next(l *Lease, open bool) (*waiter, *turn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := l.mutex.queue
	q := a.queues[key]
	if q == nil {
		return nil, nil
	}
	now := time.Now()
	standsBack := q.standsBack(now)
	q.ran(now)
	if !open || !key.listens() {
		return nil, nil
	}
	if q.due(len(q.waiters)+1, now) {
		return nil, q.give(l, now)
	}
	if len(q.waiters) == 0 || l.ticket != "" || standsBack || !q.waiters[0].receptive() {
		return nil, nil
	}
	q.waiters[0].promised = true
	return q.waiters[0], nil
}

// due says whether it is the turn of a waiter of another process, where this one has so many clients.
func (q *queue) due(clients int, now time.Time) bool {
	return q.first(now) >= 0 && q.inTurn >= min(localRuns, clients)
}

// give takes the waiter of another process that was heard of first. The same message tells of this queue's head, and that
// nobody waits for the lease that ends.
func (q *queue) give(l *Lease, now time.Time) *turn {
	i, m := q.first(now), q.message()
	t := &turn{candidate: q.others[i].candidate}
	q.others[i].heard, q.others[i].over = now, true
	q.runs, q.inTurn, q.local, q.foreign, q.yielded = 0, 0, false, now, now
	m.Turn, m.Gone = t.Ticket, l.ticket
	if len(q.waiters) > 0 && q.waiters[0].idle() {
		m.Wait = q.announce(q.waiters[0], t.Ticket, now)
	}
	t.message = m.text()
	return t
}

// first is the index of the waiter of another process that was heard of first, or -1.
func (q *queue) first(now time.Time) int {
	return slices.IndexFunc(q.others, func(o *stranger) bool { return !o.over && !o.outdated(now) })
}

// pass is the waiter of another process that a waiter lets go first which has just acquired the lease, if it is its turn:
// the release before was one that gives the mutex to nobody. The waiter then waits for another lease.
func (a *waiting) pass(q *queue, w *waiter, l *Lease) *turn {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if !q.local || w.turn || !q.due(len(q.waiters), now) {
		return nil
	}
	if !w.told.IsZero() {
		l.ticket = w.request.ticket
	}
	w.request, w.asking, w.asks, w.tells = w.mutex.waitersRequest(), false, 0, 0
	return q.give(l, now)
}

func (q *queue) message() message {
	return message{Table: q.dialect.(notifying).tableID(), ID: q.key.id, From: q.number}
}

func (m message) text() string {
	text, _ := json.Marshal(m) // nothing in it can fail
	return string(text)
}

// announce is what a waiter tells of itself when a lease is in its way.
func (q *queue) announce(w *waiter, inTheWay string, now time.Time) *candidate {
	w.told, w.passedBy = now, inTheWay
	w.tells++
	holder := []rune(w.request.holder)
	return &candidate{
		Ticket:  w.request.ticket,
		Holder:  string(holder[:min(len(holder), holderLimit)]),
		Reserve: min(reserveLeast+reserveTrips*q.trip, reserveMost).Microseconds(),
	}
}

// hear keeps what a message tells.
func (q *queue) hear(m message) {
	now := time.Now()
	if m.Turn != "" {
		q.heard++
	}
	q.others = slices.DeleteFunc(q.others, func(o *stranger) bool { return o.outdated(now) })
	for _, ticket := range []string{m.Turn, m.Gone} {
		if ticket != "" {
			o := q.stranger(ticket)
			o.heard, o.over = now, true
		}
	}
	own := func(w *waiter) bool { return m.Turn != "" && w.request.ticket == m.Turn }
	if i := slices.IndexFunc(q.waiters, own); i >= 0 {
		q.waiters[i].turn = true
		q.waiters[i].signal()
	}
	if m.Wait == nil || m.From == q.number || len(m.Wait.Ticket) != leaseIDLength {
		return
	}
	q.used = now
	if o := q.stranger(m.Wait.Ticket); !o.over {
		o.candidate, o.heard = m.Wait.plausible(), now
	}
}

// plausible is a candidate that can do no harm: anybody may send a notification.
func (c candidate) plausible() candidate {
	c.Reserve = max(reserveLeast.Microseconds(), min(c.Reserve, reserveMost.Microseconds()))
	holder := []rune(strings.ReplaceAll(c.Holder, "\x00", ""))
	c.Holder = string(holder[:min(len(holder), holderLimit)])
	return c
}

// stranger is the one with a ticket; it is made where there is none.
func (q *queue) stranger(ticket string) *stranger {
	i := slices.IndexFunc(q.others, func(o *stranger) bool { return o.Ticket == ticket })
	if i < 0 {
		i = len(q.others)
		q.others = append(q.others, &stranger{candidate: candidate{Ticket: ticket}})
	}
	return q.others[i]
}

// knocked makes a queue that listens, as there is a waiter in another process that this one has not heard of.
func (a *waiting) knocked(key queueKey, d dialect) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listen(a.queue(key, d))
}

// unaware says whether this process would not hear of a waiter in another one that tells of itself, but could.
func (a *waiting) unaware(key queueKey) bool {
	if !key.listens() {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.queues[key]
	return q == nil || q.listener == nil
}

// receptive says whether a releaser can hand it the mutex: it is a head that is not at the database itself and has not been
// handed it already. Without a TTL a lease whose waiter has gone could be left for good.
func (w *waiter) receptive() bool { return !w.asking && w.idle() && w.request.ttl != nil }

func (w *waiter) idle() bool { return !w.promised && w.lease == nil }

// hand keeps the promise to a receiver, or takes it back where there is no lease; in doubt there may be one in the database.
// What comes too late is undone, unless the waiter has found the lease by itself.
func (a *waiting) hand(w *waiter, lease *Lease, doubt bool) {
	a.mu.Lock()
	w.promised = false
	gone, acquired, told := w.gone, w.acquired, !w.told.IsZero()
	if !gone {
		w.lease, w.doubt = lease, w.doubt || doubt
		w.signal()
	}
	a.mu.Unlock()
	if gone {
		w.settle(lease, doubt, acquired, told && !acquired)
	}
}

// settle undoes what came too late for a waiter that has gone: a lease, unless the waiter has acquired that lease by itself,
// or one that may have been made. It then tells other processes that the waiter waits no more, if they are to hear it.
func (w *waiter) settle(late *Lease, doubt, acquired, tells bool) {
	switch {
	case late != nil && acquired:
		late.become(released, nil)
	case late != nil:
		late.undo()
	case doubt && !acquired:
		_ = w.mutex.discard(w.request.proof)
	}
	if tells {
		w.mutex.withdraw(w.request.ticket, w.trip)
	}
}

// stir tells a waiter that is about to ask what others have for it. In a hurry it asks all the same while it is promised the
// mutex.
func (a *waiting) stir(w *waiter, hurry bool) (lease *Lease, promised, turn bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.asking = w.lease == nil && (hurry || !w.promised)
	return w.lease, w.promised, w.turn
}

// firstPause is how long a new head lets pass before it asks. Where its predecessor has just acquired, that one's release
// reaches it by itself.
func (a *waiting) firstPause(q *queue) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if q.holder == nil {
		if q.deaf() {
			return q.yield(time.Now())
		}
		return 0
	}
	pause := pollLast
	if deadline, expires := q.holder.ExpiresAt(); expires {
		pause = min(pause, time.Until(deadline)+time.Millisecond)
	}
	return max(pause, time.Millisecond)
}

// saw keeps what a head learned of the holder. It waits again, and other processes are to hear the news, if there are any.
// It says whether the last change of the holder was heard of.
func (a *waiting) saw(w *waiter, q *queue, seen answer, err error, trip time.Duration) (heard bool, news string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listen(q)
	w.asking, w.turn = false, false
	w.asks++
	heard = q.hears() && q.heard > w.heard
	w.heard, w.trip, q.trip = q.heard, trip, trip
	errors.As(err, &q.held)
	if seen.held != nil && !q.key.owns(seen.held.LeaseID) {
		now := time.Now()
		q.foreign, q.runs, q.local = now, 0, false
		if w.request.ticket != "" && q.tells(w, seen.held.LeaseID, now) {
			m := q.message()
			m.Wait = q.announce(w, seen.held.LeaseID, now)
			news = m.text()
		}
	}
	return heard, news
}

// tells says whether it is time for a waiter to tell other processes of itself.
func (q *queue) tells(w *waiter, inTheWay string, now time.Time) bool {
	since := now.Sub(w.told)
	if w.tells == 0 || since >= remindAfter {
		return w.asks >= tellAt || q.trip >= remindPause/2
	}
	known := func(o *stranger) bool { return samePool(o.Ticket, inTheWay) }
	pause := remindPause << min(w.tells-1, 5)
	return inTheWay != w.passedBy && since >= pause && !slices.ContainsFunc(q.others, known)
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
	return q.yield(time.Now())
}

func (q *queue) yield(now time.Time) time.Duration {
	if !q.standsBack(now) {
		return 0
	}
	q.runs, q.yielded = 0, now
	pause := yieldLong
	if !q.deaf() {
		pause = yieldShort
	}
	return max(0, pause-now.Sub(q.freed))
}

// standsBack says whether it is time to let other processes go first that tell of nothing.
func (q *queue) standsBack(now time.Time) bool {
	return q.local && (now.Sub(q.yielded) >= lately || q.deaf() && q.runs >= localRuns && now.Sub(q.foreign) <= lately)
}

// hears says whether waiters of other processes are heard of.
func (q *queue) hears() bool { return q.listener != nil && q.listener.hears }

// deaf says that they are not, and would not be if there were any.
func (q *queue) deaf() bool { return !q.key.listens() || q.listener != nil && !q.listener.hears }
