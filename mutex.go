package dbmutex

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"time"

	"gorm.io/gorm"
)

// Mutex is a named lock. It is safe for many goroutines, and every call is a lease of its own: it is not reentrant.
type Mutex struct {
	id       string
	settings Settings
	err      error // what is wrong with the call to DB.Mutex; every verb returns it

	ctx     context.Context
	config  *gorm.Config
	caller  *gorm.Statement // of the handle, for what Transaction carries over
	queue   queueKey
	dialect dialect
}

// Mutex names a mutex, with the plugin's settings as opts change them. It runs no SQL. What is wrong with the call comes
// from the verbs, before any SQL: the handle's own error, ErrNotRegistered, ErrDryRun, ErrInTransaction,
// ErrInvalidLockID or ErrInvalidSettings.
//
// An id has 1 to MaxLockIDLength characters of valid UTF-8 without NUL, and is compared byte for byte.
//
// The lock's statements run on connections of the main pool, also where the handle is that of gorm.DB.Connection: there a
// rollback of the caller's could undo them. Work that keeps the pool's only connection cannot acquire.
//
// A transaction that somebody left open on such a connection, by a raw BEGIN or by a COMMIT that failed, is rolled back, and
// GORM's logger gets a warning. (pgx closes such a connection by itself, without a warning.) This needs a pool that is an
// *sql.DB; GORM may prepare its statements. On SQLite any pool that can begin transactions is enough.
func (db *DB) Mutex(id string, opts ...Option) *Mutex {
	m := &Mutex{id: id}
	m.err = m.bind(db, opts)
	return m
}

func (m *Mutex) bind(db *DB, opts []Option) error {
	if db == nil || db.Gorm == nil || db.Config == nil || db.Statement == nil {
		return fmt.Errorf("%w (the handle is nil)", ErrNotRegistered)
	}
	plugin, registered := db.Plugins[PluginName].(*Plugin)
	switch {
	case db.Error != nil:
		return db.Error
	case !registered:
		return ErrNotRegistered
	case db.DryRun:
		return ErrDryRun
	case inTransaction(db.Gorm):
		return ErrInTransaction
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

	if m.ctx = db.Statement.Context; m.ctx == nil {
		m.ctx = context.Background()
	}
	m.config, m.caller = db.Config, db.Statement
	pool := identity(db.ConnPool)
	table, d, err := plugin.table(pool, db.Gorm)
	if err != nil {
		return err
	}
	_, notifies := d.(notifying)
	if _, known := pool.(*sql.DB); !known {
		notifies = false // there is nothing to listen on
	}
	m.dialect, m.queue = d, queueKey{pool, table, m.id, notifies}
	return nil
}

// Do acquires the mutex, runs fn and releases. fn gets the lease's context, with the lease for LeaseFrom. It ends when the
// handle's does, or when the lease does, with a cause that matches ErrTimeout. At the deadline that cause cannot know
// whether the lease was lost (see TimeoutError): the error of Do is the last word. Work that must run to its end in any case
// uses context.WithoutCancel.
//
// Where fn did not run, the error matches ErrNotAcquired (somebody else holds the mutex, after Settings.Wait), or the
// context's error, or it wraps the database's.
//
// Where fn ran, Do returns what fn returned, unless the lease ended before fn did: then the error always matches ErrTimeout,
// joined with fn's own. The *TimeoutError in it says whether the lease was lost, so that somebody else may have overlapped
// with fn, or only ran out. A failed release is joined with fn's error, too. A panic or runtime.Goexit in fn releases and
// goes on; GORM's logger gets what Do would have returned. Where fn released the lease itself, in time or by a ReleaseIn
// that committed, there is no timeout.
//
// With Settings.SkipHeld, Do returns nil and logs a warning where the mutex is held.
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

// DoValue is Mutex.Do for work that returns a value. The value is fn's even where the error is not nil, and zero where
// fn did not run. With Settings.SkipHeld it gives ErrInvalidSettings: there would be no value to return.
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
// The error matches ErrNotAcquired where somebody else holds the mutex (after Settings.Wait), or the context's error, or
// wraps the database's. Nothing is held then, unless the database could not be reached any more: a lease that it may
// have made lasts until its TTL. A context that is done ends it at once, but for a statement under way, which gets a
// second, and for what it may have done, which is undone within 2 seconds (5 for a lease that never expires).
func (m *Mutex) Acquire() (*Lease, error) {
	if err := m.checkLeasing("Acquire"); err != nil {
		return nil, err
	}
	return m.acquire()
}

// check tells what is wrong with the mutex, before any SQL.
func (m *Mutex) check() error {
	if m == nil || m.dialect == nil && m.err == nil {
		return fmt.Errorf("%w (the mutex is not from DB.Mutex)", ErrNotRegistered)
	}
	return m.err
}

// checkLeasing also refuses what cannot be skipped.
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
	lease, err := m.wait()
	if err == nil && m.settings.Renew && m.settings.TTL != nil {
		lease.keep()
	}
	return lease, err
}

// request is for a new lease.
func (m *Mutex) request() request {
	return request{proof: newProof(m.id, m.queue.newLeaseID()), holder: m.settings.Holder, ttl: m.settings.TTL}
}

// waitersRequest is for a lease that other processes may keep the mutex for.
func (m *Mutex) waitersRequest() request {
	r := m.request()
	if m.queue.listens() {
		r.ticket = m.queue.newLeaseID()
	}
	return r
}

