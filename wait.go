package dbmutex

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

const (
	// The head of a queue asks the database after pollFirst, then after twice as long, up to pollLast, or when the lease
	// that is in its way runs out. When it is woken it begins with pollFirst again.
	pollFirst = 5 * time.Millisecond
	pollLast  = 250 * time.Millisecond

	// pollBusy is pollLast if the mutex has changed hands during the wait and this process did not hear of it: the gaps in
	// which the mutex is free are short.
	pollBusy = 20 * time.Millisecond

	// pollHearing is pollLast if this process hears of releases and the same lease is still in the way: it then asks only
	// for those that do not notify.
	pollHearing = 2 * time.Second

	// wokenPause is the least between two questions, as anybody may send notifications.
	wokenPause = time.Millisecond

	forever time.Duration = -1

	// tellLimit is how long a waiter may take at most to tell other processes of itself. To tell that it has gone it takes
	// no longer than withdrawLeast and some round trips of its, as its caller waits.
	tellLimit     = time.Second
	withdrawLeast = 100 * time.Millisecond
	withdrawTrips = 4

	// lookLimit is how long a waiter whose time is over may take to see who holds the mutex.
	lookLimit = time.Second
)

// wait acquires the mutex, and waits for it as the settings say.
func (m *Mutex) wait() (lease *Lease, err error) {
	if err := m.nested(); err != nil {
		return nil, err
	}
	if m.settings.Wait == 0 {
		request := m.request()
		lease, answer, err := m.try(request)
		if answer.Doubt {
			lease, err = m.disown(request, lease, err)
		}
		return lease, err
	}
	p, stop := m.patience()
	defer stop()
	w := queues.join(m)
	defer func() { w.settle(queues.leave(w, lease)) }()
	lease, err = w.acquire(p)
	if w.doubtful {
		lease, err = m.disown(w.request, lease, err)
	}
	if done := locktable.Done(m.ctx); done != nil && err != nil && !errors.Is(err, ErrNotAcquired) && !errors.Is(err, errDone) {
		return nil, w.cutShort(done)
	}
	return lease, err
}

// disown is for a request that may still be under way: it would make the row of its lease again, when that has been
// another's for a while. So the lease, if there is one, gets another id.
func (m *Mutex) disown(r locktable.Request, lease *Lease, err error) (*Lease, error) {
	defer m.table.DiscardLater(m.ctx, r.Key, r.TTL)
	if lease == nil {
		return nil, err
	}
	lease.mu.Lock()
	lease.key = lease.key.Renamed(newLeaseID(m.key.pool))
	lease.mu.Unlock()
	found, err := m.table.Rename(lease.parent, r.Key.At(lease.slot), lease.key.LeaseID)
	switch {
	case err != nil:
		err = m.failed(m.ctx, "acquire", err)
	case !found:
		err = heldError(m.id, nil)
	default:
		return lease, nil
	}
	lease.undo()
	return nil, err
}

// cutShort is the error of a wait whose context is done. It names the holder if that was seen, or what was in the way.
func (w *waiter) cutShort(done error) error {
	why := ""
	if seen := queues.lastHeld(w.queue); seen != nil {
		why = ", held by " + seen.who()
	} else if w.busy != nil {
		why = fmt.Sprintf(" (%v)", w.busy)
	}
	return fmt.Errorf("dbmutex: wait for %q%s: %w", w.mutex.id, why, done)
}

// acquire asks for the lease, again and again, until it is there or the patience ends.
func (w *waiter) acquire(p *patience) (*Lease, error) {
	pause, err := w.becomeHead(p)
	if err != nil {
		return nil, err
	}
	b := backoff{next: pollFirst, most: pollLast}
	var answered time.Time
	for {
		why := p.rest(w.wake, pause)
		if why == contextDone {
			return nil, p.ctx.Err()
		}
		stage, lease, turn := queues.ask(w, p.over)
		switch {
		case stage == handed:
			return lease, nil
		case stage == promised: // it is on its way
			pause = forever
			continue
		case turn:
			b.next = pollFirst
		case why == woken:
			b.next = pollFirst
			p.rest(nil, max(queues.standBack(w.queue), wokenPause-time.Since(answered), 0))
		}
		request, asked := w.request, time.Now()
		request.Kept = turn
		lease, seen, err := w.mutex.try(request)
		w.doubtful, answered = w.doubtful || seen.Doubt, time.Now()
		switch {
		case err == nil && !p.over:
			to := queues.pass(w, lease)
			if to == nil {
				return lease, nil
			}
			if w.doubtful {
				w.doubtful = false
				w.mutex.table.DiscardLater(w.mutex.ctx, lease.key, w.request.TTL)
			}
			lease.pass(*to)
			pause, b.inTheWay = pollLast, to.Ticket
		case seen.Busy && !p.over: // others keep everybody from it
			w.busy = err
			queues.rests(w)
			if p.rest(w.wake, pollFirst) >= timedOut {
				_, lease, _ := queues.ask(w, true)
				if lease != nil {
					err = nil
				}
				return lease, err
			}
			pause = 0
		case !errors.Is(err, ErrNotAcquired):
			return lease, err
		case p.over:
			if _, lease, _ := queues.ask(w, true); lease != nil {
				return lease, nil
			}
			if !w.owns(seen.Held) {
				return nil, err
			}
			pause = pollFirst // somebody else has the row locked at this moment
		default:
			trip := time.Since(asked)
			hears, heard, news := queues.stillHeldBy(w, seen, err, trip)
			answer := time.Duration(0) // when that to the news may come
			if news != "" {
				w.announce(p, news)
				if heard {
					answer = trip
				}
			}
			pause = b.after(seen, hears, heard, answer)
		}
	}
}

