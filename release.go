package dbmutex

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
	"github.com/gorm-dbmutex/dbmutex/internal/wake"
)

// Release gives the mutex back, also when the handle's context is done, and ends the lease's context. It tries for up to 5
// seconds, after a Renew that is under way.
//
// It returns nil if it was called in time and the row was there, or if a transaction with ReleaseIn has committed, however
// late it is called. After the lease has ended it returns ErrTimeout. The *TimeoutError says whether the lease was lost, or
// only ran out; it frees the mutex in that case, too. Calling it again returns the same.
//
// Any other error is the database's. If it is one that time can mend, the release goes on in the background: until it is
// done, the lease has ended (after an hour if it never expires), or the pool is closed. The error says so. Release may be
// called again meanwhile; no other verb of the lease works then. If the deadline has passed as well, that error is in a
// *TimeoutError with Lost, as nobody could ask for the row. Renewals have ended in any case.
//
// To learn how a transaction with ReleaseIn ended, or to undo what it handed on to a waiter that has gone, Release may need
// some seconds more. While a transaction pins the lease with Guard, Release waits for it, and says so if the 5 seconds pass.
func (l *Lease) Release() error {
	if l == nil || l.mutex == nil {
		return errNoLease
	}
	return l.release(time.Now())
}

// release is Release after work that ended at a moment.
func (l *Lease) release(ended time.Time) (err error) {
	if l.telling != nil {
		defer func() { l.tellEnded(ended, l.howEnded(), err) }()
	}
	return l.releaseRow(ended)
}

// releaseRow is release without a word to the observer.
func (l *Lease) releaseRow(ended time.Time) error {
	if l.stopRenewing != nil {
		l.stopRenewing()
	}
	l.verb.Lock()
	defer l.verb.Unlock()
	m := l.mutex
	if l.current() != held {
		return l.result()
	}
	l.mu.Lock()
	l.ending = true
	l.mu.Unlock()
	limit := time.Now().Add(locktable.Limit)
	var o locktable.Outcome
	next, turn := queues.next(l, l.minHold() == 0 && l.releasedBy() == nil && l.leaves() == nil)
	verb := "release"
	var unrecorded error
	switch {
	case next != nil:
		var handed *Lease
		inDoubt := true // also if a panic ends it
		defer func() { queues.hand(next, handed, inDoubt) }()
		handed, o = l.handOn(next, limit)
		inDoubt = o.Doubt && o.Err != nil
		if m.table.Refused(o.Err) { // as the waiter's, which will hear of that when it asks
			if own := l.giveBack(l.parent, limit); own.Row == locktable.RowFound {
				own.Doubt = own.Doubt || o.Doubt
				o = own
			}
		}
	case turn != nil:
		o = m.table.Reserve(l.parent, limit, l.key, *turn, l.async())
		if m.table.Refused(o.Err) {
			before := o.Doubt
			turn, o = nil, l.giveBack(l.parent, limit)
			o.Doubt = o.Doubt || before
		}
	case l.leaves() != nil:
		verb = "record the success of"
		o = l.giveBack(l.parent, limit)
		if m.table.Refused(o.Err) { // others may try
			unrecorded, verb = m.failed(l.parent, verb, o.Err), "release"
			_ = l.leave(nil)
			before := o.Doubt
			o = l.giveBack(l.parent, limit)
			o.Doubt = o.Doubt || before
		}
	default:
		o = l.giveBack(l.parent, limit)
	}
	if l.conclude(o, ended, next != nil) {
		if l.current() == released && (turn == nil || o.Row != locktable.RowFound) {
			queues.wake(m.key)
		}
		if o.Row == locktable.RowFound && o.Err != nil { // a callback's
			return errors.Join(l.result(), unrecorded, m.failed(l.parent, verb, o.Err))
		}
		if unrecorded != nil {
			return errors.Join(l.result(), unrecorded)
		}
		return l.result()
	}
	l.cancel(context.Canceled)
	err := m.notReleased(l.parent, limit, verb, o.Err)
	if l.releaseLater(o.Err, ended) {
		err = fmt.Errorf("%w; it goes on in the background", err)
	}
	if unrecorded != nil {
		err = errors.Join(unrecorded, err)
	}
	if late := l.late(ended); late > 0 && l.releasedBy() == nil {
		return l.unasked(late, err)
	}
	return err
}

