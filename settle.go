package dbmutex

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"gorm.io/gorm"
)

// settleLimit is how long a statement is tried again, from its first failure whose outcome is unknown, and how long a
// release may take in all.
const settleLimit = 5 * time.Second

// discardLimit is how long an acquire whose context is done goes on to remove a lease with a TTL that it may have made.
const discardLimit = 2 * time.Second

// settle runs a statement outside of any transaction, again where it failed in a way that another try can mend. Every try
// must have the same lease id, so that what an earlier one did shows. It reports doubt: whether any try may have had an
// effect that it did not report. One with a deadline is patient: until then it also goes on where the database cannot be
// reached or a time limit ended the statement, and no try takes more than half of what is left.
func (m *Mutex) settle(ctx context.Context, deadline time.Time, try func(target) error) (doubt bool, err error) {
	patient, giveUp := !deadline.IsZero(), time.Now().Add(settleLimit)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if patient {
			limited, cancel := context.WithDeadline(ctx, time.Now().Add(max(time.Until(deadline)/2, time.Millisecond)))
			err = m.tryOnce(limited, try)
			cancel()
		} else {
			err = m.tryOnce(ctx, try)
		}
		if err == nil {
			return doubt, nil
		}
		f := m.dialect.classify(err)
		if f == unknown && !doubt {
			doubt, giveUp = true, time.Now().Add(settleLimit)
		}
		again := f != refused
		if !patient {
			timedOut := errors.Is(err, context.DeadlineExceeded) // GORM's DefaultContextTimeout, if not ctx's
			again = f == conflicting || f == unknown && !timedOut || f == unreachable && doubt
		}
		now := time.Now()
		if !again || now.After(giveUp) || patient && !now.Before(deadline) || sleep(ctx, pause/2+rand.N(pause)) != nil {
			return doubt, err
		}
	}
}

// tryOnce holds one connection: an error then tells whether there was one, and database/sql repeats no statement by itself.
func (m *Mutex) tryOnce(ctx context.Context, try func(target) error) error {
	t, giveBack, err := m.hold(ctx)
	if err != nil {
		return err
	}
	defer giveBack()
	return try(t)
}

// hold takes a connection of the pool, outside of any transaction. A pool of somebody else's making has none to hold.
func (m *Mutex) hold(ctx context.Context) (t target, giveBack func(), err error) {
	t = target{ctx: ctx, config: m.config, pool: m.config.ConnPool, main: true}
	giveBack = func() {}
	switch t.pool.(type) {
	case *sql.DB, *gorm.PreparedStmtDB:
		if pool, err := sqlDB(t.pool); err == nil {
			conn, err := pool.Conn(ctx)
			if err != nil {
				return t, nil, &unsentError{err}
			}
			t.pool, giveBack = conn, func() { _ = conn.Close() }
		}
	}
	left, err := m.dialect.clean(t)
	if err != nil {
		giveBack()
		return t, nil, err
	}
	if left {
		m.config.Logger.Warn(ctx, "dbmutex: rolled back a transaction that was left open on a connection of the pool")
	}
	return t, giveBack, nil
}

// done is the context's error, also where its deadline has passed and only its timer is late: a network's timeout may
// come first.
func done(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok && ctx.Err() == nil && time.Until(deadline) <= 0 {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

// sleep waits, or returns the context's error once it is done.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// failed words a database's error. Where the caller's context is done that is the outcome; where it is not, the error
// must not look as if it were.
func (m *Mutex) failed(ctx context.Context, verb string, err error) error {
	switch {
	case done(ctx) != nil:
		return fmt.Errorf("dbmutex: %s %q: %w", verb, m.id, done(ctx))
	case m.dialect.missing(err):
		return fmt.Errorf("dbmutex: %s %q: table %q is missing: run AutoMigrate(&dbmutex.DBMutex{}): %w", verb, m.id, m.queue.table, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("dbmutex: %s %q: the database did not answer in time: %s", verb, m.id, err.Error())
	default:
		return fmt.Errorf("dbmutex: %s %q: %w", verb, m.id, err)
	}
}

// fate asks how a transaction ended, until the answer is known or settleLimit has passed.
func (m *Mutex) fate(ctx context.Context, transaction string) (f fate, err error) {
	_, err = m.settle(ctx, time.Now().Add(settleLimit), func(t target) (err error) {
		f, err = m.dialect.fate(t, transaction)
		return err
	})
	return f, err
}
