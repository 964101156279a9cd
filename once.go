package dbmutex

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
	"unicode/utf8"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// Once is work that is to succeed once: a sync.Once for all processes, which keeps the success in the database. It is safe
// for many goroutines.
//
// At most one process runs the work at a time, under a lease as a Mutex gives it, and others try again until one succeeds.
// Then a record says that it is done, for as long as it is kept, and nobody runs it. Work that fails leaves no record.
//
// What it does not promise: a crash between the end of Do's work and its record makes the work run again, and so does the
// loss of the lease. An effect in the database that must come exactly once belongs into Transaction. An effect elsewhere
// needs a store that knows the id, or refuses an old Lease.Token.
type Once struct {
	mutex *Mutex // of the table of runs and records; nil = not from DB.Once
	keep  time.Duration
}

// Once names work that is to succeed once within keep, with the plugin's settings as opts change them. It runs no SQL. The
// record of a success is kept for keep, by the database's clock, and rounded up as Settings.TTL is. Then the work may run
// again.
//
// Settings.TTL, Renew, Wait, Holder, Observer and SkipHeld mean what they mean for a Mutex. Without a TTL, a run whose
// process crashed lasts until Once.ForceRelease. If the call is wrong, every verb says so before any SQL: as DB.Mutex, and
// with ErrInvalidSettings if keep is not positive or Settings.MinHold is set.
//
// The table is DBOnce's, so that a Once and a Mutex of the same id have nothing to do with each other. Ids are those of
// DB.Mutex. For a schedule's ticks see Tick.
func (db *DB) Once(id string, keep time.Duration, opts ...Option) *Once {
	m := &Mutex{id: id, once: true}
	m.err = m.bind(db, opts)
	switch {
	case m.err != nil:
	case keep <= 0:
		m.err = fmt.Errorf("%w: a record kept for %v: it must be positive", ErrInvalidSettings, keep)
	case m.settings.MinHold > 0:
		m.err = fmt.Errorf("%w: MinHold does not go with a Once, whose record keeps others out", ErrInvalidSettings)
	}
	return &Once{m, keep}
}

// errDone says that there is a record: it is the outcome of an acquire, and no error for callers.
var errDone = errors.New("dbmutex: it is done")

func (o *Once) check() error {
	if o == nil || o.mutex == nil {
		return fmt.Errorf("%w (the Once is not from DB.Once)", ErrNotRegistered)
	}
	return o.mutex.check()
}

// Do runs fn, unless it has succeeded under this id and the record of that is still kept: then it returns nil at once. It
// does so also if the record comes while it waits for somebody who runs it. fn gets the lease's context, as in Mutex.Do.
//
// If fn returns nil, its success is recorded before Do returns nil. Else Do releases the lease, so that others may try, and
// returns fn's error; a panic or runtime.Goexit goes on.
//
// The errors are those of Mutex.Do, and ErrNotAcquired says that somebody else runs the work. If fn has returned nil, these
// are left:
//   - ErrTimeout with Lost: the lease was lost, and nothing is recorded. Somebody else may run, or have run, the work.
//   - ErrTimeout without Lost, and no other error: the lease ran out, but nobody followed. The success is recorded.
//   - The database's, perhaps joined with ErrTimeout. If it refuses to record the success, nothing is recorded, and others
//     may try. Else it was not reached for 5 seconds: whether the success is recorded is not known. If time can mend that,
//     it is tried in the background until the lease ends, and the error says so: the record may come later.
//   - fn has ended its own lease, by Lease.Release or ReleaseIn. Then nothing is recorded.
//
// With Settings.SkipHeld, Do returns nil and logs a warning if somebody else runs the work.
func (o *Once) Do(fn func(ctx context.Context) error) error {
	if err := o.check(); err != nil {
		return err
	}
	if fn == nil {
		return errNilFunc
	}
	m := o.mutex
	lease, err := m.acquire()
	switch {
	case errors.Is(err, errDone):
		return nil
	case m.settings.SkipHeld && errors.Is(err, ErrNotAcquired):
		m.config.Logger.Warn(m.ctx, "skipped: %v", err)
		return nil
	case err != nil:
		return err
	}
	return o.run(lease, func(ctx context.Context) (result []byte, err error) { return nil, fn(ctx) })
}

