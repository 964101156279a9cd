package dbmutex

import (
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// handOn makes the lease's row the next lease's. It returns nil if the row was not there.
func (l *Lease) handOn(next *waiter, limit time.Time) (*Lease, locktable.Outcome) {
	a, o := l.mutex.table.HandOn(l.parent, limit, l.key, next.request)
	if o.Row != locktable.RowFound {
		return nil, o
	}
	l.mu.Lock()
	l.handedOn = true
	l.mu.Unlock()
	received := newLease(next.mutex, next.request.Key, a)
	received.received = true
	return received, o
}

// pass gives a lease that nobody has used to a waiter of another process.
func (l *Lease) pass(to locktable.Reservation) {
	l.end(released, nil)
	o := l.mutex.table.Reserve(l.parent, time.Now().Add(locktable.Limit), l.key, to, l.async())
	if o.Row != locktable.RowFound {
		l.discard()
		l.tellGone()
	}
}

// hand keeps the promise to a receiver, or takes it back if there is no lease; in doubt there may be one in the database.
func (qs *queueSet) hand(w *waiter, lease *Lease, doubt bool) {
	qs.mu.Lock()
	r := remains{
		late: lease, doubt: doubt, acquired: w.stage == served,
		announce: w.stage == gone && w.hasAnnounced(),
	}
	waits := w.stage < gone
	if waits {
		switch {
		case lease != nil:
			w.lease, w.stage = lease, handed
		case w.stage == hurried:
			w.stage = asking
		default:
			w.stage = resting
		}
		w.doubt = w.doubt || doubt
		w.signal()
	}
	qs.mu.Unlock()
	if !waits {
		w.settle(r)
	}
}
