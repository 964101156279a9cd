package locktable

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Limit is how long a statement is tried again, counted from its first try, and anew from the first whose outcome is
// unknown. A release may take as long in all.
const Limit = 5 * time.Second

// failure is what an error says of the statement that gave it.
type failure int

const (
	refused     failure = iota // it had no effect, and another try would have none
	noTable                    // the same, as there is no such table
	conflicting                // it had no effect, as others were in the way; it may work at once
	outdated                   // it had no effect, as a plan, a token or a connection was out of date; another will do
	hindered                   // it had no effect; it may work later: a time limit of the database's, a full disk
	unreachable                // it was not sent
	unknown                    // it may have had its effect
	unread                     // it has had its effect, but what it said cannot be read; nor could another try's
)

// settle runs a statement outside of any transaction, and again after a failure that another try can mend. Every try must be
// for the same lease, so that what an earlier one did shows. doubt says that a try may have had an effect that it did not
// report.
//
// With a deadline settle is patient: until then it also goes on while the database cannot be reached, and after a statement
// that a time limit ended. No try takes more than half of what is left.
func (t Table) settle(ctx context.Context, deadline time.Time, try func(executor) error) (doubt bool, err error) {
	return t.settleAfter(false, ctx, deadline, try)
}

// settleAfter is settle after a try that may have had an effect, if it is in doubt.
func (t Table) settleAfter(
	before bool, ctx context.Context, deadline time.Time, try func(executor) error,
) (doubt bool, err error) {
	doubt = before
	patient, giveUp := !deadline.IsZero(), time.Now().Add(Limit)
	var telling error // the database's last word, if the end of the time that is left hides it
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if patient {
			limited, cancel := context.WithDeadline(ctx, time.Now().Add(max(time.Until(deadline)/2, time.Millisecond)))
			err = t.tryOnce(limited, try)
			cancel()
		} else {
			err = t.tryOnce(ctx, try)
		}
		if err == nil {
			return doubt, nil
		}
		f := t.failureOf(err)
		switch {
		case f == hindered, f == conflicting:
			telling = err
		case patient && telling != nil && ctx.Err() == nil && (f == unknown || f == unreachable || f == outdated):
			err = fmt.Errorf("%w (then: %s)", telling, err.Error())
		}
		if (f == unknown || f == unread) && !doubt {
			doubt, giveUp = true, time.Now().Add(Limit)
		}
		if f == refused || f == noTable || f == outdated {
			t.inspected.Store(false)
		}
		now := time.Now()
		if !f.mends(patient, doubt, err) || now.After(giveUp) || patient && !now.Before(deadline) ||
			Sleep(ctx, pause/2+rand.N(pause)) != nil {
			return doubt, err
		}
	}
}

// mends says whether another try can mend a failure.
func (f failure) mends(patient, doubt bool, err error) bool {
	switch f {
	case refused, noTable, unread:
		return false
	case conflicting, outdated:
		return true
	case unknown: // the time limit may be GORM's DefaultContextTimeout, if it is not the caller's
		return patient || !errors.Is(err, context.DeadlineExceeded)
	case unreachable:
		return patient || doubt
	case hindered:
		return patient
	}
	return false
}

// InDoubt says whether a transaction whose COMMIT gave err may have committed.
func (t Table) InDoubt(err error) bool { return t.remote != nil && t.failureOf(err) == unknown }

// Fate asks how a transaction that was to end a lease ended, until the answer is known or Limit has passed.
func (t Table) Fate(ctx context.Context, k Key, transaction string) (f Fate, err error) {
	if t.recording == nil {
		return NotRecorded, nil
	}
	f = Unknown
	_, err = t.settle(ctx, time.Now().Add(Limit), func(on executor) (err error) {
		f, err = t.fate(on, k, transaction)
		return err
	})
	return f, err
}

// Done is the context's error. It is there as soon as the deadline has passed, even if the context's timer is late: a
// network's timeout may come first.
func Done(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok && ctx.Err() == nil && time.Until(deadline) <= 0 {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

// grace is for how long a statement may go on after its context is done: one that is cut off costs its connection, and
// may still have its effect on the server later.
const grace = time.Second

// gracefully is a context that ends grace after ctx.
func gracefully(ctx context.Context) (context.Context, context.CancelFunc) {
	if ctx.Done() == nil {
		return ctx, func() {}
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	return own, func() { stop(); cancel() }
}

// Sleep waits, or returns the context's error once it is done.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// unsentError is the error of a statement that was not sent: it cannot have had an effect.
type unsentError struct {
	error
	connected bool // there was a connection, but it failed before; the next one may not
}

// Unwrap returns why it was not sent.
func (e *unsentError) Unwrap() error { return e.error }

// refusedError is the error of a statement that one of GORM's callbacks did not let through.
type refusedError struct{ error }

// Unwrap returns the callback's error.
func (e *refusedError) Unwrap() error { return e.error }

// unreadError is the error of a statement that was done, but whose answer could not be used.
type unreadError struct{ error }

// Unwrap returns what went wrong.
func (e *unreadError) Unwrap() error { return e.error }

// failureOf says what an error means for the statement that gave it.
func (t Table) failureOf(err error) failure {
	var refusal *refusedError
	var unusable *unreadError
	switch {
	case errors.As(err, &refusal):
		return refused
	case errors.As(err, &unusable):
		return unread
	}
	f := t.classify(err)
	if unsent := (*unsentError)(nil); f == unknown && errors.As(err, &unsent) {
		if unsent.connected {
			return outdated
		}
		return unreachable
	}
	return f
}

func isUnsent(err error) bool {
	var unsent *unsentError
	return errors.As(err, &unsent)
}

// isPoolClosed knows an error of database/sql that has no name.
func isPoolClosed(err error) bool { return strings.Contains(err.Error(), "sql: database is closed") }
