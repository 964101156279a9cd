package dbmutex

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// Mutex is a named lock. It is safe for many goroutines, and every call is a lease of its own: it is not reentrant. An
// acquire under the context of a lease of the same mutex fails at once.
type Mutex struct {
	id       string
	slots    int // of a semaphore; 0 for a mutex
	settings Settings
	err      error // what is wrong with the call to DB.Mutex; every verb returns it
	once     bool  // it is a Once's, in the table of runs and records

	ctx    context.Context
	config *gorm.Config
	caller *gorm.Statement // of the handle, for what Transaction carries over
	table  locktable.Table
	key    queueKey

	acquiring *acquiring // nil but while an acquire is observed
}

// Mutex names a mutex, with the plugin's settings as opts change them. It runs no SQL. If the call is wrong, every verb says
// so before any SQL: the error is the handle's own, ErrNotRegistered, ErrDryRun, ErrInTransaction, ErrInvalidLockID or
// ErrInvalidSettings.
//
// An id has 1 to MaxLockIDLength characters of valid UTF-8 without NUL. Ids are compared byte for byte.
//
// The lock's statements run on connections of the main pool. They do so also for the handle of gorm.DB.Connection: on that
// connection a rollback of the caller's could undo them. Work that keeps the pool's only connection cannot acquire.
//
// Somebody may have left a transaction open on such a connection, by a raw BEGIN or by a COMMIT that failed. It is rolled
// back, and GORM's logger gets a warning. (pgx closes such a connection by itself, without a warning.) This needs a pool
// that is an *sql.DB; GORM may prepare its statements. On SQLite any pool that can begin transactions is enough.
func (db *DB) Mutex(id string, opts ...Option) *Mutex {
	m := &Mutex{id: id}
	m.err = m.bind(db, opts)
	return m
}

func (m *Mutex) bind(db *DB, opts []Option) error {
	plugin, err := db.plugin()
	if err != nil {
		return err
	}
	if err := validateLockID(m.id); err != nil {
		return err
	}
	m.settings = plugin.settings
	if len(opts) > 0 { // one may write to *TTL
		m.settings = plugin.settings.clone()
	}
	for _, opt := range opts {
		if opt != nil {
			opt(&m.settings)
		}
	}
	if err := m.settings.validate(); err != nil {
		return err
	}
	m.settings.Holder = cmp.Or(m.settings.Holder, thisProcess)
	return m.bindTable(db, plugin)
}

// plugin is the handle's, if locks can be asked for on it.
func (db *DB) plugin() (*Plugin, error) {
	if db == nil || db.Gorm == nil || db.Config == nil || db.Statement == nil {
		return nil, fmt.Errorf("%w (the handle is nil)", ErrNotRegistered)
	}
	plugin, registered := db.Plugins[PluginName].(*Plugin)
	switch {
	case db.Error != nil:
		return nil, db.Error
	case !registered:
		return nil, ErrNotRegistered
	case db.DryRun:
		return nil, ErrDryRun
	case locktable.InTransaction(db.Gorm):
		return nil, ErrInTransaction
	}
	return plugin, nil
}

func (m *Mutex) bindTable(db *DB, plugin *Plugin) error {
	if m.ctx = db.Statement.Context; m.ctx == nil {
		m.ctx = context.Background()
	}
	m.config, m.caller = db.Config, db.Statement
	pool := locktable.Identity(db.ConnPool)
	name, table, err := plugin.table(pool, db.Gorm, m.once)
	if err != nil {
		return err
	}
	_, known := pool.(*sql.DB) // else there is nothing to listen on
	m.table, m.key = table.On(db.Config), queueKey{pool, name, m.id, known && table.Notifies(), m.slots != 0}
	return nil
}

// Do acquires the mutex, runs fn and releases. fn gets the lease's context, with the lease for LeaseFrom. The context ends
// when the handle's does, or when the lease does, with a cause that matches ErrTimeout. At the deadline that cause cannot
// know whether the lease was lost (see TimeoutError): the error of Do is the last word. Work that must run to its end in any
// case uses context.WithoutCancel.
//
// If fn did not run, the error is one of these:
//   - It matches ErrNotAcquired: somebody else holds the mutex, after Settings.Wait. It does so at once if the handle's
//     context has a lease of the mutex: that wait would have no end.
//   - It matches the context's error. Its text names the holder if that was seen.
//   - It wraps the database's.
//
// If fn ran, Do returns what fn returned, with these additions:
//   - If the lease ended before fn did, the error always matches ErrTimeout, joined with fn's own. The *TimeoutError in it
//     says whether the lease was lost, so that somebody else may have overlapped with fn, or only ran out. There is no
//     timeout if fn released the lease itself, in time or by a ReleaseIn that committed.
//   - The error of a failed release is joined with fn's own.
//   - A panic or runtime.Goexit in fn releases and goes on. GORM's logger gets what Do would have returned.
//
// With Settings.SkipHeld, Do returns nil and logs a warning if the mutex is held.
func (m *Mutex) Do(fn func(ctx context.Context) error) error {
	if err := m.check(); err != nil {
		return err
	}
	if fn == nil {
		return errNilFunc
	}
	lease, err := m.acquire()
	if err != nil {
		if m.settings.SkipHeld && errors.Is(err, ErrNotAcquired) {
			m.config.Logger.Warn(m.ctx, "skipped: %v", err)
			return nil
		}
		return err
	}
	return lease.run(fn)
}

