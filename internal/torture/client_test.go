//go:build linux

package torture

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/witness"
)

const (
	shortestTTL = 30 * time.Millisecond
	longestTTL  = 1500 * time.Millisecond
)

// errWork is what work returns that fails.
var errWork = errors.New("the work failed")

// client is a goroutine that does one thing after the other.
type client struct {
	*job
	db     *dbmutex.DB
	stop   context.Context
	verbs  context.Context // ends a while after stop
	out    *json.Encoder
	rand   *rand.Rand
	number int
	n      int   // its operations so far
	bell   *bell // that it waits for; nil if it comes by itself

	lasting []string // leases without a TTL that it had
}

// usage is one use of a mutex, and the choices that were made for it.
type usage struct {
	*client
	ctx     context.Context
	note    *note
	lock    locker
	mutex   *dbmutex.Mutex // the lock; nil for a semaphore
	of      *semaphore     // nil for a mutex
	slots   int            // how many it believes the semaphore to have
	id      string         // of the mutex, or of the semaphore until it has a slot
	name    string         // of the lease
	ttl     time.Duration
	minHold time.Duration
	wait    time.Duration
	renews  bool
	skips   bool
	retired bool // ReleaseIn was called
	unsure  bool // a transaction may commit yet: the lease does not keep it apart from others of its own
}

// locker is a mutex or a semaphore.
type locker interface {
	Do(fn func(ctx context.Context) error) error
	Decorate(fn func(ctx context.Context) error) func(ctx context.Context) error
	Acquire() (*dbmutex.Lease, error)
	Transaction(fn func(tx *gorm.DB) error, opts ...*sql.TxOptions) error
}

func (c *client) run() {
	for c.stop.Err() == nil {
		c.once()
		if !c.Habits.Rush && c.bell == nil && c.maybe(0.7) {
			time.Sleep(c.upTo(15 * time.Millisecond))
		}
	}
}

func (c *client) maybe(probability float64) bool { return c.rand.Float64() < probability }

func (c *client) upTo(d time.Duration) time.Duration {
	return time.Duration(c.rand.Int64N(int64(d) + 1))
}

func (c *client) once() {
	u := &usage{client: c, id: c.Mutexes[c.rand.IntN(len(c.Mutexes))], note: &note{owner: goroutine()}}
	ctx, cancel := context.WithTimeout(context.WithValue(c.verbs, noteKey{}, u.note), 10*time.Second)
	defer cancel()
	if c.Habits.Cancel && c.maybe(0.2) {
		ctx, cancel = context.WithTimeout(ctx, c.upTo(300*time.Millisecond))
		defer cancel()
	}
	u.ctx = ctx
	u.name = fmt.Sprintf("%d.%d", c.number, c.n)
	switch p := c.rand.Float64(); {
	case c.bell != nil:
		c.bell.wait()
		defer crowdsNotes.enter(u.id, u.note)()
		if c.maybe(0.7) {
			u.rush()
		} else {
			u.choose()
			u.byHand()
		}
	case c.Habits.Loop && c.number%c.Clients < 2:
		u.loop()
	case c.Habits.Rush && c.maybe(0.9):
		u.rush()
	case c.Habits.Force && p < 0.03:
		u.choose()
		u.forceRelease()
	case p < 0.06:
		u.choose()
		u.lookUp()
	case p < 0.26:
		u.comeForTick()
	default:
		if c.maybe(0.4) {
			u.of = &c.Semaphores[c.rand.IntN(len(c.Semaphores))]
			u.id = u.of.ID
		}
		u.use(c.rand.Float64())
	}
}

// use is of a mutex or of a semaphore, in one of the ways that there are.
func (u *usage) use(p float64) {
	switch {
	case p < 0.30:
		u.choose()
		u.byHand()
	case p < 0.57:
		u.skips = u.maybe(0.1)
		u.choose()
		u.do()
	case p < 0.81:
		u.choose()
		u.transaction()
	default:
		u.choose()
		u.guarded()
	}
}

// choose makes the mutex, or the semaphore, with settings by chance.
func (u *usage) choose() {
	options := u.options()
	if u.of == nil {
		u.lockMutex(options...)
		return
	}
	u.slots = u.of.N
	if u.maybe(0.1) {
		u.slots = 1 + u.rand.IntN(u.of.N)
	}
	u.lock = u.db.WithContext(u.ctx).Semaphore(u.id, u.slots, options...)
}

func (u *usage) lockMutex(options ...dbmutex.Option) {
	u.mutex = u.db.WithContext(u.ctx).Mutex(u.id, options...)
	u.lock = u.mutex
}

