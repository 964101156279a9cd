// Package locktable runs the lock's statements on its table, each until its outcome is known. It knows neither what a lease
// is for its holder nor who waits.
package locktable

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"gorm.io/gorm"
)

// Table is the lock's table in a database. The zero Table is none; one from New needs On before it can run statements.
type Table struct {
	*statements
	config *gorm.Config
}

// statements are those of one database on one table. All handles of a pool share them.
type statements struct {
	dialect
	notifying // nil if the database does not notify
	recording // nil if the database keeps no record of transactions
	fragile   // nil if no statement can end a transaction
	remote    // nil if the database runs in this process
	freed     freedNumbers
	combining // nil if each call has a statement of its own
	crowd     crowd
	inspected atomic.Bool
}

// look inspects the table before its first use, and again after the database has refused a statement: it may have been made
// anew.
func (t Table) look(on executor) error {
	if t.inspected.Load() {
		return nil
	}
	err := t.inspect(on)
	if err == nil {
		t.inspected.Store(true)
	}
	return err
}

// New makes a Table from the name that GORM has for the database and the table's name, also quoted. The error is that of a
// database that is not supported.
func New(database, name, quoted string) (Table, error) {
	d, err := newDialect(database, name, quoted)
	if err != nil {
		return Table{}, err
	}
	s := &statements{dialect: d}
	s.notifying, _ = d.(notifying)
	s.recording, _ = d.(recording)
	s.fragile, _ = d.(fragile)
	s.remote, _ = d.(remote)
	s.combining, _ = d.(combining)
	return Table{statements: s}, nil
}

// On is the table on a handle's main pool.
func (t Table) On(config *gorm.Config) Table { return Table{t.statements, config} }

// Valid says whether it can run statements.
func (t Table) Valid() bool { return t.config != nil }

// Notifies says whether other processes can hear of releases. HandOn, Reserve, Tell, Withdraw and ID need that.
func (t Table) Notifies() bool { return t.notifying != nil }

// ID tells tables apart, for all processes. It is 0 until an Acquire has asked for it.
func (t Table) ID() uint32 { return t.notifying.id() }

// Outcome is what statements on a lease's row came to.
type Outcome struct {
	Row     RowState
	Err     error // the last try's, if it failed
	Doubt   bool  // a try may have had its effect, but its answer did not come
	Told    bool  // the message went out
	Knocked bool  // a waiter of another process has left its mark; asked for by Release.Unaware
}

// RowState is what a statement found of a lease's row.
type RowState int

// A row's states.
const (
	RowNotAsked RowState = iota // Outcome.Err says why
	RowFound                    // it was there, and the lease's; Outcome.Err is then that of a callback
	RowMissing                  // it was not there, nor perhaps the table; Outcome.Err says so then
	RowEnded                    // it was there, but its time was over by the database's clock
)

func (t Table) outcome(found, doubt bool, err error) Outcome {
	o := Outcome{Err: err, Doubt: doubt}
	switch {
	case found && (err == nil || t.failureOf(err) == unread):
		o.Row = RowFound
	case err == nil, t.Missing(err):
		o.Row = RowMissing
	}
	return o
}

// Acquire asks for a lease once. Without one, it leaves none in the table: it removes what a try without an answer may
// have made, also after ctx is done. If that fails, or if the network may still deliver a try, Answer.Doubt says so, also
// beside an error.
func (t Table) Acquire(ctx context.Context, r Request) (Answer, error) {
	var v verdict
	if r.Slots == 0 && !r.Kept && t.combines() {
		v = t.join(ctx, acquireTogether, r)
		defer t.leave()
	}
	a, doubt, err := v.answer, v.doubt, error(nil)
	if !v.clear() {
		a, doubt, err = t.acquireAlone(ctx, r, doubt)
	} else if a.Token != 0 && ctx.Err() != nil {
		err = &unsentError{error: ctx.Err()}
	}
	a.Doubt = doubt && t.remote != nil
	a.Busy = err != nil && t.failureOf(err) == conflicting
	if err == nil && a.Token != 0 {
		return a, nil
	}
	if doubt || a.Token != 0 {
		a.Token = 0
		a.Doubt = !t.Discard(ctx, r.Key, r.TTL) || a.Doubt
	}
	return a, err
}