// Decorate wraps fn so that every call of it runs under the mutex, as Do does, with the context of the call.
func (m *Mutex) Decorate(fn func(ctx context.Context) error) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		if err := m.check(); err != nil {
			return err
		}
		called := *m
		if ctx != nil {
			called.ctx = ctx
		}
		return called.Do(fn)
	}
}

// DoValue is Mutex.Do for work that returns a value. The value is fn's even if the error is not nil. It is zero if fn did
// not run. With Settings.SkipHeld it gives ErrInvalidSettings: there would be no value to return.
func DoValue[T any](m *Mutex, fn func(ctx context.Context) (T, error)) (value T, err error) {
	if err := m.checkLeasing("DoValue"); err != nil {
		return value, err
	}
	if fn == nil {
		return value, errNilFunc
	}
	err = m.Do(func(ctx context.Context) (err error) {
		value, err = fn(ctx)
		return err
	})
	return value, err
}

// Acquire takes the mutex until Lease.Release, for work that does not fit into a function. The caller must release; a
// lease that is forgotten lasts until its TTL, or, with Settings.Renew, as long as the process.
//
// The error is one of these:
//   - It matches ErrNotAcquired: somebody else holds the mutex, after Settings.Wait.
//   - It matches the context's error. A context that is done ends Acquire at once, with two exceptions: a statement under
//     way gets a second, and what it may have done is undone within 2 seconds (5 for a lease that never expires).
//   - It wraps the database's.
//
// Nothing is held then, unless the database could not be reached any more: a lease that it may have made lasts until its
// TTL.
func (m *Mutex) Acquire() (*Lease, error) {
	if err := m.checkLeasing("Acquire"); err != nil {
		return nil, err
	}
	return m.acquire()
}

// check tells what is wrong with the mutex, before any SQL.
func (m *Mutex) check() error {
	if m == nil || !m.table.Valid() && m.err == nil {
		return fmt.Errorf("%w (it is not from DB.Mutex or DB.Semaphore)", ErrNotRegistered)
	}
	return m.err
}

// checkLeasing also refuses Settings.SkipHeld, for a verb that has nothing to return then.
func (m *Mutex) checkLeasing(verb string) error {
	if err := m.check(); err != nil {
		return err
	}
	if m.settings.SkipHeld {
		return fmt.Errorf("%w: SkipHeld goes with Do and Decorate, not with %s", ErrInvalidSettings, verb)
	}
	return nil
}

func (m *Mutex) acquire() (*Lease, error) {
	lease, err := m.obtain()
	if err == nil {
		lease.keepRenewing()
	}
	return lease, err
}

// request asks for a new lease.
func (m *Mutex) request() locktable.Request {
	key := locktable.NewKey(m.id, newLeaseID(m.key.pool))
	key.Slots = m.slots
	return locktable.Request{Key: key, Holder: m.settings.Holder, TTL: m.settings.TTL}
}

// waitersRequest asks for a lease, and other processes may keep the mutex for it.
func (m *Mutex) waitersRequest() locktable.Request {
	r := m.request()
	if m.key.takesTurns() {
		r.Ticket = newLeaseID(m.key.pool)
	}
	return r
}

// try asks the database for a lease once. If the mutex is held the error is a *HeldError, and the answer says by which
// lease.
func (m *Mutex) try(r locktable.Request) (*Lease, locktable.Answer, error) {
	if err := m.ctx.Err(); err != nil {
		return nil, locktable.Answer{}, m.failed(m.ctx, "acquire", err)
	}
	a, err := m.table.Acquire(m.ctx, r)
	m.acquiring.tried(a)
	switch {
	case err != nil:
		return nil, a, m.failed(m.ctx, "acquire", err)
	case a.Token != 0:
		return newLease(m, r.Key.At(a.Slot), a), a, nil
	case a.Ended:
		return nil, a, m.heldBy(nil)
	case m.isRecord(a.Held):
		return nil, a, errDone
	}
	return nil, a, m.heldBy(a.Held)
}

