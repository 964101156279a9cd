package dbmutex

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// Lease is one holding of a mutex, from acquire to release. Its methods may be called from many goroutines.
type Lease struct {
	mutex  *Mutex
	key    locktable.Key
	token  int64
	slot   int    // of a semaphore's; 0 of a mutex's
	ticket string // under which other processes take it for a waiter still; "" if they do not

	work     leaseContext    // the handle's context, with the lease for LeaseFrom
	parent   context.Context // the handle's without its end, for statements that must run nevertheless
	ctx      context.Context // guarded by mu
	cancel   context.CancelCauseFunc
	acquired time.Time   // when the answer came
	timer    *time.Timer // ends ctx at the deadline; nil = never

	inTransaction bool     // it is Mutex.Transaction's
	received      bool     // this process's last holder handed it on
	stopRenewing  func()   // nil = there are no renewals
	telling       *telling // nil = nobody is told

	verb sync.Mutex // held by the one Renew or Release that runs
	// Guarded by verb:
	doubt     bool      // a release may have had its effect, but its answer did not come
	finishing time.Time // until when a release goes on in the background, unless it is done before

	mu          sync.Mutex // guards what follows
	deadline    time.Time  // zero = never
	state       state
	transaction *string           // the one that ReleaseIn made a part of its work, if any
	failure     error             // of the last renewal, if it failed
	outcome     error             // of the release, once the state is not held
	ending      bool              // it was to be released, whether that was done or not
	handedOn    bool              // its release gave its row to a waiter of this process
	record      *locktable.Record // what its release leaves; nil = nothing
	recorded    bool              // that is done
}

// state is how far a lease has come. A lease past its deadline is held until a statement finds otherwise.
type state int

const (
	held     state = iota
	released       // by its release, or by a transaction with ReleaseIn
	lost           // its row was gone otherwise
)

// leaseContext is a context that knows its lease.
type leaseContext struct {
	context.Context
	lease *Lease
}

type leaseContextKey struct{}

// Value also has the lease.
func (c *leaseContext) Value(key any) any {
	if key == (leaseContextKey{}) {
		return c.lease
	}
	return c.Context.Value(key)
}

// LeaseFrom returns the lease of the Do, Decorate, DoValue or Transaction that the context comes from: from the
// argument of Do's fn, or tx.Statement.Context in Transaction's.
func LeaseFrom(ctx context.Context) (*Lease, bool) {
	if ctx == nil {
		return nil, false
	}
	lease, ok := ctx.Value(leaseContextKey{}).(*Lease)
	return lease, ok
}

// newLease begins the lease that an answer gives.
func newLease(m *Mutex, k locktable.Key, a locktable.Answer) *Lease {
	var told *telling
	if m.acquiring != nil {
		m, told = m.acquiring.mutex, &telling{}
	}
	k.RowID = a.RowID
	l := &Lease{mutex: m, key: k, token: a.Token, slot: a.Slot, parent: m.ctx, acquired: time.Now(), telling: told}
	if m.ctx.Done() != nil {
		l.parent = context.WithoutCancel(m.ctx)
	}
	l.work = leaseContext{m.ctx, l}
	l.ctx, l.cancel = context.WithCancelCause(&l.work)
	if ttl := m.settings.TTL; ttl != nil {
		l.deadline = a.Start.Add(*ttl)
		runOut := func() {
			timeout := l.unasked(0, nil)
			l.cancel(timeout)
			l.tellSoon(LeaseRanOut, timeout)
		}
		if l.expired() { // the answer came late
			runOut()
		}
		l.timer = time.AfterFunc(time.Until(l.deadline), runOut)
	}
	return l
}

// LockID is the id of the mutex, or of the semaphore.
func (l *Lease) LockID() string { return l.mutex.id }

// Token is the fencing token: it is greater than that of every earlier lease of the mutex, or of the semaphore's slot. A
// store outside of the database stays consistent if it refuses a token smaller than the greatest it has seen.
func (l *Lease) Token() int64 { return l.token }

// Context ends with the first of these:
//   - the end of the handle's context;
//   - the lease's deadline, even while the database hangs: context.Cause is a *TimeoutError. Nobody has asked yet whether
//     the lease was lost, so its Lost is true;
//   - a renewal that finds the lease lost: context.Cause is a *TimeoutError;
//   - the release: context.Cause is context.Canceled.
//
// Its Err is context.Canceled in the last three cases. It has no Deadline: see ExpiresAt.
func (l *Lease) Context() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ctx
}

// ExpiresAt is when the lease ends unless it is renewed, by this process's clock and not later than by the database's;
// ok is false for one that never expires.
func (l *Lease) ExpiresAt() (t time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deadline, !l.deadline.IsZero()
}

func (l *Lease) expired() bool {
	deadline, expires := l.ExpiresAt()
	return expires && time.Until(deadline) <= 0
}

// usable says that nobody has asked for the lease's end.
func (l *Lease) usable() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == held && !l.ending
}