// becomeHead waits for the waiter's turn in its queue. It says for how long a new head should pause.
func (w *waiter) becomeHead(p *patience) (pause time.Duration, err error) {
	select {
	case <-w.head: // so that it asks once, however short its patience
	default:
		switch p.rest(w.head, forever) {
		case contextDone:
			return 0, p.ctx.Err()
		case timedOut:
			stage, _, _ := queues.ask(w, true)
			if stage == asking && w.mutex.slots == 0 { // of a semaphore, several slots may be free
				return 0, w.mutex.stillHeld(w.queue)
			}
			return 0, nil
		}
	}
	return queues.firstPause(w.queue), nil
}

// owns says whether a row is the waiter's already: its lease, or kept for it.
func (w *waiter) owns(row *locktable.Row) bool {
	return row != nil && (row.LeaseID == w.request.LeaseID || row.LeaseID == w.request.Ticket)
}

// announce tells other processes of the waiter. GORM logs its error.
func (w *waiter) announce(p *patience, news string) {
	ctx, cancel := context.WithTimeout(w.mutex.ctx, min(tellLimit, p.left()))
	defer cancel()
	w.mutex.table.Tell(ctx, w.mutex.id, news)
}

// stillHeld is the error of a waiter that never came to ask: who holds the mutex, or that the database does not say.
func (m *Mutex) stillHeld(q *queue) error {
	if seen := queues.lastHeld(q); seen != nil && !m.once { // there may be a record since
		return seen
	}
	ctx, cancel := context.WithTimeout(m.ctx, lookLimit)
	defer cancel()
	row, err := m.table.Live(ctx, m.id)
	if err != nil {
		return m.failed(m.ctx, "wait for", err)
	}
	if m.isRecord(row) {
		return errDone
	}
	return heldError(m.id, row)
}

// withdraw tells other processes that a waiter waits no more, whose question took so long, and gives back what they keep for
// it. If that fails they believe for a while that it waits.
func (m *Mutex) withdraw(ticket string, trip time.Duration) {
	limit := min(withdrawLeast+withdrawTrips*trip, tellLimit)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), limit)
	defer cancel()
	m.table.Withdraw(ctx, locktable.NewKey(m.id, ticket), m.goneMessage(ticket))
	queues.wake(m.key)
}

// backoff spaces the questions of a head.
type backoff struct {
	next, most time.Duration
	inTheWay   string // the lease that was seen last, or of a semaphore when the newest was acquired
}

// after is how long to rest when the mutex was seen held: at least so long, but not beyond the end of the lease in the way.
// The process hears of releases or not, and so it has or has not heard that the mutex changed hands, if it did.
func (b *backoff) after(seen locktable.Answer, hears, heard bool, least time.Duration) time.Duration {
	inTheWay := ""
	if seen.Held != nil {
		inTheWay = seen.Held.LeaseID
	}
	if seen.Newest != 0 { // of a semaphore's leases, renewals change which of them ends first
		inTheWay = strconv.FormatInt(seen.Newest, 10)
	}
	switch {
	case seen.Held == nil || inTheWay == b.inTheWay:
		switch {
		case seen.Ended: // nobody hears of the end of what pins it
			b.most = pollLast
		case hears && b.most != pollBusy:
			b.most = pollHearing
		case !hears && b.most == pollHearing: // not any more
			b.most = pollLast
		}
		b.next = min(b.next, b.most)
	default: // the mutex has changed hands
		b.most = pollLast
		if b.inTheWay != "" && !heard {
			b.most, b.next = pollBusy, pollFirst
		}
		b.inTheWay = inTheWay
	}
	pause := max(b.next/2+rand.N(b.next), least)
	b.next = min(2*b.next, b.most)
	if held := seen.Held; held != nil && held.ExpiresAt != nil && !seen.Ended && seen.Left < pause {
		pause = max(seen.Left, 0) + time.Millisecond // SQLite counts milliseconds: none is left in the last
	}
	return pause
}

// patience is how long a waiter goes on: until its context is done, or Settings.Wait is over.
type patience struct {
	ctx     context.Context
	timeout <-chan time.Time // nil = Forever
	end     time.Time
	over    bool // the next question is the last
}

func (m *Mutex) patience() (p *patience, stop func()) {
	p = &patience{ctx: m.ctx}
	if m.settings.Wait < 0 {
		return p, func() {}
	}
	timer := time.NewTimer(m.settings.Wait)
	p.timeout, p.end = timer.C, time.Now().Add(m.settings.Wait)
	return p, func() { timer.Stop() }
}

// left is what is left of Settings.Wait; tellLimit with Forever.
func (p *patience) left() time.Duration {
	if p.timeout == nil {
		return tellLimit
	}
	return time.Until(p.end)
}

// reason is why a waiter goes on.
type reason int

const (
	due reason = iota
	woken
	timedOut
	contextDone
)

// rest waits for a signal, for pause at the most: 0 not at all, or forever.
func (p *patience) rest(signal <-chan struct{}, pause time.Duration) reason {
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
	case <-p.timeout:
		p.over = true
		return timedOut
	case <-p.ctx.Done():
		return contextDone
	}
}