// heldBy is heldError of the mutex, or of the semaphore whose slots are all taken.
func (m *Mutex) heldBy(row *locktable.Row) *HeldError {
	held := heldError(m.id, row)
	held.slots = m.slots
	return held
}

// nested is the error of an acquire whose context has the lease of the mutex, or all of the semaphore's.
func (m *Mutex) nested() error {
	if _, many := m.key.pool.(reflect.Type); many { // of which nobody can say whether it is the same
		return nil
	}
	if m.takenByContext() >= max(m.slots, 1) {
		return &HeldError{LockID: m.id, nested: max(m.slots, 1)}
	}
	return nil
}

// discard removes a lease that nobody will use, in the background if that takes longer.
func (m *Mutex) discard(k locktable.Key, ttl *time.Duration) {
	if !m.table.Discard(m.ctx, k, ttl) {
		m.table.DiscardLater(m.ctx, k, ttl)
	}
}

// Holder returns the lease that holds the mutex now, or nil, nil if it is free. With pgnotify it may be a waiter's, for
// which the mutex is kept for a moment. What it says may be outdated when it returns. The error is the context's or the
// database's.
func (m *Mutex) Holder() (*DBMutex, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	row, err := m.table.Live(m.ctx, m.id)
	if err != nil {
		return nil, m.failed(m.ctx, "holder of", err)
	}
	return (*DBMutex)(row), nil
}

// Inspect returns the lease whose row is there, also if it ran out, or nil, nil if there is none. What it says may be
// outdated when it returns. The error is the context's or the database's.
func (m *Mutex) Inspect() (*LeaseInfo, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	info, err := m.see(m.ctx, locktable.LiveAndExpired)
	if err != nil {
		return nil, m.failed(m.ctx, "inspect", err)
	}
	return info, nil
}

// see is the mutex's lease in one of these states, or nil. The error is as the database gave it.
func (m *Mutex) see(ctx context.Context, which locktable.Which) (*LeaseInfo, error) {
	rows, err := m.table.List(ctx, locktable.Query{LockID: m.id, Which: which, Limit: 1})
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	info := leaseInfo(rows[0])
	return &info, nil
}

// ForceRelease ends the lease that holds the mutex now, whosever it is, or the one that ran out. It is for operators, for
// example after the crash of a holder whose lease never expires. The holder learns of it as of a loss: by its next renewal,
// or at the end of its work. GORM's logger gets a warning that names both the holder and who forced the release, by
// Settings.Holder.
//
// It is no error if nobody holds the mutex: nothing happens then. While a transaction pins the lease with Lease.Guard,
// ForceRelease waits, for 5 seconds at the most, and then says so. The error is the context's or the database's; the lease
// may last then.
func (m *Mutex) ForceRelease() error {
	if err := m.check(); err != nil {
		return err
	}
	_, err := m.forceRelease("")
	return err
}

// ForceReleaseLease is ForceRelease for the lease that was seen, by its DBMutex.LeaseID: a successor is spared. released is
// false if the lease had ended; that is no error. It is true also for a lease that ran out, if its row was still there, and
// for one that has gone while the answer to the statement was lost. An empty leaseID is ErrInvalidSettings, before any SQL.
func (m *Mutex) ForceReleaseLease(leaseID string) (released bool, err error) {
	if err := m.check(); err != nil {
		return false, err
	}
	if leaseID == "" {
		return false, errNoLeaseID
	}
	ended, err := m.forceRelease(leaseID)
	return ended != nil, err
}

// forceRelease ends the lease, or whichever has a row, and returns what the row was.
func (m *Mutex) forceRelease(leaseID string) (ended *locktable.Row, err error) {
	return m.forceReleaseOf(m.id, leaseID)
}

// forceReleaseOf is forceRelease for the row of a lock_id: the mutex's, or that of a slot.
func (m *Mutex) forceReleaseOf(lockID, leaseID string) (ended *locktable.Row, err error) {
	limit := time.Now().Add(locktable.Limit)
	if ended, err = m.table.ForceRelease(m.ctx, limit, lockID, leaseID); err != nil {
		return nil, m.notReleased(m.ctx, limit, "force the release of", err)
	}
	queues.wake(m.key)
	if ended != nil {
		m.config.Logger.Warn(m.ctx, "dbmutex: %s forced the release of %q, held by %s since %s",
			printable(m.settings.Holder), m.id, printable(ended.Holder), ended.CreationTime.Format(toMilliseconds))
	}
	m.tellForced(ended)
	return ended, nil
}