// run runs fn under a lease, and records its success with its result.
func (o *Once) run(lease *Lease, fn func(ctx context.Context) (result []byte, err error)) error {
	err := lease.run(func(ctx context.Context) error {
		result, err := fn(ctx)
		if err != nil {
			return err
		}
		return lease.leave(&locktable.Record{Keep: o.keep, Result: result, Token: lease.token})
	})
	o.prune(err)
	return err
}

// Transaction runs fn in a transaction, unless it has succeeded under this id and the record of that is still kept. The
// record commits with fn's effects: they come exactly once while the record is kept, however late or often the work runs.
// With synchronous_commit=off on PostgreSQL a crash of the server may undo both.
//
// All else is as in Mutex.Transaction, with the record in the place of the release: a lease that was lost rolls back, and
// one that only ran out commits. fn's error rolls back, and so does a COMMIT that fails, and others may try. (If the lease
// ran out as well, that error is joined with ErrTimeout.) If the answer to the COMMIT is lost, the record tells how it
// ended; on MySQL and MariaDB that is unknown if the record is gone or the row another's by then. If fn, or the database,
// has ended the transaction before, the error matches gorm.ErrInvalidTransaction on every database, and nothing is recorded.
func (o *Once) Transaction(fn func(tx *gorm.DB) error, opts ...*sql.TxOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	if err := o.mutex.checkTransaction(fn, opts); err != nil {
		return err
	}
	lease, err := o.mutex.obtain()
	switch {
	case errors.Is(err, errDone):
		return nil
	case err != nil:
		return err
	}
	err = lease.transact(fn, opts, &locktable.Record{Keep: o.keep, Token: lease.token})
	o.prune(err)
	return err
}

// MaxResultLength is how many bytes of JSON a result of OnceValue may have: a MiB.
const MaxResultLength = 1 << 20

// OnceValue is Once.Do for work that returns a value. The value is recorded as JSON, of at most MaxResultLength bytes, and
// returned as long as the record is kept. After a failure of fn or of what follows, the value is fn's; it is zero if fn did
// not run.
//
// ErrInvalidResult says one of these:
//   - The value cannot be recorded: it has no JSON, or too much. Nothing is recorded, and the work may run again.
//   - There is a record that does not decode into a T, or that Once.Do or Transaction has made. fn did not run.
//
// A value comes back as encoding/json decodes it. With Settings.SkipHeld it gives ErrInvalidSettings: there would be no
// value to return.
func OnceValue[T any](o *Once, fn func(ctx context.Context) (T, error)) (value T, err error) {
	if err := o.check(); err != nil {
		return value, err
	}
	if err := o.mutex.checkLeasing("OnceValue"); err != nil {
		return value, err
	}
	if fn == nil {
		return value, errNilFunc
	}
	for {
		lease, err := o.mutex.acquire()
		switch {
		case err == nil:
			err = o.run(lease, func(ctx context.Context) (result []byte, err error) {
				if value, err = fn(ctx); err != nil {
					return nil, err
				}
				return o.encode(value)
			})
			return value, err
		case !errors.Is(err, errDone):
			return value, err
		}
		record, err := o.Done()
		switch {
		case err != nil:
			return value, err
		case record != nil:
			return decode[T](record)
		}
	}
}

func (o *Once) encode(value any) ([]byte, error) {
	result, err := json.Marshal(value)
	switch {
	case err != nil:
		err = fmt.Errorf("%w: that of %q: %w", ErrInvalidResult, o.mutex.id, err)
	case !utf8.Valid(result):
		err = fmt.Errorf("%w: that of %q is not valid UTF-8", ErrInvalidResult, o.mutex.id)
	case len(result) > MaxResultLength:
		err = fmt.Errorf("%w: that of %q has %d bytes of JSON and may have %d",
			ErrInvalidResult, o.mutex.id, len(result), MaxResultLength)
	}
	return result, err
}