func (l *Lease) current() state {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// holds says whether the lease has the mutex, as far as is known without SQL. It may not after ReleaseIn, or after a release
// that failed.
func (l *Lease) holds() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	expired := !l.deadline.IsZero() && time.Until(l.deadline) <= 0
	return l.state == held && !expired && l.transaction == nil && !l.ending
}

// end ends the lease and its context. The outcome is the release's: nil, or a *TimeoutError.
func (l *Lease) end(s state, outcome error) {
	l.mu.Lock()
	l.state, l.outcome = s, outcome
	l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
	if outcome == nil {
		l.cancel(context.Canceled)
	} else {
		l.cancel(outcome)
	}
}

// endMissing ends a lease whose row is not there, nor perhaps the table (err).
func (l *Lease) endMissing(late time.Duration, err error) {
	if l.fateOfMissingRow(late, err) == released {
		var unrecorded error
		if l.leaves() != nil {
			unrecorded = errOwnEnd
		}
		l.end(released, unrecorded)
	} else {
		l.end(lost, l.timeout(true, late, err))
	}
}

// fateOfMissingRow says why the row of a lease is not there: its own release or transaction has removed it, or the lease is
// lost.
func (l *Lease) fateOfMissingRow(late time.Duration, err error) state {
	if err == nil && l.doubt && late == 0 && l.leaves() == nil { // of a record, the row would be there
		return released // by a try whose answer did not come
	}
	transaction := l.releasedBy()
	if transaction == nil {
		return lost
	}
	fate, _ := l.mutex.table.Fate(l.parent, l.key, *transaction)
	if fate == locktable.Aborted || fate == locktable.Unknown && l.expired() {
		return lost
	}
	return released
}

// late is how long after the deadline a moment is, or 0 if it is before.
func (l *Lease) late(moment time.Time) time.Duration {
	deadline, expires := l.ExpiresAt()
	if !expires || moment.Before(deadline) {
		return 0
	}
	return max(moment.Sub(deadline), 1)
}

// timeout is the error of a lease that ended before its work. err is what failed last, or nil if that was a renewal.
func (l *Lease) timeout(lost bool, late time.Duration, err error) *TimeoutError {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		err = l.failure
	}
	return &TimeoutError{LockID: l.mutex.id, Lost: lost, Late: late, Err: err, lease: l}
}

// unasked is timeout for a deadline that has passed while nobody has asked for the row.
func (l *Lease) unasked(late time.Duration, err error) *TimeoutError {
	timeout := l.timeout(true, late, err)
	timeout.unasked = true
	return timeout
}

// Renew makes the lease last its TTL from now. It tries for up to 5 seconds, but not past the lease's end. It works while
// the handle's context is done, too, for work that is winding down.
//
// Once the lease has ended it returns ErrTimeout without SQL. If it finds the lease lost, or its time over by the database's
// clock, it ends the lease's context and returns ErrTimeout: a mutex that was free for a moment stays free. Any other error
// is the database's: the lease then lasts as long as before. A lease that never expires is only looked for.
func (l *Lease) Renew() error {
	if l == nil || l.mutex == nil {
		return errNoLease
	}
	return l.renew(l.parent, 1)
}

// renew is Renew, which goes on for a part of the time that the lease has left.
func (l *Lease) renew(ctx context.Context, part time.Duration) error {
	l.verb.Lock()
	defer l.verb.Unlock()
	m := l.mutex
	switch now := time.Now(); {
	case !l.usable():
		return l.over()
	case l.expired():
		return l.unasked(l.late(now), nil)
	}
	limit := time.Now().Add(locktable.Limit)
	if deadline, expires := l.ExpiresAt(); expires {
		if end := time.Now().Add(time.Until(deadline) / part); end.Before(limit) {
			limit = end
		}
	}
	transaction := l.releasedBy()
	o, start := m.table.Renew(ctx, limit, l.key, m.settings.TTL)
	switch {
	case l.expired():
		if o.Err != nil {
			_ = l.remember(o.Err)
		}
		return l.unasked(l.late(time.Now()), nil)
	case o.Row == locktable.RowFound:
		l.doubt = false
		err := l.extend(start, transaction)
		if err == nil {
			l.tellSoon(LeaseRenewed, nil)
		}
		return err
	case o.Row == locktable.RowMissing:
		l.endMissing(0, o.Err)
		if l.current() == lost {
			l.tellSoon(LeaseLost, l.result())
		} else {
			l.tellNoTimeUp()
		}
		return l.over()
	case o.Row == locktable.RowEnded:
		return l.runOut(errEnded)
	case ctx.Err() != nil: // the work is done
		return m.failed(ctx, "renew", o.Err)
	}
	return l.remember(o.Err)
}

// remember words the failure of a renewal, and keeps it for the error of a lease that ends because of it. One that only had
// no time left says less than the one before.
func (l *Lease) remember(cause error) error {
	failure := l.mutex.failed(l.parent, "renew", cause)
	l.mu.Lock()
	if l.failure == nil || !errors.Is(cause, context.DeadlineExceeded) {
		l.failure = failure
	}
	l.mu.Unlock()
	l.tellSoon(RenewalFailed, failure)
	return failure
}