// try asks the database for a lease once. Where it is held the error is a *HeldError, and the answer says by which lease.
func (m *Mutex) try(r request) (lease *Lease, seen answer, err error) {
	if err := m.ctx.Err(); err != nil {
		return nil, answer{}, m.failed(m.ctx, "acquire", err)
	}
	var a answer
	doubt, err := m.settle(m.ctx, time.Time{}, func(t target) (err error) {
		start := time.Now()
		a, err = m.dialect.acquire(t, r)
		a.start = start
		if err == nil && a.token != 0 && m.ctx.Err() != nil {
			limited, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), discardLimit/2)
			defer cancel()
			if settled, err := m.dialect.discard(t.under(limited), r.proof); settled && err == nil {
				a.token = 0 // as if it had not been
			}
			err = &unsentError{m.ctx.Err()}
		}
		return err
	})
	if err == nil && a.token != 0 {
		return newLease(m, r.proof, a), answer{}, nil
	}
	if doubt || a.token != 0 {
		_ = m.discard(r.proof) // GORM has logged the error
	}
	if err != nil {
		return nil, answer{}, m.failed(m.ctx, "acquire", err)
	}
	return nil, a, a.heldError(m.id)
}

func (a answer) heldError(id string) *HeldError {
	if a.held == nil {
		return &HeldError{LockID: id}
	}
	return &HeldError{LockID: id, Holder: a.held.Holder, Since: a.held.CreationTime, ExpiresAt: a.held.ExpiresAt}
}

// discard removes a lease that nobody will use.
func (m *Mutex) discard(p proof) error {
	limit := discardLimit
	if m.settings.TTL == nil { // what is left would be left for good
		limit = settleLimit
	}
	ctx, deadline := context.WithoutCancel(m.ctx), time.Now().Add(limit)
	for _, pause := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond} {
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		var settled bool
		_, err := m.settle(ctx, deadline, func(t target) (err error) {
			settled, err = m.dialect.discard(t, p)
			return err
		})
		if settled || err != nil {
			return err
		}
	}
	return nil
}

// Holder returns the lease that holds the mutex now, or nil, nil where it is free. With pgnotify it may be a waiter's, for
// which the mutex is kept for a moment. What it says may be over when it returns. It returns the context's or the database's
// error.
func (m *Mutex) Holder() (*DBMutex, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	return m.lookUp(m.ctx, "holder of")
}

func (m *Mutex) lookUp(ctx context.Context, verb string) (row *DBMutex, err error) {
	_, err = m.settle(ctx, time.Time{}, func(t target) (err error) {
		row, err = m.dialect.holder(t, m.id)
		return err
	})
	if err != nil {
		return nil, m.failed(m.ctx, verb, err)
	}
	return row, nil
}

// ForceRelease ends the lease that holds the mutex now, whosever it is, for operators, as after the crash of a holder whose
// lease never expires. The holder learns of it as of a loss: by its next renewal, or at the end of its work. A free mutex is
// no error. While a transaction pins the lease with Lease.Guard it waits, for 5 seconds at the most, and then says so.
func (m *Mutex) ForceRelease() error {
	if err := m.check(); err != nil {
		return err
	}
	limit := time.Now().Add(settleLimit)
	var ending string // the lease that a try is about to end: if its answer is lost, a successor may be in already
	_, err := m.settle(m.ctx, limit, func(t target) error {
		for {
			again, found, err := ending != "", true, error(nil)
			if !again {
				ending, found, err = m.dialect.leaseID(t, m.id)
			}
			if err != nil || !found {
				return err
			}
			ended, err := m.dialect.release(t, release{proof: newProof(m.id, ending)})
			if err != nil || ended || again {
				return err
			}
			ending = "" // it changed hands in between
		}
	})
	if err != nil {
		return m.notReleased(m.ctx, limit, "force the release of", err)
	}
	queues.wake(m.queue)
	return nil
}

// notReleased words the error of a release that had until limit.
func (m *Mutex) notReleased(ctx context.Context, limit time.Time, verb string, err error) error {
	if time.Until(limit) <= 0 && done(ctx) == nil {
		verb = fmt.Sprintf("not done within %v (is the database busy, or a transaction open that guards the lease?): %s",
			settleLimit, verb)
	}
	return m.failed(ctx, verb, err)
}

func newLeaseID() string { return rand.Text() }

// A lease's id has leaseIDLength letters, of which the first markLength tell its pool.
const (
	leaseIDLength = 26
	markLength    = 8
)

var markSeed = maphash.MakeSeed()

// newLeaseID is the pool's mark and 90 bits at random.
func (k queueKey) newLeaseID() string {
	id := make([]byte, leaseIDLength)
	binary.LittleEndian.PutUint64(id, maphash.Comparable(markSeed, k.pool))
	_, _ = rand.Read(id[markLength:]) // it cannot fail
	for i, b := range id {
		id[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[b%32]
	}
	return string(id)
}

// owns says whether a lease is of the same pool of this process.
func (k queueKey) owns(leaseID string) bool { return samePool(leaseID, k.newLeaseID()) }

// samePool says whether two ids, each a lease's or a ticket, are of the same pool of one process.
func samePool(id, other string) bool {
	return len(id) == leaseIDLength && len(other) == leaseIDLength && id[:markLength] == other[:markLength]
}