func decode[T any](record *DBOnce) (value T, err error) {
	if record.Result == nil {
		return value, fmt.Errorf("%w: %q was recorded without one", ErrInvalidResult, record.LockID)
	}
	if err := json.Unmarshal(record.Result, &value); err != nil {
		var zero T
		return zero, fmt.Errorf("%w: that which was recorded of %q: %w", ErrInvalidResult, record.LockID, err)
	}
	return value, nil
}

// Done returns the record of the success while it is kept, or nil, nil if there is none. What it says may be outdated when
// it returns. The error is the handle's, the context's or the database's.
func (o *Once) Done() (*DBOnce, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	m := o.mutex
	row, result, err := m.table.Record(m.ctx, m.id)
	if err != nil {
		return nil, m.failed(m.ctx, "read the record of", err)
	}
	if row == nil {
		return nil, nil
	}
	return &DBOnce{
		ID: row.ID, LockID: row.LockID, CreationTime: row.CreationTime, ExpiresAt: row.ExpiresAt,
		Holder: row.Holder, LeaseID: row.LeaseID, Token: row.Token, Result: result,
	}, nil
}

// Forget removes the record, so that the work runs again. If there is none it does nothing: a run that ran out, and one of
// which nobody knows, is no error. While the work runs it returns ErrNotAcquired, a *HeldError, and changes nothing. Any
// other error is the handle's, the context's or the database's; the record may be gone then.
func (o *Once) Forget() error {
	if err := o.check(); err != nil {
		return err
	}
	m, limit := o.mutex, time.Now().Add(locktable.Limit)
	live, err := m.table.Forget(m.ctx, limit, m.id)
	switch {
	case err != nil:
		return m.notReleased(m.ctx, limit, "forget", err)
	case live != nil:
		return heldError(m.id, live)
	}
	return nil
}

// ForceRelease ends the run that is under way, whosever it is, or the one that ran out, so that others may try. It is for
// operators, as Mutex.ForceRelease is, and for a run without a TTL whose process crashed. A record stays: see Forget. The
// run learns of it as of a loss, and then records nothing. It is no error if nobody runs the work. Other errors are those of
// Mutex.ForceRelease.
func (o *Once) ForceRelease() error {
	if err := o.check(); err != nil {
		return err
	}
	m := o.mutex
	run, err := m.see(m.ctx, locktable.LiveAndExpired)
	switch {
	case err != nil:
		return m.failed(m.ctx, "force the release of", err)
	case run == nil, run.Done():
		return nil
	}
	_, err = m.forceRelease(run.LeaseID)
	return err
}

// Tick is the id of a schedule's tick: id, "@", and at rounded to the nearest multiple of every, in UTC. If the ticks of a
// schedule are such multiples, all machines get the same id as long as their clocks differ from the tick's time by less than
// every/2. (A time that is cut down to a multiple would give two ids where clocks are a moment before it and after it.)
//
// Multiples count from the zero time, as in time.Time.Round: those of a day are midnights in UTC, those of a week Mondays. A
// tick between two of them is where the rounding cuts: for a daily tick at noon in UTC, shift at by 12 hours. If every is
// not positive, the id has the time itself: for the time that a schedule gives, which is the same everywhere.
//
// The id must be no longer than MaxLockIDLength.
func Tick(id string, at time.Time, every time.Duration) string {
	return id + "@" + at.UTC().Round(every).Format(time.RFC3339Nano)
}

// pruneEvery is of how many successes one removes records that are not kept any more.
const pruneEvery = 32

// prune does so now and then, after a success.
func (o *Once) prune(outcome error) {
	if outcome == nil && rand.IntN(pruneEvery) == 0 {
		_ = o.mutex.table.PruneRecords(o.mutex.ctx)
	}
}