// conclude ends the lease with what became of its row, after work that ended at a moment. It is false if that is not known.
// The row may have been handed on.
func (l *Lease) conclude(o locktable.Outcome, ended time.Time, handedOn bool) bool {
	l.doubt = l.doubt || o.Doubt
	late := l.late(ended)
	switch o.Row {
	case locktable.RowFound:
		l.mu.Lock()
		l.transaction = nil // the row was there, so that one had rolled back
		l.recorded = l.record != nil
		l.mu.Unlock()
		var outcome error
		if late > 0 {
			outcome = l.timeout(handedOn && o.Doubt, late, nil) // the row may be the next one's, by its own acquire
		}
		l.end(released, outcome)
	case locktable.RowMissing:
		l.endMissing(late, o.Err)
	default:
		return false
	}
	if !o.Told {
		l.tellGone()
	}
	return true
}

// releaseLater goes on in the background with a release that failed, unless no other try can mend that, or the lease has
// ended. It says whether one does.
func (l *Lease) releaseLater(failure error, ended time.Time) bool {
	until, expires := l.ExpiresAt()
	switch {
	case !l.mutex.table.Mends(failure), expires && time.Until(until) <= 0:
		return false
	case time.Now().Before(l.finishing):
		return true
	case !expires:
		until = time.Now().Add(locktable.LaterLimit)
	}
	l.finishing = until
	l.mutex.table.Later(l.parent, until, func(ctx context.Context) (done bool) {
		l.verb.Lock()
		defer l.verb.Unlock()
		if l.current() != held {
			return true
		}
		o := l.giveBack(ctx, time.Time{})
		if l.conclude(o, ended, false) {
			queues.wake(l.mutex.key)
			return true
		}
		if l.leaves() != nil && l.mutex.table.Refused(o.Err) { // others may try
			_ = l.leave(nil)
			return false
		}
		if l.mutex.table.Mends(o.Err) {
			return false
		}
		l.finishing = time.Time{}
		return true
	})
	return true
}

// result is what the release of a lease that has ended gives.
func (l *Lease) result() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.outcome
}

// tellGone tells other processes that nobody waits for the lease any more. It is for a lease that was not ended by a
// statement which said so.
func (l *Lease) tellGone() {
	if l.ticket == "" {
		return
	}
	ctx, cancel := context.WithTimeout(l.parent, tellLimit)
	defer cancel()
	l.mutex.table.Tell(ctx, l.key.LockID, l.mutex.goneMessage(l.ticket))
}

// giveBack ends the lease's row, or makes it the record that it leaves. Without a limit it is not patient.
func (l *Lease) giveBack(ctx context.Context, limit time.Time) locktable.Outcome {
	m := l.mutex
	if record := l.leaves(); record != nil {
		return m.table.Complete(ctx, limit, l.key, *record, m.key.listens())
	}
	r := locktable.Release{
		Key:     l.key,
		MinHold: l.minHold(),
		Async:   l.async(),
		Notify:  m.settings.TTL != nil && m.table.Notifies() && wake.Listen != nil,
	}
	switch {
	case !r.Notify: // it tells nobody anything
	case l.ticket != "":
		r.Message = m.goneMessage(l.ticket)
	default:
		r.Unaware = queues.unaware(m.key)
	}
	o := m.table.Release(ctx, limit, r)
	if o.Knocked {
		queues.knocked(m)
	}
	return o
}

// async says whether a crash of the server may undo the release. Without a TTL that would leave the lease for ever.
func (l *Lease) async() bool { return l.mutex.settings.TTL != nil }

// minHold is how long after its acquisition the mutex stays taken, or 0 if that time is over.
func (l *Lease) minHold() time.Duration {
	if hold := l.mutex.settings.MinHold; time.Since(l.acquired) < hold {
		return hold
	}
	return 0
}

// undo ends a lease that nobody will use.
func (l *Lease) undo() {
	l.end(released, nil)
	l.discard()
	queues.wake(l.mutex.key)
}

func (l *Lease) discard() { l.mutex.discard(l.key, l.mutex.settings.TTL) }

// releaseAndLog is for a release whose error nobody would get.
func (l *Lease) releaseAndLog() {
	if err := l.Release(); err != nil {
		l.mutex.config.Logger.Error(l.parent, "%v", err)
	}
}
