package dbmutex

import (
	"context"
	"fmt"
	"time"
)

// Observer is told what happens to mutexes: give it to Settings.Observer. LogTo makes one that logs. It must be safe for
// many goroutines.
//
// An event is told when what it tells of is done, and while no lock of this package is held. So an observer changes the
// outcome of nothing. One that is slow delays only the goroutine that tells it. Its panic is recovered, and goes to GORM's
// logger.
//
// An AcquireBegan and a LeaseBegan may be answered with a context that has more values, such as a span: ctx itself or one
// made from it. Only its values are used, never its end; nil adds none. Those of AcquireBegan are for the acquire's
// statements and for its AcquireEnded. Those of LeaseBegan are for the work's context and for the later events of the lease.
// What Observe returns for other events is ignored.
//
// On PostgreSQL and SQLite the acquires, or releases, of many goroutines may share a statement. It is in the log, and in a
// trace, once: with the logger and the context's values of the first of them.
type Observer interface {
	Observe(ctx context.Context, e Event) context.Context
}

// EventKind says what has happened.
type EventKind uint8

// The kinds of events. There may be more in later versions: ignore those that you do not know.
const (
	// AcquireBegan and AcquireEnded are around each acquire: of Do, Decorate, DoValue, Acquire, Lead, Transaction, OnceValue
	// and Migrate, with the wait. They come on the caller's goroutine, and so do LeaseBegan, LeaseEnded and ForceReleased. A
	// call that is wrong, so that no SQL runs, has no events.
	AcquireBegan EventKind = iota + 1
	AcquireEnded
	// LeaseBegan comes when the caller has the lease. Its time runs already, and so do its renewals.
	LeaseBegan
	// LeaseRenewed, RenewalFailed, LeaseRanOut and LeaseLost come on a goroutine of the lease's own, in their order. At most 8
	// wait there for an observer that is slow; more are dropped, and LeaseEnded says how many. LeaseRenewed is a renewal that
	// was done, by Settings.Renew or by Lease.Renew.
	LeaseRenewed
	// RenewalFailed is a renewal that the database failed. The lease lasts as long as before.
	RenewalFailed
	// LeaseRanOut says that the lease's deadline has passed. Its row may be there still.
	LeaseRanOut
	// LeaseLost says that a renewal found the lease's row gone, or another's. (A loss that only the release finds is the
	// outcome of LeaseEnded.)
	LeaseLost
	// LeaseEnded comes once for each lease that is released, when that is done and waiters are woken, and is its last event. It
	// waits, for a second at the most, for the lease's earlier events to be told. It comes when the first release returns, also
	// if that release failed and goes on in the background: its outcome is unknown then.
	LeaseEnded
	// ForceReleased names the lease that Mutex.ForceRelease or ForceReleaseLease has ended. It does not come if there was none.
	ForceReleased
)

var eventKinds = []string{
	AcquireBegan: "acquire began", AcquireEnded: "acquire ended", LeaseBegan: "lease began", LeaseRenewed: "lease renewed",
	RenewalFailed: "renewal failed", LeaseRanOut: "lease ran out", LeaseLost: "lease lost", LeaseEnded: "lease ended",
	ForceReleased: "force released",
}

// String is the kind in words, such as "acquire began".
func (k EventKind) String() string { return nameOf("EventKind", eventKinds, uint8(k)) }

// Outcome is how an acquire or a lease ended.
type Outcome uint8

// The outcomes of AcquireEnded, and then those of LeaseEnded.
const (
	OutcomeAcquired  Outcome = iota + 1
	OutcomeHeld              // somebody else holds the mutex
	OutcomeSkipped           // the same, and Settings.SkipHeld makes that no error
	OutcomeCancelled         // the context is done, its deadline included
	OutcomeFailed            // the database failed

	OutcomeReleased // also late, after LeaseRanOut, if nobody had the mutex meanwhile
	OutcomeHandedOn // the same, and the next waiter of this process has the mutex already
	OutcomeLost     // somebody else may have held the mutex before the work ended
	OutcomeUnknown  // the release failed

	OutcomeDone     // of AcquireEnded of a Once: there is a record, so that nothing is to be done
	OutcomeRecorded // of LeaseEnded of a Once: its success is recorded, perhaps late, after LeaseRanOut
)

var outcomes = []string{
	OutcomeAcquired: "acquired", OutcomeHeld: "held", OutcomeSkipped: "skipped", OutcomeCancelled: "cancelled",
	OutcomeFailed: "failed", OutcomeReleased: "released", OutcomeHandedOn: "handed on", OutcomeLost: "lost",
	OutcomeUnknown: "unknown", OutcomeDone: "done", OutcomeRecorded: "recorded",
}

// String is the outcome in a word or two, such as "acquired" or "handed on".
func (o Outcome) String() string { return nameOf("Outcome", outcomes, uint8(o)) }

func nameOf(of string, names []string, n uint8) string {
	if n == 0 || int(n) >= len(names) {
		return fmt.Sprintf("%s(%d)", of, n)
	}
	return names[n]
}

// Event is what an Observer is told. Fields that do not go with its Kind are zero.
type Event struct {
	Kind    EventKind
	Outcome Outcome // of AcquireEnded and LeaseEnded

	Once    bool   // it is a Once's, and not a Mutex's
	LockID  string // the mutex, the Once or the semaphore
	Slot    int    // of the semaphore; 0 for others, and before there is a lease
	Holder  string // whose acquire or lease it is, by Settings.Holder; of ForceReleased the one whose lease was ended
	LeaseID string // the row's lease_id; "" before there is a lease
	Token   int64  // the fencing token; 0 before there is a lease. On PostgreSQL that of ForceReleased is 0: no row has it.

	TTL time.Duration // of the mutex's leases; 0 = they never expire

	Waited   time.Duration // AcquireEnded: how long it took
	Tries    int           // AcquireEnded: how often it asked the database for the lease
	HandedOn bool          // AcquireEnded: this process's last holder handed the mutex on
	Previous *HeldError    // AcquireEnded: the lease that had run out, and was taken over; nil if there was none

	Held      time.Duration // LeaseEnded: from the acquire's answer until the release was done
	ExpiresAt time.Time     // LeaseBegan, LeaseRenewed: when the lease ends unless it is renewed, by this process's clock
	Dropped   int           // LeaseEnded: how many events of the lease were not told

	// Err is the error of an AcquireEnded without a lease, of RenewalFailed, LeaseRanOut and LeaseLost, and of the release for
	// LeaseEnded.
	Err error
}

// observers are told one after the other.
type observers []Observer

// Observers makes one Observer of many, which are told in their order: each gets the values that those before it have added.
// nil ones are left out; if none is left it is nil. If one is slow, and the lease ends meanwhile, those after it are not
// told of that event any more.
func Observers(o ...Observer) Observer {
	var all observers
	for _, one := range o {
		switch one := one.(type) {
		case nil:
		case observers:
			all = append(all, one...)
		default:
			all = append(all, one)
		}
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return all
}

// Observe tells them all.
func (all observers) Observe(ctx context.Context, e Event) context.Context {
	for _, one := range all {
		if seen := one.Observe(ctx, e); seen != nil {
			ctx = seen
		}
	}
	return ctx
}
