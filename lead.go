package dbmutex

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// A pause between two campaigns lasts leadFirst, or twice as long after each one that was no success, up to leadMost.
const (
	leadFirst = 100 * time.Millisecond
	leadMost  = 10 * time.Second
)

// Lead elects a leader among the processes that call it for the same mutex: fn runs in one of them at a time. Lead campaigns
// until the handle's context is done. It then waits for fn, releases the mutex, and returns nil.
//
// A campaign waits for the mutex, runs fn with the lease's context, and releases, as Do does. It always waits Forever and
// renews the lease, whatever the settings say. fn should return soon when its context ends: the leadership is over then.
// Lease.Token, of LeaseFrom, is the leader's epoch: that of each leader is greater than that of all before.
//
// When fn has returned, when the lease was lost and when the database fails, Lead campaigns again, after a pause of 0.05 to
// 0.15 seconds. The pause doubles each time, up to 10 seconds (5 to 15), until there is a success: fn has returned nil, or
// it has led for longer than the pause. Meanwhile another process may lead. In one call of Lead, fn never starts before it
// has returned: one that ignores the end of its context keeps this process, and no other, from leading. A panic or
// runtime.Goexit in fn releases, ends Lead and goes on.
//
// If the leader crashes, another process takes over when the lease has run out. If it resigns, another one follows as soon
// as a waiter would: at once with pgnotify, else when it asks next.
//
// GORM's logger gets a warning of what goes wrong: fn's errors, leases that have ended before fn did, and the database's
// errors. If Lead itself returns an error, it will not campaign any more, and fn does not run:
//   - ErrInvalidSettings: fn is nil, there is no TTL, or there is a MinHold or SkipHeld. No SQL ran.
//   - The error of the handle or of the id, as for all verbs. No SQL ran.
//   - ErrNotAcquired: the handle's context has a lease of the mutex, so that the wait would have no end. No SQL ran.
//   - The database's, if the pool is closed.
func (m *Mutex) Lead(fn func(ctx context.Context) error) error {
	if err := m.checkLeading(fn); err != nil {
		return err
	}
	candidate := *m
	candidate.settings.Wait, candidate.settings.Renew = Forever, true
	for pause := leadFirst; locktable.Done(m.ctx) == nil; {
		lease, err := candidate.acquire()
		success := false
		if err == nil {
			success, err = lease.lead(fn, pause)
		} else if locktable.Done(m.ctx) == nil && m.closed() {
			return err
		}
		if success {
			pause = leadFirst
		}
		rest := pause/2 + rand.N(pause)
		m.tellLeading(err, rest)
		_ = locktable.Sleep(m.ctx, rest)
		if !success {
			pause = min(2*pause, leadMost)
		}
	}
	return nil
}

// checkLeading tells what is wrong with a call of Lead.
func (m *Mutex) checkLeading(fn func(ctx context.Context) error) error {
	if err := m.checkLeasing("Lead"); err != nil {
		return err
	}
	switch {
	case fn == nil:
		return errNilFunc
	case m.settings.TTL == nil:
		return fmt.Errorf("%w: Lead needs a TTL: a leader that crashes would never be replaced", ErrInvalidSettings)
	case m.settings.MinHold != 0:
		return fmt.Errorf("%w: MinHold does not go with Lead: nobody could follow a leader that resigns", ErrInvalidSettings)
	}
	return m.nested()
}

// lead runs fn. It is a success if fn has returned nil, or has led for longer than the pause.
func (l *Lease) lead(fn func(ctx context.Context) error, pause time.Duration) (success bool, err error) {
	err = l.Do(func(ctx context.Context) error {
		began := time.Now()
		err := fn(ctx)
		success = err == nil || time.Since(began) > pause
		return err
	})
	return success, err
}

// tellLeading warns of a campaign's error. That the work has heard of the end of the handle's context is none.
func (m *Mutex) tellLeading(err error, rest time.Duration) {
	done := locktable.Done(m.ctx)
	switch {
	case err == nil:
	case done == nil:
		m.config.Logger.Warn(m.ctx, "dbmutex: lead %q: %v; there will be another campaign in %v",
			m.id, err, rest.Round(time.Millisecond))
	case errors.Is(err, ErrTimeout), !errors.Is(err, done) && !errors.Is(err, context.Cause(m.ctx)):
		m.config.Logger.Warn(m.ctx, "dbmutex: lead %q: %v", m.id, err)
	}
}

// closed says whether the pool is closed, which no pause mends.
func (m *Mutex) closed() bool {
	pool, known := m.key.pool.(*sql.DB)
	return known && locktable.IsClosed(pool)
}
