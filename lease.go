package dbmutex

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
	"github.com/gorm-dbmutex/dbmutex/internal/wake"
)

// Lease is one holding of a mutex, from acquire to release. Its methods may be called from many goroutines.
type Lease struct {
	mutex  *Mutex
	key    locktable.Key
	token  int64
	ticket string // under which other processes take it for a waiter still; "" if they do not

	work     leaseContext    // the handle's context, with the lease for LeaseFrom
	parent   context.Context // the handle's without its end, for statements that must run nevertheless
	ctx      context.Context
	cancel   context.CancelCauseFunc
	acquired time.Time   // when the answer came
	timer    *time.Timer // ends ctx at the deadline; nil = never

	inTransaction bool   // it is Mutex.Transaction's
	stopRenewing  func() // nil = there are no renewals

	verb sync.Mutex // held by the one Renew or Release that runs
	// Guarded by verb:
	doubt     bool // a release may have had its effect, but its answer did not come
	finishing bool // a release goes on in the background

	mu          sync.Mutex // guards what follows
	deadline    time.Time  // zero = never
	state       state
	transaction *string // the one that ReleaseIn made a part of its work, if any
	failure     error   // of the last renewal, if it failed
	outcome     error   // of the release, once the state is not held
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
	l := &Lease{mutex: m, key: k, token: a.Token, parent: m.ctx, acquired: time.Now()}
	if m.ctx.Done() != nil {
		l.parent = context.WithoutCancel(m.ctx)
	}
	l.work = leaseContext{m.ctx, l}
	l.ctx, l.cancel = context.WithCancelCause(&l.work)
	if ttl := m.settings.TTL; ttl != nil {
		l.deadline = a.Start.Add(*ttl)
		runOut := func() { l.cancel(l.unasked(0, nil)) }
		if l.expired() { // the answer came late
			runOut()
		}
		l.timer = time.AfterFunc(time.Until(l.deadline), runOut)
	}
	return l
}

// LockID is the mutex's id.
func (l *Lease) LockID() string { return l.key.LockID }

// Token is the fencing token: it is greater than that of every earlier lease of the mutex. A store outside of the
// database stays consistent if it refuses a token smaller than the greatest it has seen.
func (l *Lease) Token() int64 { return l.token }

// Context ends with the first of these:
//   - the end of the handle's context;
//   - the lease's deadline, even while the database hangs: context.Cause is a *TimeoutError. Nobody has asked yet whether
//     the lease was lost, so its Lost is true;
//   - a renewal that finds the lease lost: context.Cause is a *TimeoutError;
//   - the release: context.Cause is context.Canceled.
//
// Its Err is context.Canceled in the last three cases. It has no Deadline: see ExpiresAt.
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
		l.end(released, nil)
	} else {
		l.end(lost, l.timeout(true, late, err))
	}
}

// fateOfMissingRow says why the row of a lease is not there: its own release or transaction has removed it, or the lease is
// lost.
func (l *Lease) fateOfMissingRow(late time.Duration, err error) state {
	if err == nil && l.doubt && late == 0 {
		return released // by a try whose answer did not come
	}
	transaction := l.releasedBy()
	if transaction == nil {
		return lost
	}
	fate, err := l.mutex.table.Fate(l.parent, *transaction)
	if fate == locktable.Aborted || err != nil && l.expired() {
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
	return &TimeoutError{LockID: l.key.LockID, Lost: lost, Late: late, Err: err, lease: l}
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
	case l.current() != held:
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
			l.remember(m.failed(l.parent, "renew", o.Err))
		}
		return l.unasked(l.late(time.Now()), nil)
	case o.Row == locktable.RowFound:
		l.doubt = false
		return l.extend(start, transaction)
	case o.Row == locktable.RowMissing:
		l.endMissing(0, o.Err)
		return l.over()
	case o.Row == locktable.RowEnded:
		return l.runOut(errEnded)
	case ctx.Err() != nil: // the work is done
		return m.failed(ctx, "renew", o.Err)
	}
	err := m.failed(ctx, "renew", o.Err)
	l.remember(err)
	return err
}

