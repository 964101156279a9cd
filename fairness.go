package dbmutex

import (
	"slices"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

const (
	// A process that hands a mutex on to its own next waiter wins every race for it. So after localRuns runs, or as many as
	// it has clients if they are fewer, it gives the mutex to a waiter of another process that it has heard of.
	//
	// A process that cannot hear leaves the mutex free for standBackDeaf, which is longer than others pause between two
	// questions. It does so after localRuns runs if somebody else has held the mutex within rivalsWithin, else once within
	// standBackEvery.
	localRuns      = 4
	standBackDeaf  = 32 * time.Millisecond
	standBackEvery = time.Second
	rivalsWithin   = time.Second

	// standBackHearing is standBackDeaf for a process that hears: it is for waiters that tell nobody of themselves.
	standBackHearing = 8 * time.Millisecond
)

// fairness is what a queue knows of the other processes that want its mutex.
type fairness struct {
	slots      int         // how many leases there may be
	others     []*stranger // waiters of other processes, in the order in which they were heard of
	number     uint64      // tells the queue apart, for all processes
	local      bool        // this process had the mutex last, as far as is known
	freed      time.Time   // when this process last released it
	foreign    time.Time   // when a head last saw it held by another process
	stoodBack  time.Time   // when this process last let others go first
	sinceBack  int         // how often this process released it since then
	sinceGiven int         // how often since it last kept it for a waiter of another process
}

// ran counts a run of this process's.
func (q *queue) ran(now time.Time) {
	q.sinceBack++
	q.sinceGiven++
	q.local, q.freed, q.used = true, now, now
}

// next is who gets the mutex from a lease's release, if anybody: a waiter of another process whose turn it is, or the head
// of this process's queue. It is nobody unless the release is open: it leaves no row behind, as MinHold and ReleaseIn do.
func (qs *queueSet) next(l *Lease, open bool) (*waiter, *locktable.Reservation) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	key := l.mutex.key
	q := qs.queues[key]
	if q == nil {
		return nil, nil
	}
	now := time.Now()
	standsBack := q.standsBack(now)
	q.ran(now)
	q.seen = nil
	if !open || !key.takesTurns() {
		return nil, nil
	}
	if q.due(len(q.waiters)+1, now) {
		return nil, q.give(l, now)
	}
	if len(q.waiters) == 0 || l.ticket != "" || standsBack || !q.waiters[0].receptive() {
		return nil, nil
	}
	q.waiters[0].stage = promised
	return q.waiters[0], nil
}

// pass is the waiter of another process that a waiter lets go first, which has just acquired the lease, if it is that one's
// turn: the release before was one that gives the mutex to nobody. The waiter then waits for another lease.
func (qs *queueSet) pass(w *waiter, l *Lease) *locktable.Reservation {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	q, now := w.queue, time.Now()
	if !q.local || w.turn || !q.due(len(q.waiters), now) {
		return nil
	}
	if w.hasAnnounced() {
		l.ticket = w.request.Ticket
	}
	w.request, w.stage, w.asks, w.announced.times = w.mutex.waitersRequest(), resting, 0, 0
	return q.give(l, now)
}

// due says whether it is the turn of a waiter of another process, if this one has so many clients.
func (q *queue) due(clients int, now time.Time) bool {
	return q.first(now) >= 0 && q.sinceGiven >= min(localRuns, clients)
}

// first is the index of the waiter of another process that was heard of first, or -1.
func (q *queue) first(now time.Time) int {
	return slices.IndexFunc(q.others, func(o *stranger) bool { return !o.over && !o.outdated(now) })
}

// give takes the waiter of another process that was heard of first. The message also tells of this queue's head, and that
// nobody waits for the lease that ends.
func (q *queue) give(l *Lease, now time.Time) *locktable.Reservation {
	o, m := q.others[q.first(now)], q.message()
	o.heard, o.over = now, true
	q.local, q.foreign, q.stoodBack, q.sinceBack, q.sinceGiven = false, now, now, 0, 0
	m.Turn, m.Gone = o.Ticket, l.ticket
	if len(q.waiters) > 0 && q.waiters[0].unserved() {
		m.Wait = q.announce(q.waiters[0], o.Ticket, now)
	}
	return &locktable.Reservation{
		Ticket: o.Ticket, Holder: o.Holder, For: time.Duration(o.Reserve) * time.Microsecond, Message: m.text(),
	}
}

// standBack is for how long a head that was woken lets other processes go first.
func (qs *queueSet) standBack(q *queue) time.Duration {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	return q.standBack(time.Now())
}

func (q *queue) standBack(now time.Time) time.Duration {
	if !q.standsBack(now) {
		return 0
	}
	q.sinceBack, q.stoodBack = 0, now
	pause := standBackDeaf
	if !q.deaf() {
		pause = standBackHearing
	}
	return max(0, pause-now.Sub(q.freed))
}

// standsBack says whether it is time to let other processes go first that tell nobody of their waiters. A process that knows
// of another has all its runs, so that the other comes to see it, and knows of it as well. For a semaphore, nobody tells.
func (q *queue) standsBack(now time.Time) bool {
	if (q.deaf() || q.key.semaphore) && now.Sub(q.foreign) <= rivalsWithin {
		return q.local && q.sinceBack >= localRuns*q.slots
	}
	return q.local && now.Sub(q.stoodBack) >= standBackEvery
}