// runOut ends the lease's context now, before its deadline. Its row is left to the release, which tells whether somebody
// else had the mutex in between.
func (l *Lease) runOut(why error) error {
	l.mu.Lock()
	l.deadline = time.Now()
	l.mu.Unlock()
	timeout := l.unasked(0, why)
	if l.timer != nil {
		l.timer.Stop()
	}
	l.cancel(timeout)
	l.tellSoon(LeaseRanOut, timeout)
	return timeout
}

// over is the error of a verb that needs a lease which has ended.
func (l *Lease) over() error {
	if outcome := l.result(); outcome != nil {
		return outcome
	}
	return l.timeout(true, 0, errReleased)
}

// extend moves the deadline after a renewal that was asked for at start, after ReleaseIn in transaction, if any.
func (l *Lease) extend(start time.Time, transaction *string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failure = nil
	if l.transaction == transaction {
		l.transaction = nil // the row was there, so that one had rolled back
	}
	if l.timer == nil {
		return nil
	}
	if !l.timer.Stop() { // the context is just ending
		return &TimeoutError{LockID: l.mutex.id, Lost: true, lease: l, unasked: true}
	}
	l.deadline = start.Add(*l.mutex.settings.TTL)
	l.timer.Reset(time.Until(l.deadline))
	return nil
}

func (l *Lease) releasedBy() *string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.transaction
}

// keepRenewing starts the renewals, unless they are not wanted or run already.
func (l *Lease) keepRenewing() {
	if s := &l.mutex.settings; s.Renew && s.TTL != nil && l.stopRenewing == nil {
		l.startRenewing()
	}
}

// startRenewing renews the lease every TTL/3 until it is released or lost. It tries a failed renewal again after TTL/30. A
// renewal goes on for half of the time that is left, so that its failure is known before the lease ends.
func (l *Lease) startRenewing() {
	ctx, cancel := context.WithCancel(l.parent)
	done := make(chan struct{})
	l.stopRenewing = func() { cancel(); <-done }
	ttl := *l.mutex.settings.TTL
	go func() {
		defer close(done)
		for pause := ttl / 3; locktable.Sleep(ctx, pause) == nil; {
			err := l.renew(ctx, 2)
			pause = ttl / 3
			switch {
			case errors.Is(err, ErrTimeout):
				return
			case err != nil && ctx.Err() == nil:
				l.mutex.config.Logger.Warn(ctx, "%v; there will be another try", err)
				pause = ttl / 30
			}
		}
	}()
}

// Lost says whether somebody else may have held the mutex before the work ended, as TimeoutError.Lost does. It runs no SQL.
//   - Once Release, or a Do that calls it, has returned nil or ErrTimeout, Lost is final: it is false for a lease that was
//     released in time or only ran out.
//   - Before, it is true if a renewal has found the lease lost, or if the deadline has passed: nobody has asked then.
//
// It is false for a nil lease.
func (l *Lease) Lost() bool {
	if l == nil || l.mutex == nil {
		return false
	}
	if l.current() == held {
		return l.expired() && l.releasedBy() == nil
	}
	var timeout *TimeoutError
	return errors.As(l.result(), &timeout) && timeout.Lost
}

// Do is Mutex.Do under a lease that is there already, as from Acquire: it runs fn with the lease's context and releases.
// If the lease has ended before, fn does not run: Do releases what is left of it and returns ErrTimeout.
func (l *Lease) Do(fn func(ctx context.Context) error) error {
	switch {
	case l == nil || l.mutex == nil:
		return errNoLease
	case fn == nil:
		return errNilFunc
	case !l.usable():
		return l.over()
	case l.expired():
		if err := l.Release(); err != nil {
			return err
		}
		return l.over()
	}
	return l.run(fn)
}

func (l *Lease) run(fn func(ctx context.Context) error) error {
	returned := false
	defer func() {
		if !returned {
			l.releaseAndLog()
		}
	}()
	err := fn(l.Context())
	ended := time.Now()
	returned = true
	return l.finish(ended, err)
}

// finish releases after work that ended at a moment and returned workErr, and words the outcome of both. What it says of the
// lease comes first, before what the work has heard of it, which may be a guess.
func (l *Lease) finish(ended time.Time, workErr error) error {
	err := l.release(ended)
	switch {
	case workErr == nil, errors.Is(err, ErrTimeout) && l.heard(workErr):
		return err
	case err == nil:
		return workErr
	}
	return errors.Join(err, workErr)
}

// heard says whether the work's error is nothing but what it was told of the lease.
func (l *Lease) heard(workErr error) bool {
	told, is := workErr.(*TimeoutError)                   //nolint:errorlint // one that is wrapped says more
	return is && told.lease == l || workErr == ErrTimeout //nolint:errorlint // likewise
}