// remember keeps the failure of a renewal, for the error of a lease that ends because of it.
func (l *Lease) remember(failure error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failure = failure
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
		return &TimeoutError{LockID: l.key.LockID, Lost: true, lease: l, unasked: true}
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

// Release gives the mutex back, also when the handle's context is done, and ends the lease's context. It tries for up to 5
// seconds, after a Renew that is under way.
//
// It returns nil if it was called in time and the row was there, or if a transaction with ReleaseIn has committed, however
// late it is called. After the lease has ended it returns ErrTimeout. The *TimeoutError says whether the lease was lost, or
// only ran out; it frees the mutex in that case, too. Calling it again returns the same.
//
// Any other error is the database's. If it is one that time can mend, the release goes on in the background: until it is
// done, the lease has ended (after an hour if it never expires), or the pool is closed. The error says so. Release may be
// called again meanwhile. If the deadline has passed as well, that error is in a *TimeoutError with Lost, as nobody could
// ask for the row. Renewals have ended in any case.
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
func (l *Lease) release(ended time.Time) error {
	if l.stopRenewing != nil {
		l.stopRenewing()
	}
	l.verb.Lock()
	defer l.verb.Unlock()
	m := l.mutex
	if l.current() != held {
		return l.result()
	}
	limit := time.Now().Add(locktable.Limit)
	var o locktable.Outcome
	next, turn := queues.next(l, l.minHold() == 0 && l.releasedBy() == nil)
	switch {
	case next != nil:
		var handed *Lease
		inDoubt := true // also if a panic ends it
		defer func() { queues.hand(next, handed, inDoubt) }()
		handed, o = l.handOn(next, limit)
		inDoubt = o.Doubt && o.Err != nil
	case turn != nil:
		o = m.table.Reserve(l.parent, limit, l.key, *turn, l.async())
		if m.table.Refused(o.Err) {
			before := o.Doubt
			turn, o = nil, l.giveBack(l.parent, limit)
			o.Doubt = o.Doubt || before
		}
	default:
		o = l.giveBack(l.parent, limit)
	}
	if l.conclude(o, ended, next != nil) {
		if l.current() == released && turn == nil {
			queues.wake(m.key)
		}
		return l.result()
	}
	l.cancel(context.Canceled)
	err := m.notReleased(l.parent, limit, "release", o.Err)
	if l.releaseLater(o.Err, ended) {
		err = fmt.Errorf("%w; it goes on in the background", err)
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
	case l.mutex.table.Refused(failure), expires && time.Until(until) <= 0:
		return false
	case l.finishing:
		return true
	case !expires:
		until = time.Now().Add(locktable.LaterLimit)
	}
	l.finishing = true
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
		l.finishing = !l.mutex.table.Refused(o.Err)
		return !l.finishing
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

// giveBack ends the lease's row. Without a limit it is not patient.
func (l *Lease) giveBack(ctx context.Context, limit time.Time) locktable.Outcome {
	m := l.mutex
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

// pass gives a lease that nobody has used to a waiter of another process.
func (l *Lease) pass(to locktable.Reservation) {
	l.end(released, nil)
	o := l.mutex.table.Reserve(l.parent, time.Now().Add(locktable.Limit), l.key, to, l.async())
	if o.Row != locktable.RowFound {
		l.discard()
		l.tellGone()
	}
}

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

// releaseAndLog is for a release whose error nobody would get.
func (l *Lease) releaseAndLog() {
	if err := l.Release(); err != nil {
		l.mutex.config.Logger.Error(l.parent, "%v", err)
	}
}

// Do is Mutex.Do under a lease that is there already, as from Acquire: it runs fn with the lease's context and releases.
// If the lease has ended before, fn does not run: Do releases what is left of it and returns ErrTimeout.
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

// Guard fails the transaction if the lease was lost. Else it pins the lease until the transaction ends: nobody takes it over
// meanwhile, even past its deadline. If it fails, it rolls the transaction back, so that nothing is committed even if its
// error is ignored. tx must be on the lock's own database.
//
// Call it on the transaction itself. In a nested one it pins the lease only until that one is over, if it rolls back to its
// savepoint.
//
// The error is ErrTimeout if the lease was lost, gorm.ErrInvalidTransaction if tx is not a transaction, tx's own, or the
// database's. Keep such transactions short: Release and ForceRelease wait for them.
func (l *Lease) Guard(tx *gorm.DB) error {
	return l.within(tx, "guard", func() locktable.Outcome { return l.mutex.table.Guard(tx, l.key) })
}

// ReleaseIn makes the release a part of a transaction: it commits, or rolls back, with it. Others get the mutex with the
// commit. Call Release afterwards (Do does): it has nothing left to do, or releases if the transaction rolled back.
// ReleaseIn fails as Guard does. In Mutex.Transaction, which releases by itself, it gives ErrInvalidSettings.
//
// The lease's context goes on after the commit until Release or, as its row is gone, a renewal. A transaction under that
// context cannot commit after the deadline: begin it on a handle with another context if it should.
//
// Call it on the transaction itself, not in a nested one: that may roll back to its savepoint while the whole commits.
// On SQLite, which keeps no record of transactions, a lease that is gone after ReleaseIn counts as released by it.
func (l *Lease) ReleaseIn(tx *gorm.DB) error {
	if l != nil && l.inTransaction {
		return fmt.Errorf("%w: Mutex.Transaction releases its lease itself", ErrInvalidSettings)
	}
	return l.within(tx, "release", func() locktable.Outcome {
		o, transaction := l.mutex.table.ReleaseIn(tx.Statement.Context, tx, l.key, l.minHold())
		if o.Row == locktable.RowFound {
			l.mu.Lock()
			l.transaction = &transaction
			l.mu.Unlock()
		}
		return o
	})
}

// within runs a statement that must find the lease's row in a transaction of the caller's.
func (l *Lease) within(tx *gorm.DB, verb string, statement func() locktable.Outcome) error {
	if l == nil || l.mutex == nil {
		return errNoLease
	}
	switch {
	case tx == nil || tx.Config == nil || tx.Statement == nil:
		return fmt.Errorf("dbmutex: %s %q: %w", verb, l.key.LockID, gorm.ErrInvalidTransaction)
	case tx.Error != nil:
		return tx.Error
	case tx.DryRun:
		return ErrDryRun
	case !locktable.InTransaction(tx):
		return fmt.Errorf("dbmutex: %s %q: %w", verb, l.key.LockID, gorm.ErrInvalidTransaction)
	}
	o := statement()
	err := l.lostAt(o, time.Now())
	if o.Row == locktable.RowNotAsked {
		err = l.mutex.failed(tx.Statement.Context, verb, o.Err)
	}
	if err != nil {
		_ = tx.AddError(err)
		_ = tx.Statement.ConnPool.(gorm.TxCommitter).Rollback()
	}
	return err
}

// lostAt is the error of a statement in a transaction that did not find the lease's row, at a moment. Nobody asks why the
// row is missing: that may take another connection, while the transaction has the only one.
func (l *Lease) lostAt(o locktable.Outcome, moment time.Time) error {
	if o.Row != locktable.RowMissing {
		return nil
	}
	return l.timeout(true, l.late(moment), o.Err)
}