func (u *usage) options() []dbmutex.Option {
	u.ttl = shortestTTL + u.upTo(time.Duration(float64(longestTTL-shortestTTL)*u.rand.Float64()*u.rand.Float64()))
	options := []dbmutex.Option{dbmutex.WithHolder(u.name), dbmutex.WithTTL(u.ttl)}
	if u.Habits.Forever && u.maybe(0.03) {
		u.ttl = 0
		options = append(options, dbmutex.WithoutTTL())
	}
	switch p := u.rand.Float64(); {
	case p < 0.4:
		u.wait = 1 + u.upTo(400*time.Millisecond)
	case p < 0.5:
		u.wait = dbmutex.Forever
	}
	options = append(options, dbmutex.WithWait(u.wait))
	if u.maybe(0.25) {
		u.renews = true
		options = append(options, dbmutex.WithRenewal())
	}
	if u.maybe(0.12) {
		u.minHold = 1 + u.upTo(max(u.ttl-1, 0))
		options = append(options, dbmutex.WithMinHold(u.minHold))
	}
	if u.skips {
		options = append(options, dbmutex.WithSkipHeld())
	}
	return options
}

// begin writes down an operation that is about to begin.
func (u *usage) begin(v verb) *operation {
	u.n++
	o := &operation{Client: u.number, N: u.n, Verb: v, Mutex: u.id, Lease: u.name, Lost: -u.note.unanswered()}
	switch v {
	case acquire:
		o.Wait, o.TTL, o.MinHold, o.Slots = u.wait != 0, int64(u.ttl), int64(u.minHold), u.slots
		o.Tells = o.Wait && u.Listen && u.Notifies && u.of == nil
	case transaction:
		o.Attempt = fmt.Sprintf("%d.%d", u.number, u.n)
	}
	o.Call = now()
	if v == visit { // its first line has it: the process may be killed before the next
		o.Visit = &witness.Visit{ID: u.id, Name: u.name, Called: o.Call}
	}
	u.write(o)
	return o
}

// returned is the moment at which the operation has ended; its outcome is written down after that.
func (u *usage) returned(o *operation) {
	o.Return = now()
	o.Lost += u.note.unanswered()
}

func (u *usage) write(o *operation) {
	if err := u.out.Encode(o); err != nil { // the parent has gone
		panic(err)
	}
}

// expires is a lease's deadline, on the operations' clock and not later than it says.
func expires(lease *dbmutex.Lease) int64 {
	moment := now()
	deadline, ends := lease.ExpiresAt()
	if !ends {
		return never
	}
	return moment + int64(time.Until(deadline))
}

// deadline is a lease's deadline on the operations' clock, somewhere between two moments.
func deadline(lease *dbmutex.Lease) (from, to int64) {
	from = expires(lease)
	deadline, ends := lease.ExpiresAt()
	if !ends {
		return never, never
	}
	return from, int64(time.Until(deadline)) + now()
}

// acquired is an acquire that got its lease.
func (u *usage) acquired(o *operation, lease *dbmutex.Lease) {
	u.returned(o)
	if slot := lease.Slot(); slot > 0 {
		u.id = u.of.slot(slot)
	}
	o.Mutex, o.Outcome, o.Token, o.Expires = u.id, ok, lease.Token(), expires(lease)
	if u.ttl == 0 {
		u.lasting = append(u.lasting, u.name)
	}
	if !u.renews && u.ttl != 0 {
		o.Since = o.Expires - int64(u.ttl)
	}
	u.write(o)
}

// refused is one that did not.
func (u *usage) refused(o *operation, err error) {
	u.returned(o)
	var other *dbmutex.HeldError
	switch {
	case err == nil: // skipped
		o.Outcome = held
	case errors.As(err, &other):
		o.Outcome, o.Seen = held, other.Holder
	default:
		o.Error = err.Error()
		defer time.Sleep(u.upTo(20 * time.Millisecond)) // or there were too many while the database is away
	}
	u.write(o)
}