// acquireAlone is Acquire by a statement for one, until its outcome is known.
func (t Table) acquireAlone(ctx context.Context, r Request, before bool) (a Answer, doubt bool, err error) {
	doubt, err = t.settleAfter(before, ctx, time.Time{}, func(on executor) (err error) {
		if err = t.look(on); err != nil {
			return err
		}
		again, start := !a.Start.IsZero(), time.Now()
		if r.Slots > 0 {
			a, err = t.acquireSlot(on, r, again)
		} else {
			a, err = t.acquire(on, r)
		}
		a.Start = start
		if err == nil && a.Token != 0 && ctx.Err() != nil {
			limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardLimit/2)
			defer cancel()
			if settled, err := t.remove(on.under(limited), r.Key); settled && err == nil {
				a.Token = 0 // as if it had not been
			}
			err = &unsentError{error: ctx.Err()}
		}
		return err
	})
	return a, doubt, err
}

// discardLimit is how long Discard goes on for a lease that has a TTL.
const discardLimit = 2 * time.Second

// Discard removes a lease that nobody will use, also after ctx is done. It tries for discardLimit, or for Limit without a
// TTL. GORM logs its errors. If the row was not there, or could not be removed, it may be there later.
func (t Table) Discard(ctx context.Context, k Key, ttl *time.Duration) (settled bool) {
	limit := discardLimit
	if ttl == nil {
		limit = Limit
	}
	ctx, deadline := context.WithoutCancel(ctx), time.Now().Add(limit)
	for _, pause := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond} {
		time.Sleep(pause)
		_, err := t.settle(ctx, deadline, func(on executor) (err error) {
			settled, err = t.remove(on, k)
			return err
		})
		if settled || err != nil {
			return settled && err == nil
		}
	}
	return false
}

// remove deletes the row of a lease that may have been made. If there is none, and the database is remote, a statement
// without an answer may make it yet.
func (t Table) remove(on executor, k Key) (settled bool, err error) {
	var found bool
	if k.Slots > 0 {
		found, err = t.removeSlot(on, k)
	} else {
		found, err = t.release(on, Release{Key: k})
	}
	return found || t.remote == nil, err
}

// Rename gives a lease another id, once its first one may still make a row: see Answer.Doubt. It tries once.
func (t Table) Rename(ctx context.Context, k Key, leaseID string) (found bool, err error) {
	limited, cancel := context.WithTimeout(ctx, Limit)
	defer cancel()
	err = t.tryOnce(limited, func(on executor) (err error) {
		found, err = t.rename(on, k, leaseID)
		return err
	})
	return found, err
}

// Live is the row of a lease that is live, or nil.
func (t Table) Live(ctx context.Context, lockID string) (live *Row, err error) {
	_, err = t.settle(ctx, time.Time{}, func(on executor) error {
		if err := t.look(on); err != nil {
			return err
		}
		row, isLive, err := t.row(on, lockID)
		if live = nil; isLive {
			live = row
		}
		return err
	})
	return live, err
}

// Renew makes a lease last ttl from start. A lease whose time is over by the database's clock stays as it is. A statement
// that is under way when ctx ends has grace.
func (t Table) Renew(ctx context.Context, limit time.Time, k Key, ttl *time.Duration) (o Outcome, start time.Time) {
	graceful, cancel := gracefully(ctx)
	defer cancel()
	var found, ended bool
	doubt, err := t.settle(ctx, limit, func(on executor) (err error) {
		deadline, _ := on.ctx.Deadline()
		limited, cancel := context.WithDeadline(graceful, deadline)
		defer cancel()
		on = on.under(limited)
		start = time.Now()
		if found, err = t.renew(on, k, ttl); err != nil || found {
			return err
		}
		row, _, err := t.row(on, k.LockID)
		ended = err == nil && row != nil && row.LeaseID == k.LeaseID
		return err
	})
	if o = t.outcome(found, doubt, err); ended && o.Row == RowMissing {
		o.Row = RowEnded
	}
	return o, start
}

