package dbmutex

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex/internal/wake"
)

// Lease is one holding of a mutex, from acquire to release. Its methods may be called from many goroutines.
type Lease struct {
	mutex    *Mutex
	proof    proof
	token    int64
	work     leaseContext    // the handle's context, with the lease for LeaseFrom
	parent   context.Context // the handle's without its end, for statements that must run all the same
	ctx      context.Context
	end      context.CancelCauseFunc
	acquired time.Time   // when the answer came
	timer    *time.Timer // ends ctx at the deadline; nil = never
	stopKeep func()      // ends the renewals; nil = there are none

	inTransaction bool   // Mutex.Transaction's
	ticket        string // under which other processes take it for a waiter still; "" where they do not

	verb  sync.Mutex // held by the one Renew or Release that runs
	doubt bool       // guarded by verb: a release may have had its effect without an answer

	mu          sync.Mutex // guards what follows
	deadline    time.Time
	state       state
	transaction *string // the one that ReleaseIn made a part of its work, if any
	failure     error   // of the last renewal, if it failed
	outcome     error   // of the release, once the state is not held
}

// state is how far a lease has come. One past its deadline is held until a statement finds otherwise.
type state int

const (
	held state = iota
	released
	lost
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
func newLease(m *Mutex, p proof, a answer) *Lease {
	l := &Lease{mutex: m, proof: p, token: a.token, parent: m.ctx, acquired: time.Now()}
	if m.ctx.Done() != nil {
		l.parent = context.WithoutCancel(m.ctx)
	}
	l.work = leaseContext{m.ctx, l}
	l.ctx, l.end = context.WithCancelCause(&l.work)
	if ttl := m.settings.TTL; ttl != nil {
		l.deadline = a.start.Add(*ttl)
		runOut := func() { l.end(l.unasked(0, nil)) }
		if l.expired() { // the answer came late
			runOut()
		}
		l.timer = time.AfterFunc(time.Until(l.deadline), runOut)
	}
	return l
}

// LockID is the mutex's id.
func (l *Lease) LockID() string { return l.proof.lockID }

// Token is the fencing token: it is greater than that of every earlier lease of the mutex. A store outside of the
// database stays consistent if it refuses a token smaller than the greatest it has seen.
func (l *Lease) Token() int64 { return l.token }

// Context ends when the handle's context does; when the lease does, at its deadline, even while the database hangs, or as
// soon as a renewal finds it lost; or when the lease is released. Its Err is context.Canceled then, and it has no Deadline:
// see ExpiresAt. Where the lease ended first, context.Cause gives a *TimeoutError. At the deadline nobody has asked yet
// whether the lease was lost, so its Lost is true. Where the lease was released the cause is context.Canceled.
func (l *Lease) Context() context.Context { return l.ctx }

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

func (l *Lease) current() state {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// become ends the lease and its context. The outcome is the release's: nil, or a *TimeoutError.
func (l *Lease) become(s state, outcome error) {
	l.mu.Lock()
	l.state, l.outcome = s, outcome
	l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
	if outcome == nil {
		l.end(context.Canceled)
	} else {
		l.end(outcome)
	}
}

// late is how long after the deadline a moment is, or 0 where it is before.
func (l *Lease) late(moment time.Time) time.Duration {
	deadline, expires := l.ExpiresAt()
	if !expires || moment.Before(deadline) {
		return 0
	}
	return max(moment.Sub(deadline), 1)
}

// timeout is the error of a lease that ended before its work; err is what failed last, or nil where that was a renewal.
func (l *Lease) timeout(lost bool, late time.Duration, err error) *TimeoutError {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		err = l.failure
	}
	return &TimeoutError{LockID: l.proof.lockID, Lost: lost, Late: late, Err: err, lease: l}
}

// unasked is timeout where the deadline has passed and the row was not asked for.
func (l *Lease) unasked(late time.Duration, err error) *TimeoutError {
	timeout := l.timeout(true, late, err)
	timeout.unasked = true
	return timeout
}

// Renew makes the lease last its TTL from now. It tries for up to 5 seconds, but not past the lease's end. It works while
// the handle's context is done, too, for work that is winding down.
//
// Once the lease has ended it returns ErrTimeout without SQL. Where it finds the lease lost, it ends the lease's context
// and returns ErrTimeout. Any other error is the database's: the lease then lasts as long as before.
func (l *Lease) Renew() error {
	if l == nil || l.mutex == nil {
		return errNoLease
	}
	return l.renew(l.parent)
}

func (l *Lease) renew(ctx context.Context) error {
	l.verb.Lock()
	defer l.verb.Unlock()
	m := l.mutex
	switch now := time.Now(); {
	case l.current() != held:
		return l.over()
	case l.expired():
		return l.unasked(l.late(now), nil)
	}
	limit := time.Now().Add(settleLimit)
	if deadline, expires := l.ExpiresAt(); expires && deadline.Before(limit) {
		limit = deadline
	}
	var start time.Time
	var transaction *string
	var found bool
	_, err := m.settle(ctx, limit, func(t target) (err error) {
		start, transaction = time.Now(), l.releasedBy()
		found, err = m.dialect.renew(t, l.proof, m.settings.TTL)
		return err
	})
	switch {
	case l.expired():
		if err != nil {
			l.remember(m.failed(l.parent, "renew", err))
		}
		return l.unasked(l.late(time.Now()), nil)
	case err == nil && found:
		l.doubt = false
		return l.extend(start, transaction)
	case err == nil || m.dialect.missing(err):
		l.missed(0, err)
		return l.over()
	case ctx.Err() != nil: // the work is done
		return m.failed(ctx, "renew", err)
	}
	err = m.failed(ctx, "renew", err)
	l.remember(err)
	return err
}

// remember keeps the failure of a renewal, for the error of a lease that ends because of it.
func (l *Lease) remember(failure error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failure = failure
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
		return &TimeoutError{LockID: l.proof.lockID, Lost: true, lease: l, unasked: true}
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

// missed ends a lease whose row is not there: its own transaction has released it, or it was lost.
func (l *Lease) missed(late time.Duration, err error) {
	if transaction := l.releasedBy(); transaction != nil {
		f, failed := l.mutex.fate(l.parent, *transaction)
		if f != fateAborted && (failed == nil || !l.expired()) {
			l.become(released, nil)
			return
		}
	}
	l.become(lost, l.timeout(true, late, err))
}

// keep renews the lease every TTL/3 until it is released or lost; a renewal that fails is tried again.
func (l *Lease) keep() {
	ctx, cancel := context.WithCancel(l.parent)
	done := make(chan struct{})
	l.stopKeep = func() { cancel(); <-done }
	ttl := *l.mutex.settings.TTL
	go func() {
		defer close(done)
		for pause := ttl / 3; sleep(ctx, pause) == nil; {
			err := l.renew(ctx)
			if errors.Is(err, ErrTimeout) {
				return
			}
			if pause = ttl / 3; err != nil {
				pause = ttl / 30
			}
		}
	}()
}

// Release gives the mutex back, also when the handle's context is done, and ends the lease's context. It tries for up to 5
// seconds, after a Renew that is under way.
//
// It returns nil if it was called in time and the row was there, or if a transaction with ReleaseIn has committed, however
// late it is called. After the lease has ended it returns ErrTimeout. The *TimeoutError says whether the lease was lost, or
// only ran out; it frees the mutex in that case, too. Calling it again returns the same.
//
// Any other error is the database's: the lease may last until its TTL, and Release may be called again. Where the deadline
// has passed as well, that error is in a *TimeoutError with Lost, as the row could not be asked for.
//
// While a transaction pins the lease with Guard, Release waits for it, and says so if the 5 seconds pass.
func (l *Lease) Release() error {
	if l == nil || l.mutex == nil {
		return errNoLease
	}
	return l.release(time.Now())
}

// release is Release after work that ended at a moment.
func (l *Lease) release(ended time.Time) error {
	if l.stopKeep != nil {
		l.stopKeep()
	}
	l.verb.Lock()
	defer l.verb.Unlock()
	m := l.mutex
	if l.current() != held {
		return l.result()
	}
	limit := time.Now().Add(settleLimit)
	var found, doubt bool
	var err error
	inDoubt := true // also where a panic ends it
	next, turn := l.receiver()
	switch {
	case next != nil:
		var handed *Lease
		defer func() { queues.hand(next, handed, inDoubt) }()
		handed, doubt, err = l.handOn(next, limit)
		found = handed != nil
	case turn != nil:
		found, doubt, err = l.reserve(*turn, limit)
		if err != nil && m.dialect.classify(err) == refused {
			before := doubt
			found, doubt, err = l.giveBack(limit)
			doubt = doubt || before
		}
	default:
		found, doubt, err = l.giveBack(limit)
	}
	inDoubt = doubt && err != nil
	l.doubt = l.doubt || doubt
	late := l.late(ended)
	switch {
	case err != nil && !m.dialect.missing(err):
		l.end(context.Canceled)
		err = m.notReleased(l.parent, limit, "release", err)
		if late > 0 && l.releasedBy() == nil {
			return l.unasked(late, err)
		}
		return err
	case found:
		l.mu.Lock()
		l.transaction = nil // the row was there, so that one had rolled back
		l.mu.Unlock()
		var outcome error
		if late > 0 {
			outcome = l.timeout(next != nil && doubt, late, nil) // the row may be the next one's, by its own acquire
		}
		l.become(released, outcome)
	case err == nil && l.doubt && late == 0: // a missing row may be the work of a try whose answer was lost
		l.become(released, nil)
	default:
		l.missed(late, err)
	}
	if !found {
		l.tellGone()
	}
	if l.current() == released && turn == nil {
		queues.wake(m.queue)
	}
	return l.result()
}

// result is what the release of a lease that has ended gives.
func (l *Lease) result() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.outcome
}

// tellGone tells other processes, where the statement that ended the lease did not, that nobody waits for it.
func (l *Lease) tellGone() {
	if l.ticket != "" {
		m := l.mutex
		m.briefly(l.parent, tellLimit, func(t target) error { return m.dialect.(notifying).tell(t, m.id, m.gone(l.ticket)) })
	}
}

// giveBack ends the lease's row, and says whether it was there.
func (l *Lease) giveBack(limit time.Time) (found, doubt bool, err error) {
	m := l.mutex
	r := release{
		proof:   l.proof,
		minHold: l.minHold(),
		async:   m.settings.TTL != nil, // else a crash could leave the lease for good
		notify:  m.settings.TTL != nil && wake.Listen != nil,
	}
	var knocked bool
	switch {
	case !r.notify: // it tells nobody anything
	case l.ticket != "":
		r.message = m.gone(l.ticket)
	case queues.unaware(m.queue):
		r.knocked = &knocked
	}
	release := func(t target) (err error) {
		found, err = m.dialect.release(t, r)
		r.knocked = nil
		return err
	}
	doubt, err = m.settle(l.parent, limit, release)
	if err != nil && r.notify && m.dialect.classify(err) == refused { // perhaps the notification was
		r.notify, r.message = false, ""
		before := doubt
		doubt, err = m.settle(l.parent, limit, release)
		doubt = doubt || before
	}
	if knocked {
		queues.knocked(m.queue, m.dialect)
	}
	if found && r.message == "" {
		l.tellGone()
	}
	return found, doubt, err
}

// reserve ends the lease's row for a waiter of another process. A try whose answer was lost leaves a row that is not the
// lease's, and must stay as it is.
func (l *Lease) reserve(to turn, limit time.Time) (found, doubt bool, err error) {
	m := l.mutex
	doubt, err = m.settle(l.parent, limit, func(t target) (err error) {
		found, err = m.dialect.(notifying).reserve(t, l.proof, to, m.settings.TTL != nil)
		return err
	})
	return found, doubt, err
}

// pass gives a lease that nobody has used to a waiter of another process.
func (l *Lease) pass(to turn) {
	l.become(released, nil)
	if found, _, err := l.reserve(to, time.Now().Add(settleLimit)); err != nil || !found {
		_ = l.mutex.discard(l.proof) // GORM has logged the error
	}
}

// handOn makes the lease's row the next lease's. It returns nil where the row had gone.
func (l *Lease) handOn(next *waiter, limit time.Time) (lease *Lease, doubt bool, err error) {
	m := l.mutex
	var a answer
	again := false
	doubt, err = m.settle(l.parent, limit, func(t target) (err error) {
		a.start = time.Now()
		a.token, err = m.dialect.(notifying).handOn(t, l.proof, next.request, again)
		again = again || err != nil && m.dialect.classify(err) == unknown
		return err
	})
	if err == nil && a.token != 0 {
		lease = newLease(next.mutex, next.request.proof, a)
	}
	return lease, doubt, err
}

// receiver is the waiter that gets the mutex from this lease's release, of this process or of another one, if any.
func (l *Lease) receiver() (*waiter, *turn) {
	return queues.next(l, l.minHold() == 0 && l.releasedBy() == nil)
}

// minHold is how long after its acquisition the mutex stays taken, or 0 where that time is over.
func (l *Lease) minHold() time.Duration {
	if hold := l.mutex.settings.MinHold; time.Since(l.acquired) < hold {
		return hold
	}
	return 0
}

// undo ends a lease that nobody will use.
func (l *Lease) undo() {
	l.become(released, nil)
	_ = l.mutex.discard(l.proof) // GORM has logged the error
	queues.wake(l.mutex.queue)
}

// Lost says whether somebody else may have held the mutex before the work's end, as TimeoutError.Lost does. It asks nobody.
// It is final once Release has returned nil or ErrTimeout (Do has called it then). Before that it is true where a renewal has
// found the lease lost, or where the deadline has passed and nobody has asked for the row. It is false for a lease that was
// released in time, or only ran out, and for one that is nil.
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

// releaseAndLog is for a release whose error nobody would get.
func (l *Lease) releaseAndLog() {
	if err := l.Release(); err != nil {
		l.mutex.config.Logger.Error(l.parent, "%v", err)
	}
}

// Do is Mutex.Do under a lease that is there already, as from Acquire: it runs fn with the lease's context and releases.
// Where the lease has ended before, fn does not run. Do then releases what is left of it and returns ErrTimeout.
func (l *Lease) Do(fn func(ctx context.Context) error) error {
	switch {
	case l == nil || l.mutex == nil:
		return errNoLease
	case fn == nil:
		return errNilFunc
	case l.current() != held:
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
	err := fn(l.ctx)
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

// Guard fails the transaction where the lease was lost, and pins the lease until the transaction ends: nobody takes it
// over meanwhile, even past its deadline. Where it cannot, it rolls the transaction back, so that nothing is committed
// even if its error is ignored. tx must be on the lock's own database.
//
// The error is ErrTimeout where the lease was lost, gorm.ErrInvalidTransaction where tx is not a transaction, tx's own, or
// the database's. Keep such transactions short: Release and ForceRelease wait for them.
func (l *Lease) Guard(tx *gorm.DB) error {
	return l.within(tx, "guard", func(d dialect, t target) (bool, error) { return d.guard(t, l.proof) })
}

// ReleaseIn makes the release a part of a transaction: it commits, or rolls back, with it. Others get the mutex with the
// commit; call Release all the same (Do does), which then has nothing left to do, or releases if the transaction rolled
// back. It fails as Guard does. In Mutex.Transaction, which does this by itself, it gives ErrInvalidSettings.
//
// The lease's context goes on after the commit until Release or, as its row is gone, a renewal. A transaction under that
// context cannot commit after the deadline: begin it on a handle with another one if it should.
//
// Call it on the transaction itself, not in a nested one: that may roll back to its savepoint while the whole commits.
// On SQLite, which keeps no record of transactions, a lease that is gone after ReleaseIn counts as released by it.
func (l *Lease) ReleaseIn(tx *gorm.DB) error {
	if l != nil && l.inTransaction {
		return fmt.Errorf("%w: Mutex.Transaction releases its lease itself", ErrInvalidSettings)
	}
	return l.within(tx, "release", func(d dialect, t target) (bool, error) {
		found, transaction, err := d.releaseIn(t, l.proof, l.minHold())
		if found && err == nil {
			l.mu.Lock()
			l.transaction = &transaction
			l.mu.Unlock()
		}
		return found, err
	})
}

// within runs a statement that must find the lease's row in a transaction of the caller's.
func (l *Lease) within(tx *gorm.DB, verb string, statement func(dialect, target) (bool, error)) error {
	if l == nil || l.mutex == nil {
		return errNoLease
	}
	switch {
	case tx == nil || tx.Config == nil || tx.Statement == nil:
		return fmt.Errorf("dbmutex: %s %q: %w", verb, l.proof.lockID, gorm.ErrInvalidTransaction)
	case tx.Error != nil:
		return tx.Error
	case tx.DryRun:
		return ErrDryRun
	case !inTransaction(tx):
		return fmt.Errorf("dbmutex: %s %q: %w", verb, l.proof.lockID, gorm.ErrInvalidTransaction)
	}
	m := l.mutex
	ctx := tx.Statement.Context
	found, err := statement(m.dialect, in(ctx, tx))
	switch {
	case m.dialect.missing(err), err == nil && !found:
		err = l.timeout(true, l.late(time.Now()), err)
	case err != nil:
		err = m.failed(ctx, verb, err)
	default:
		return nil
	}
	_ = tx.AddError(err)
	_ = tx.Statement.ConnPool.(gorm.TxCommitter).Rollback()
	return err
}