// released is a release that followed work which returned workErr.
func (u *usage) released(o *operation, lease *dbmutex.Lease, err, workErr error) {
	u.returned(o)
	o.EndFrom, o.EndTo = deadline(lease)
	var timeout *dbmutex.TimeoutError
	timedOut := errors.As(err, &timeout)
	switch {
	case timedOut && timeout.Lost && !strings.Contains(timeout.Error(), "was lost"): // the row could not be asked for
	case u.retired && (err == nil || timedOut): // the transaction may have released it
		o.Outcome = either
	case !timedOut && text(err) == text(workErr):
		o.Outcome = ok
	case timedOut && !timeout.Lost:
		o.Outcome = late
	case timedOut && o.Lost == 0:
		o.Outcome = lost
	case timedOut:
		o.Outcome = either
	}
	o.Error = text(err)
	u.write(o)
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (u *usage) forceRelease() {
	o := u.begin(force)
	err := u.mutex.ForceRelease()
	u.returned(o)
	if err == nil {
		o.Outcome = ok
	}
	o.Error = text(err)
	u.write(o)
}

func (u *usage) lookUp() {
	o := u.begin(holder)
	row, err := u.mutex.Holder()
	u.returned(o)
	switch {
	case err != nil:
		o.Error = err.Error()
	case row == nil:
		o.Outcome = free
	default:
		o.Outcome, o.Seen = held, row.Holder
	}
	u.write(o)
}

func (u *usage) acquire() *dbmutex.Lease {
	o := u.begin(acquire)
	lease, err := u.lock.Acquire()
	if err != nil {
		u.refused(o, err)
		return nil
	}
	u.acquired(o, lease)
	return lease
}

func (u *usage) release(lease *dbmutex.Lease) {
	for range 2 {
		o := u.begin(release)
		u.released(o, lease, lease.Release(), nil)
		if o.Outcome != unknown {
			return
		}
	}
}

func (u *usage) byHand() {
	lease := u.acquire()
	if lease == nil {
		return
	}
	u.hold(lease)
	if u.renews || u.ttl == 0 || u.maybe(0.9) { // else it is forgotten
		u.release(lease)
	}
}

// rush takes the mutex if it is free and gives it back at once.
func (u *usage) rush() {
	u.ttl = longestTTL
	u.lockMutex(dbmutex.WithHolder(u.name), dbmutex.WithTTL(u.ttl))
	if lease := u.acquire(); lease != nil {
		u.release(lease)
	}
}

// loop waits for the first mutex, holds it for a moment and soon comes again.
func (u *usage) loop() {
	u.id, u.ttl, u.wait = u.Mutexes[0], longestTTL, dbmutex.Forever
	u.lockMutex(dbmutex.WithHolder(u.name), dbmutex.WithTTL(u.ttl), dbmutex.WithWait(u.wait))
	if lease := u.acquire(); lease != nil {
		time.Sleep(u.upTo(20 * time.Millisecond))
		u.release(lease)
	}
	time.Sleep(u.upTo(5 * time.Millisecond))
}

// hold lets time pass with a lease: mostly less than its TTL.
func (u *usage) hold(lease *dbmutex.Lease) {
	ttl := u.ttl
	if ttl == 0 {
		ttl = 50 * time.Millisecond
	}
	var rest time.Duration
	switch p := u.rand.Float64(); {
	case p < 0.3:
	case p < 0.75:
		rest = u.upTo(20 * time.Millisecond)
	case p < 0.9:
		rest = u.upTo(ttl)
	default:
		rest = ttl + u.upTo(ttl)
	}
	obeys := u.maybe(0.5)
	for end := time.Now().Add(rest); ; {
		u.promise(lease)
		left := time.Until(end)
		if left <= 0 || u.stop.Err() != nil {
			return
		}
		nap := time.NewTimer(min(left, u.upTo(100*time.Millisecond)))
		select {
		case <-nap.C:
		case <-u.stop.Done():
		case <-lease.Context().Done():
			if obeys {
				nap.Stop()
				return
			}
			<-nap.C
		}
		switch p := u.rand.Float64(); {
		case p < 0.4:
			u.renew(lease)
		case p < 0.5 && u.mutex != nil:
			u.lookUp()
		}
	}
}

func (u *usage) promise(lease *dbmutex.Lease) {
	o := u.begin(promise)
	if lease.Context().Err() == nil {
		o.Outcome, o.Expires = ok, expires(lease)
	}
	u.returned(o)
	u.write(o)
}

func (u *usage) renew(lease *dbmutex.Lease) {
	o := u.begin(renew)
	err := lease.Renew()
	u.returned(o)
	o.Error = text(err)
	switch {
	case err == nil:
		o.Outcome, o.Expires = ok, expires(lease)
	case errors.Is(err, dbmutex.ErrTimeout) && expires(lease) > now(): // so it was not the deadline that ended it
		o.Outcome = lost
	}
	u.write(o)
}

// apart calls fn in a goroutine of its own. If fn ends badly the error is the one that the library logged.
func (u *usage) apart(bad bool, fn func() error) error {
	ended := make(chan error)
	go func() {
		var err error
		defer func() {
			if cause := recover(); cause != nil && !bad {
				panic(cause)
			}
			if logged := u.note.logged.Load(); bad && logged != nil {
				err = *logged
			}
			ended <- err
		}()
		err = fn()
	}()
	return <-ended
}

// do runs work under the mutex in one of the ways that there are, some of which end badly.
func (u *usage) do() {
	o := u.begin(acquire)
	var workErr error
	var lease *dbmutex.Lease
	bad := u.Habits.Panic && u.maybe(0.1)
	work := func(ctx context.Context) error {
		lease, _ = dbmutex.LeaseFrom(ctx)
		u.acquired(o, lease)
		u.hold(lease)
		if !bad && u.maybe(0.1) {
			workErr = errWork
		}
		o = u.begin(release)
		switch {
		case bad && u.maybe(0.5):
			panic(errWork)
		case bad:
			runtime.Goexit()
		}
		return workErr
	}
	err := u.apart(bad, func() (err error) {
		switch p := u.rand.Float64(); {
		case p < 0.2:
			return u.lock.Decorate(work)(u.ctx)
		case p < 0.4 && !u.skips && u.mutex != nil:
			_, err = dbmutex.DoValue(u.mutex, func(ctx context.Context) (int, error) { return 1, work(ctx) })
			return err
		default:
			return u.lock.Do(work)
		}
	})
	if lease != nil {
		u.released(o, lease, err, workErr)
	} else {
		u.refused(o, err)
	}
}
