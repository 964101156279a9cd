package dbmutex

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

const (
	// mostQueued is how many events of a lease wait for an observer that is slow.
	mostQueued = 8

	// drainLimit is how long the end of a lease waits until these are told.
	drainLimit = time.Second
)

// tell tells the observer, and returns ctx with the values that it has added. ctx is one of this package's own.
func (m *Mutex) tell(ctx context.Context, e Event) context.Context {
	for _, one := range m.observers() {
		ctx = m.tellOne(ctx, one, e)
	}
	return ctx
}

func (m *Mutex) observers() observers {
	if all, many := m.settings.Observer.(observers); many {
		return all
	}
	return observers{m.settings.Observer}
}

func (m *Mutex) tellOne(ctx context.Context, o Observer, e Event) (with context.Context) {
	defer func() {
		if p := recover(); p != nil {
			m.config.Logger.Error(ctx, "dbmutex: an observer panicked (%v of %q): %v\n%s", e.Kind, e.LockID, p, debug.Stack())
			with = ctx
		}
	}()
	seen := o.Observe(ctx, e)
	if seen == nil || seen == ctx {
		return ctx
	}
	return &valuesOf{ctx, context.WithoutCancel(seen)}
}

// valuesOf is a context with values of an observer's. The end, the lease, and what the observer has left out are its own.
type valuesOf struct {
	context.Context
	values context.Context // without an end, so that not even context.Cause finds one there
}

// Value looks at the observer's values first.
func (c *valuesOf) Value(key any) any {
	if key != (leaseContextKey{}) {
		if value := c.values.Value(key); value != nil {
			return value
		}
	}
	return c.Context.Value(key)
}

// event is an event of a mutex.
func (m *Mutex) event(kind EventKind) Event {
	e := Event{Kind: kind, Once: m.once, LockID: m.id, Holder: m.settings.Holder}
	if m.settings.TTL != nil {
		e.TTL = *m.settings.TTL
	}
	return e
}

// tellForced tells of a lease that ForceRelease has ended, if there was one.
func (m *Mutex) tellForced(ended *locktable.Row) {
	if ended == nil || m.settings.Observer == nil {
		return
	}
	e := Event{Kind: ForceReleased, Once: m.once, LockID: m.id, Holder: ended.Holder, LeaseID: ended.LeaseID}
	e.Token = m.table.Token(ended)
	_, e.Slot = locktable.SplitSlot(ended.LockID)
	m.tell(&acquiring{Context: m.ctx}, e)
}

// acquiring is an acquire that is told of, and the context with which that begins.
type acquiring struct {
	context.Context        // the handle's
	mutex           *Mutex // the handle's: that of the acquire has the observer's values
	tries           int
	past            *HeldError
}

// tried notes a question for a lease.
func (a *acquiring) tried(answer locktable.Answer) {
	if a == nil {
		return
	}
	a.tries++
	a.past = nil
	if answer.Past != nil {
		a.past = heldError(answer.Past.LockID, answer.Past)
	}
}

var errBroken = errors.New("dbmutex: the acquire did not return")

// obtain is wait, and tells of it. If it does, renewals run already when it returns: an observer may be slow.
func (m *Mutex) obtain() (lease *Lease, err error) {
	if m.settings.Observer == nil {
		return m.wait()
	}
	a := &acquiring{Context: m.ctx, mutex: m}
	asked := *m
	asked.acquiring, asked.ctx = a, m.tell(a, m.event(AcquireBegan))
	begun := false
	defer func() {
		if lease != nil && !begun { // the observer has ended the goroutine
			lease.releaseAndLog()
		}
	}()
	func() {
		begin := time.Now()
		err = errBroken // a panic, or the end of the goroutine
		defer func() { m.tell(asked.ctx, a.ended(lease, err, time.Since(begin))) }()
		if lease, err = asked.wait(); err == nil {
			lease.keepRenewing()
		}
	}()
	if err != nil {
		return nil, err
	}
	lease.tellBegan()
	begun = true
	return lease, nil
}

// ended is the event of an acquire's end.
func (a *acquiring) ended(lease *Lease, err error, waited time.Duration) Event {
	e := a.mutex.event(AcquireEnded)
	e.Waited, e.Tries, e.Err = waited, a.tries, err
	switch {
	case err == nil:
		e.Outcome, e.LeaseID, e.Token, e.Slot = OutcomeAcquired, lease.key.LeaseID, lease.token, lease.slot
		if e.HandedOn = lease.received; !e.HandedOn {
			e.Previous = a.past
		}
	case errors.Is(err, errDone):
		e.Outcome, e.Err = OutcomeDone, nil
	case errors.Is(err, ErrNotAcquired) && a.mutex.settings.SkipHeld:
		e.Outcome = OutcomeSkipped
	case errors.Is(err, ErrNotAcquired):
		e.Outcome = OutcomeHeld
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		e.Outcome = OutcomeCancelled
	default:
		e.Outcome = OutcomeFailed
	}
	return e
}

