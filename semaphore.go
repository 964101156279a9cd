package dbmutex

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"unicode/utf8"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// semaphoreIDLength is how many characters (not bytes) a semaphore's id may have: that of its last slot has four more.
const semaphoreIDLength = MaxLockIDLength - 4

// Semaphore is a named lock that up to n leases hold at a time, over all processes. It is safe for many goroutines, and
// every call is a lease of its own.
//
// Each lease has a slot, a number from 1 to n, and is in every way the lease of a mutex of that slot: it has a TTL and is
// renewed, Guard, ReleaseIn and Transaction go with it, and a holder that crashes gives its slot back when its lease runs
// out. Fencing tokens grow from lease to lease of a slot; those of different slots say nothing of each other.
//
// A semaphore and a mutex of the same id have nothing to do with each other.
type Semaphore struct{ m Mutex }

// Semaphore names a semaphore of n leases, with the plugin's settings as opts change them. n is from 1 to 256; else every
// verb returns ErrInvalidSettings. An id has 1 to 252 characters (not bytes), as its slots' numbers need four more; else the
// error is ErrInvalidLockID. In all else the call is as that of Mutex.
//
// All callers should give the same n. If they do not, each takes a free slot among its own, so that there may be as many
// leases as the greatest n says. To lower n, wait until the slots above it are free: DB.Semaphore(id, n).Holders lists
// them, too.
//
// Waiting is as for a mutex: one waiter of a process asks, the first that came. A release in this process wakes it and, with
// pgnotify, one in another process. But other processes get no turns. Where they compete without a pause, a process that has
// had several runs for each slot leaves the others a moment, up to 32 milliseconds; no more is done for fairness.
//
// In one process the waiters for an id are one queue, also if they disagree about n.
func (db *DB) Semaphore(id string, n int, opts ...Option) *Semaphore {
	s := &Semaphore{Mutex{id: id, slots: n}}
	if s.m.err = s.m.bind(db, opts); s.m.err != nil {
		return s
	}
	switch {
	case utf8.RuneCountInString(id) > semaphoreIDLength:
		s.m.err = fmt.Errorf("%w: a semaphore's has %d characters and may have %d",
			ErrInvalidLockID, utf8.RuneCountInString(id), semaphoreIDLength)
	case n < 1 || n > locktable.MaxSlots:
		s.m.err = fmt.Errorf("%w: a semaphore of %d: it may have 1 to %d leases", ErrInvalidSettings, n, locktable.MaxSlots)
	}
	return s
}

// Do acquires a lease, runs fn and releases, as Mutex.Do does. ErrNotAcquired says that all n slots are taken, after
// Settings.Wait; the *HeldError names the one that ends first. It comes at once if the handle's context has n leases of the
// semaphore already: that wait would have no end. With fewer, Do takes another one.
func (s *Semaphore) Do(fn func(ctx context.Context) error) error { return s.mutex().Do(fn) }

// Decorate wraps fn so that every call of it runs under a lease, as Do does, with the context of the call.
func (s *Semaphore) Decorate(fn func(ctx context.Context) error) func(ctx context.Context) error {
	return s.mutex().Decorate(fn)
}

// Acquire takes a lease until Lease.Release, for work that does not fit into a function, as Mutex.Acquire does. If there
// are n leases the error is that of Do.
func (s *Semaphore) Acquire() (*Lease, error) { return s.mutex().Acquire() }

// Transaction acquires a lease, runs fn in a transaction, and commits only if the lease is still held. The same commit
// releases the lease. So no more than n such transactions of one semaphore overlap. All else is as for Mutex.Transaction.
func (s *Semaphore) Transaction(fn func(tx *gorm.DB) error, opts ...*sql.TxOptions) error {
	return s.mutex().Transaction(fn, opts...)
}

// Holders lists the leases that hold the semaphore now, by slot, whatever n is: also those in slots above it. There are none
// if all slots are free. What it says may be outdated when it returns. The error is the context's or the database's.
func (s *Semaphore) Holders() ([]LeaseInfo, error) {
	m := s.mutex()
	if err := m.check(); err != nil {
		return nil, err
	}
	leases, err := m.permits(m.ctx, locktable.Live)
	if err != nil {
		return nil, m.failed(m.ctx, "holders of", err)
	}
	return leases, nil
}

// ForceRelease ends the lease that ends first, in whichever slot: one that holds the semaphore or, if there is none, one
// that ran out. What never expires comes last. All else is as for Mutex.ForceRelease.
func (s *Semaphore) ForceRelease() error {
	m := s.mutex()
	if err := m.check(); err != nil {
		return err
	}
	for {
		leases, err := m.permits(m.ctx, locktable.LiveAndExpired)
		if err != nil {
			return m.failed(m.ctx, "force the release of", err)
		}
		if len(leases) == 0 {
			return nil
		}
		first := slices.MinFunc(leases, endsFirst)
		ended, err := m.forceReleaseOf(locktable.SlotID(m.id, first.Slot), first.LeaseID)
		if err != nil || ended != nil {
			return err
		}
	}
}

// ForceReleaseLease ends the lease that was seen, by its DBMutex.LeaseID, in whichever slot, also one above n. All else is
// as for Mutex.ForceReleaseLease.
func (s *Semaphore) ForceReleaseLease(leaseID string) (released bool, err error) {
	m := s.mutex()
	if err := m.check(); err != nil {
		return false, err
	}
	if leaseID == "" {
		return false, errNoLeaseID
	}
	leases, err := m.permits(m.ctx, locktable.LiveAndExpired)
	if err != nil {
		return false, m.failed(m.ctx, "force the release of", err)
	}
	for _, lease := range leases {
		if lease.LeaseID == leaseID {
			ended, err := m.forceReleaseOf(locktable.SlotID(m.id, lease.Slot), leaseID)
			return ended != nil, err
		}
	}
	return false, nil
}

// mutex has the verbs.
func (s *Semaphore) mutex() *Mutex {
	if s == nil {
		return nil
	}
	return &s.m
}

// permits are a semaphore's leases in one of these states, by slot. The error is as the database gave it.
func (m *Mutex) permits(ctx context.Context, which locktable.Which) ([]LeaseInfo, error) {
	rows, err := m.table.Permits(ctx, m.id, which)
	if err != nil {
		return nil, err
	}
	leases := make([]LeaseInfo, len(rows))
	for i, row := range rows {
		leases[i] = leaseInfo(row)
	}
	slices.SortFunc(leases, func(a, b LeaseInfo) int { return cmp.Compare(a.Slot, b.Slot) })
	return leases, nil
}

// endsFirst orders leases by what ForceRelease ends first.
func endsFirst(a, b LeaseInfo) int {
	rank := func(i LeaseInfo) int {
		switch {
		case i.Expired():
			return 2
		case !i.Expires():
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Left, b.Left))
}

// takenByContext is how many leases of the mutex, or of the semaphore, a context has.
func (m *Mutex) takenByContext() (n int) {
	for lease, ok := LeaseFrom(m.ctx); ok; lease, ok = LeaseFrom(lease.work.Context) {
		if lease.mutex.key == m.key && lease.holds() {
			n++
		}
	}
	return n
}

// Slot is the lease's number among those of its semaphore, from 1 on; 0 for that of a mutex.
func (l *Lease) Slot() int { return l.slot }