// Release ends a lease. If the database refuses that with a notification, it does so without. A zero limit is none, and has
// little patience.
func (t Table) Release(ctx context.Context, limit time.Time, r Release) Outcome {
	var v verdict
	if how, combines := r.together(); combines && !limit.IsZero() && t.combines() {
		v = t.join(ctx, how, Request{Key: r.Key})
		defer t.leave()
	}
	if v.found {
		return Outcome{Row: RowFound}
	}
	var found, knocked bool
	try := func(on executor) (err error) {
		if r.Notify {
			on = on.hushing(refusals)
		}
		unaware := r.Unaware
		r.Unaware = false
		if unaware {
			if found, err = t.releaseUnmarked(on, r); err != nil || found {
				return err
			}
		}
		found, err = t.release(on, r)
		knocked = knocked || unaware && found
		return err
	}
	doubt, err := t.settleAfter(v.doubt, ctx, limit, try)
	if r.Notify && t.Refused(err) && !errors.As(err, new(*refusedError)) {
		r.Notify, r.Message, r.Unaware = false, "", false
		before := doubt
		doubt, err = t.settle(ctx, limit, try)
		doubt = doubt || before
	}
	o := t.outcome(found, doubt, err)
	o.Told, o.Knocked = o.Row == RowFound && r.Message != "", knocked
	if id, slot := SplitSlot(r.LockID); slot > 0 && o.Row == RowFound && r.MinHold <= 0 {
		t.freed.put(id, int64(slot))
	}
	return o
}

// HandOn makes a lease's row the next lease's. The answer has no token if the row was not there.
func (t Table) HandOn(ctx context.Context, limit time.Time, k Key, next Request) (a Answer, o Outcome) {
	again := false
	doubt, err := t.settle(ctx, limit, func(on executor) (err error) {
		a.Start = time.Now()
		a.Token, err = t.handOn(on, k, next, again)
		again = again || err != nil && t.failureOf(err) == unknown
		return err
	})
	return a, t.outcome(a.Token != 0, doubt, err)
}

// Reserve ends a lease, and keeps the mutex for a waiter of another process. A try without an answer leaves a row that is
// not the lease's, and that must stay as it is.
func (t Table) Reserve(ctx context.Context, limit time.Time, k Key, to Reservation, async bool) Outcome {
	var found bool
	doubt, err := t.settle(ctx, limit, func(on executor) (err error) {
		found, err = t.reserve(on.hushing(refusals), k, to, async)
		return err
	})
	o := t.outcome(found, doubt, err)
	o.Told = o.Row == RowFound
	return o
}

// Tell sends a message, and leaves a mark at the mutex's row for Release.Unaware. It tries once, and nobody hears of a
// failure: the others ask by themselves, too.
func (t Table) Tell(ctx context.Context, lockID, message string) {
	_ = t.tryOnce(ctx, func(on executor) error { return t.tell(on.hushing(failures), lockID, message) })
}

// Withdraw sends a message, and frees the mutex that is kept for a waiter. The key has the ticket in the place of a lease's
// id. It tries once, as Tell does.
func (t Table) Withdraw(ctx context.Context, k Key, message string) {
	_ = t.tryOnce(ctx, func(on executor) error { return t.withdraw(on.hushing(failures), k, message) })
}

// ForceRelease ends the lease whose row is there, whosever it is, and spares a successor. With a leaseID it ends that lease
// alone. It returns the row that it ended, or nil.
func (t Table) ForceRelease(ctx context.Context, limit time.Time, lockID, leaseID string) (ended *Row, err error) {
	var ending *Row // a try is about to end it: if that fails, a successor may be in already
	var doubt bool  // a try may have ended it
	_, err = t.settle(ctx, limit, func(on executor) error {
		if err := t.look(on); err != nil {
			return err
		}
		for {
			again := ending != nil
			if !again {
				row, _, err := t.row(on, lockID)
				if err != nil || row == nil || leaseID != "" && row.LeaseID != leaseID {
					return err
				}
				ending = row
			}
			key := NewKey(lockID, ending.LeaseID)
			key.RowID = ending.ID
			found, err := t.release(on, Release{Key: key})
			if found || err == nil && doubt {
				ended = ending
			}
			if err != nil || found || again {
				doubt = doubt || err != nil && t.failureOf(err) == unknown
				return err
			}
			ending = nil // it changed hands in between
		}
	})
	return ended, err
}

