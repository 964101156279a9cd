package dbmutex

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

const (
	// The head of a queue asks the database after pollFirst, then after twice as long, up to pollLast, or when the lease
	// that is in its way runs out. Where the holder changes it begins with pollFirst again.
	pollFirst = 5 * time.Millisecond
	pollLast  = 250 * time.Millisecond

	// pollBusy is pollLast where the mutex has changed hands during the wait, and this was not heard of: the gaps in which it
	// is free are short.
	pollBusy = 20 * time.Millisecond

	// tellLimit is how long a waiter may take at most to tell other processes of itself, or that it has gone. For that it
	// takes no longer than withdrawLeast and some round trips of its, as its caller waits.
	tellLimit     = time.Second
	withdrawLeast = 100 * time.Millisecond
	withdrawTrips = 4
)

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
	began := time.Now()
	defer func() {
		late, doubt, told := queues.leave(m.queue, w, lease)
		w.settle(late, doubt, lease != nil, told)
	}()

	pause, inTheWay, expired := time.Duration(0), "", false
	select {
	case <-w.head: // and so it asks once, however short its wait
		pause = queues.firstPause(q)
	default:
		switch await(m.ctx, timeout, w.head, -1) {
		case woken:
			pause = queues.firstPause(q)
		case timedOut:
			if handed, promised, _ := queues.stir(w, true); handed == nil && !promised {
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
		handed, promised, turn := queues.stir(w, expired)
		switch {
		case handed != nil:
			return handed, nil
		case promised && !expired: // it is on its way
			pause = -1
			continue
		case turn:
			poll = pollFirst
		case reason == woken:
			poll = pollFirst
			expired = await(m.ctx, timeout, nil, queues.yield(q)) == timedOut || expired
		}
		request, asked := w.request, time.Now()
		request.kept = turn
		var seen answer
		lease, seen, err = m.try(request)
		if err == nil && !expired {
			if to := queues.pass(q, w, lease); to != nil {
				lease.pass(*to)
				lease, pause, inTheWay = nil, pollLast, to.Ticket
				continue
			}
		}
		if !errors.Is(err, ErrNotAcquired) {
			return lease, err
		}
		if expired {
			handed, _, _ := queues.stir(w, true)
			switch {
			case handed != nil:
				return handed, nil
			case seen.held == nil || seen.held.LeaseID != request.leaseID && seen.held.LeaseID != request.ticket:
				return nil, err
			}
			pause = pollFirst // the row is its own already: somebody else has it locked at this moment
			continue
		}
		trip := time.Since(asked)
		heard, news := queues.saw(w, q, seen, err, trip)
		if news != "" {
			limit := tellLimit
			if m.settings.Wait > 0 {
				limit = min(limit, m.settings.Wait-time.Since(began))
			}
			m.briefly(m.ctx, limit, func(t target) error { return m.dialect.(notifying).tell(t, m.id, news) })
		}
		if seen.held != nil && seen.held.LeaseID != inTheWay {
			slowest = pollLast
			if inTheWay != "" && !heard {
				slowest, poll = pollBusy, pollFirst
			}
			inTheWay = seen.held.LeaseID
		}
		pause = poll/2 + rand.N(poll)
		if news != "" && heard {
			pause = max(pause, trip) // the answer may be on its way
		}
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

// withdraw tells other processes that a waiter waits no more, whose question took so long, and gives back what they keep for
// it. Where that fails they believe it for a while.
func (m *Mutex) withdraw(ticket string, trip time.Duration) {
	m.briefly(context.WithoutCancel(m.ctx), min(withdrawLeast+withdrawTrips*trip, tellLimit), func(t target) error {
		return m.dialect.(notifying).withdraw(t, newProof(m.id, ticket), m.gone(ticket))
	})
	queues.wake(m.queue)
}

// gone is the message that a waiter waits no more.
func (m *Mutex) gone(ticket string) string {
	return message{Table: m.dialect.(notifying).tableID(), ID: m.id, Gone: ticket}.text()
}

// briefly tries a statement once that nothing depends on. GORM logs its error.
func (m *Mutex) briefly(ctx context.Context, limit time.Duration, try func(target) error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_ = m.tryOnce(ctx, try)
}