// telling is what is told of a lease. Its events wait here until a goroutine tells them, which ends when there are none.
type telling struct {
	work context.Context // the lease's own context with the observer's values

	mu      sync.Mutex // guards what follows
	later   context.Context
	begun   bool          // LeaseBegan has been told
	timeUp  bool          // LeaseRanOut is not told any more: its end is known
	over    bool          // nothing is queued any more, and LeaseEnded comes next
	ended   bool          // nothing is told any more but LeaseEnded
	running bool          // there is a goroutine
	drained chan struct{} // closed when it has ended, once the lease is over
	queue   []Event
	dropped int
}

// event is an event of a lease, once that has begun: before, it may change its id.
func (l *Lease) event(kind EventKind) Event {
	e := l.mutex.event(kind)
	e.LeaseID, e.Token, e.Slot = l.key.LeaseID, l.token, l.slot
	return e
}

// tellBegan tells that the caller has the lease, whose context then has the observer's values.
func (l *Lease) tellBegan() {
	t := l.telling
	t.mu.Lock()
	t.later = context.WithoutCancel(&l.work)
	t.mu.Unlock()
	e := l.event(LeaseBegan)
	e.ExpiresAt, _ = l.ExpiresAt()
	t.work = l.mutex.tell(&l.work, e)
	later := context.WithoutCancel(t.work)
	if t.work != context.Context(&l.work) {
		l.mu.Lock()
		l.ctx = &valuesOf{l.ctx, later}
		l.mu.Unlock()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.later, t.begun = later, true
	l.startTelling()
}

// valued is the handle's context with the lease and the observer's values.
func (l *Lease) valued() context.Context {
	if l.telling == nil {
		return &l.work
	}
	return l.telling.work
}

// tellSoon tells an event on the lease's own goroutine.
func (l *Lease) tellSoon(kind EventKind, err error) {
	t := l.telling
	if t == nil {
		return
	}
	e := Event{Kind: kind, Err: err}
	if kind == LeaseRenewed {
		e.ExpiresAt, _ = l.ExpiresAt()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.over, kind == LeaseRanOut && t.timeUp:
	case len(t.queue) >= mostQueued:
		t.dropped++
	default:
		t.queue = append(t.queue, e)
		l.startTelling()
	}
	t.timeUp = t.timeUp || kind == LeaseRanOut || kind == LeaseLost
}

// tellNoTimeUp is for a lease that has ended in time: its deadline is nobody's any more.
func (l *Lease) tellNoTimeUp() {
	if t := l.telling; t != nil {
		t.mu.Lock()
		t.timeUp = true
		t.mu.Unlock()
	}
}

// startTelling needs telling.mu held.
func (l *Lease) startTelling() {
	if t := l.telling; t.begun && !t.running && len(t.queue) > 0 {
		t.running = true
		go l.tellQueued(t.later)
	}
}

func (l *Lease) tellQueued(ctx context.Context) {
	t := l.telling
	defer func() { // also if an observer has ended the goroutine
		t.mu.Lock()
		defer t.mu.Unlock()
		t.running = false
		if l.startTelling(); !t.running && t.drained != nil {
			close(t.drained)
		}
	}()
	for {
		next, more := t.next()
		if !more {
			return
		}
		e := l.event(next.Kind)
		e.ExpiresAt, e.Err = next.ExpiresAt, next.Err
		for _, one := range l.mutex.observers() {
			if !t.hasEnded() { // one before may have been slow
				l.mutex.tellOne(ctx, one, e)
			}
		}
	}
}

func (t *telling) hasEnded() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended
}

func (t *telling) next() (e Event, more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) == 0 {
		return e, false
	}
	e, t.queue = t.queue[0], t.queue[1:]
	return e, true
}

// end waits until what is queued has been told, or drops it. It is false if there was an end before, or no LeaseBegan.
func (t *telling) end() (later context.Context, dropped int, first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.later == nil || t.over {
		return nil, 0, false
	}
	t.over = true
	if t.running {
		t.drained = make(chan struct{})
		t.mu.Unlock()
		timer := time.NewTimer(drainLimit)
		select {
		case <-t.drained:
		case <-timer.C:
		}
		timer.Stop()
		t.mu.Lock()
	}
	dropped = t.dropped + len(t.queue)
	t.queue, t.ended = nil, true
	return t.later, dropped, true
}

// tellEnded tells once that a lease was released, or was to be, after work that ended at a moment.
func (l *Lease) tellEnded(ended time.Time, outcome Outcome, err error) {
	if l.telling == nil {
		return
	}
	held := time.Since(l.acquired)
	if l.late(ended) > 0 { // its timer may not have come to that
		l.tellSoon(LeaseRanOut, l.unasked(0, nil))
	}
	ctx, dropped, first := l.telling.end()
	if !first {
		return
	}
	e := l.event(LeaseEnded)
	e.Outcome, e.Held, e.Dropped, e.Err = outcome, held, dropped, err
	l.mutex.tell(ctx, e)
}

// howEnded is the outcome of a lease whose release has returned.
func (l *Lease) howEnded() Outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	var timeout *TimeoutError
	switch {
	case l.state == lost, errors.As(l.outcome, &timeout) && timeout.Lost: // also if it was handed on, perhaps late
		return OutcomeLost
	case l.state == held:
		return OutcomeUnknown
	case l.handedOn:
		return OutcomeHandedOn
	case l.recorded:
		return OutcomeRecorded
	}
	return OutcomeReleased
}