// Token is the fencing token of a row's lease, or 0 if the row does not have it.
func (t Table) Token(row *Row) int64 { return t.token(row) }

// Prepare makes a transaction of Begin ready for the caller's work. The transaction then ends with Finish.
func (t Table) Prepare(tx *gorm.DB, k Key, w Work) (o Outcome, renewable bool) {
	found, renewable, err := t.begin(in(tx.Statement.Context, tx), k, w)
	return t.outcome(found, false, err), renewable && w.Renew
}

// Finish is ReleaseIn for a transaction of Prepare. It is refused if the transaction has ended before.
func (t Table) Finish(ctx context.Context, tx *gorm.DB, k Key, minHold time.Duration) (o Outcome, transaction string) {
	return t.finish(ctx, tx, func(on executor) (found bool, transaction string, err error) {
		return t.releaseIn(on, k, minHold)
	})
}

// finish runs the statement that ends a transaction of Prepare.
func (t Table) finish(
	ctx context.Context, tx *gorm.DB, statement func(on executor) (found bool, transaction string, err error),
) (o Outcome, transaction string) {
	on := t.in(ctx, tx)
	if t.fragile != nil {
		if err := t.unbroken(on, true); err != nil {
			return Outcome{Err: err}, ""
		}
	}
	found, transaction, err := statement(on)
	return t.outcome(found, false, err), transaction
}

// Guard pins a lease's row until the end of a caller's transaction.
func (t Table) Guard(tx *gorm.DB, k Key) Outcome {
	o, _ := t.within(t.in(tx.Statement.Context, tx), func(on executor) (found bool, transaction string, err error) {
		found, err = t.guard(on, k)
		return found, "", err
	})
	return o
}

// ReleaseIn is Release as a part of a caller's transaction, which it names for Fate.
func (t Table) ReleaseIn(ctx context.Context, tx *gorm.DB, k Key, minHold time.Duration) (o Outcome, transaction string) {
	return t.within(t.in(ctx, tx), func(on executor) (found bool, transaction string, err error) {
		return t.releaseIn(on, k, minHold)
	})
}

func (t Table) in(ctx context.Context, tx *gorm.DB) executor {
	on := in(ctx, tx)
	on.aside = t.tryOnce
	return on
}

// within runs a statement that is a part of a caller's transaction.
func (t Table) within(
	tx executor, statement func(on executor) (found bool, transaction string, err error),
) (o Outcome, transaction string) {
	if t.fragile == nil {
		found, transaction, err := statement(tx)
		return t.outcome(found, false, err), transaction
	}
	if err := t.mark(tx); err != nil {
		return Outcome{Err: err}, ""
	}
	found, transaction, err := statement(tx)
	if err == nil {
		err = t.unbroken(tx, false)
	}
	return t.outcome(found, false, err), transaction
}

// Migrate makes the table of a model. Many processes may do so at once.
func (t Table) Migrate(ctx context.Context, model any) error {
	return t.tryOnce(ctx, func(on executor) error { return t.migrate(on, model) })
}

// Missing says whether an error means that there is no such table.
func (t Table) Missing(err error) bool { return err != nil && t.failureOf(err) == noTable }

// Mends says whether a later try may do what a failed one did not.
func (t Table) Mends(err error) bool {
	switch t.failureOf(err) {
	case refused, noTable, unread:
		return false
	}
	return true
}

// Refused says whether the database refused a statement, and would refuse it again.
func (t Table) Refused(err error) bool { return err != nil && t.failureOf(err) == refused }
