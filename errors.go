package dbmutex

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// The errors of this package, for errors.Is. The error of a database wraps its driver's. The error of a context that is done
// matches context.Canceled or context.DeadlineExceeded. An error matches only one of the three: ErrNotAcquired, the
// context's or the database's. ErrTimeout is joined with the work's own error, whatever that is: look for ErrTimeout first.
var (
	// ErrNotAcquired says that somebody else holds the mutex; the work did not run. The error that matches it is a
	// *HeldError, which names the holder. It is django-db-mutex's DBMutexError.
	ErrNotAcquired = errors.New("dbmutex: the mutex is held by someone else")

	// ErrTimeout says that the lease ended before the work did. The error that matches it is a *TimeoutError. It says
	// whether the lease was lost, so that another holder may have overlapped with the work, or only ran out. It is
	// django-db-mutex's DBMutexTimeoutError.
	ErrTimeout = errors.New("dbmutex: the lease ended before the work did")

	// ErrInTransaction says that the mutex was asked for on a handle that is in a transaction. A rollback would take the
	// lock away, and others could not see it before the commit. No SQL ran.
	ErrInTransaction = errors.New("dbmutex: the handle is in a transaction: " +
		"make the mutex from a handle that is not (its Mutex.Transaction then runs the work in a transaction)")

	// ErrNotRegistered says that the plugin is missing. No SQL ran.
	ErrNotRegistered = errors.New("dbmutex: the plugin is not registered: call db.Use(dbmutex.New(dbmutex.DefaultSettings()))")

	// ErrDryRun says that the handle only builds SQL and runs none, so that nothing can be locked.
	ErrDryRun = errors.New("dbmutex: the handle is in DryRun mode")

	// ErrInvalidLockID says that an id is empty, longer than MaxLockIDLength characters, not valid UTF-8, or has a NUL
	// character or a U+001F in it. No SQL ran.
	ErrInvalidLockID = errors.New("dbmutex: invalid lock id")

	// ErrInvalidSettings says which setting or argument is not allowed. No SQL ran.
	ErrInvalidSettings = errors.New("dbmutex: invalid settings")

	// ErrInvalidResult says that the result of OnceValue cannot be recorded, or that the one which is recorded is no such
	// value.
	ErrInvalidResult = errors.New("dbmutex: invalid result")
)

var (
	errNilFunc = fmt.Errorf("%w: the function is nil", ErrInvalidSettings)
	errNoLease = fmt.Errorf("%w: the lease is not from Acquire", ErrInvalidSettings)

	errNoLeaseID = fmt.Errorf("%w: the lease's id is empty", ErrInvalidSettings)

	errReleased = errors.New("had been released")
	errOwnEnd   = errors.New("dbmutex: the work has ended its own lease, so that its success is not recorded")
	errEnded    = errors.New("it was over by the database's clock when it was to be renewed")
)

// HeldError is the error of a mutex that is held by someone else; it matches ErrNotAcquired. Of a semaphore whose slots are
// all taken it has the lease that ends first, and of a Once the run under way. Only LockID is set if nobody can say who
// that is: the mutex changed hands while it was looked at, or a lease that has ended is pinned. The same goes for a mutex
// whose lease the context has already, as it is not reentrant. Error says so then.
type HeldError struct {
	LockID    string     // the mutex, the semaphore or the Once
	Holder    string     // who holds it, or whose turn is next (see pgnotify), by its settings: host/pid unless set
	Since     time.Time  // when it was acquired, by the database's clock
	ExpiresAt *time.Time // when the lease ends unless it is renewed, by the database's clock; nil = never

	nested int // > 0: the caller itself has so many leases, which are all that there may be
	slots  int // of a semaphore
}

// Error says who holds the mutex, since when and until when.
func (e *HeldError) Error() string {
	if e.slots > 1 && e.nested == 0 {
		return fmt.Sprintf("dbmutex: all %d slots of %q are held, one of them by %s", e.slots, e.LockID, e.who())
	}
	return fmt.Sprintf("dbmutex: %q is held by %s", e.LockID, e.who())
}

func (e *HeldError) who() string {
	switch {
	case e.nested > 1:
		return fmt.Sprintf("the caller itself: its context has all %d leases", e.nested)
	case e.nested == 1:
		return "the caller itself: its context has the lease, and a mutex is not reentrant"
	case e.Since.IsZero():
		return "someone else"
	case e.ExpiresAt == nil:
		return fmt.Sprintf("%s since %s and does not expire", printable(e.Holder), e.Since.Format(toMilliseconds))
	default:
		return fmt.Sprintf("%s since %s until %s",
			printable(e.Holder), e.Since.Format(toMilliseconds), e.ExpiresAt.Format(toMilliseconds))
	}
}

// toMilliseconds is time.RFC3339 for leases that are shorter than a second, too.
const toMilliseconds = "2006-01-02T15:04:05.000Z07:00"

// printable quotes a name with which somebody could forge lines of a log, or turn its text around.
func printable(name string) string {
	if strings.IndexFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
		return strconv.Quote(name)
	}
	return name
}

// Is makes errors.Is(err, ErrNotAcquired) true.
func (e *HeldError) Is(target error) bool { return target == ErrNotAcquired }

// heldError is of the row that is in the way; of nobody known if that is nil.
func heldError(lockID string, row *locktable.Row) *HeldError {
	if row == nil {
		return &HeldError{LockID: lockID}
	}
	return &HeldError{LockID: lockID, Holder: row.Holder, Since: row.CreationTime, ExpiresAt: row.ExpiresAt}
}

// TimeoutError is the error of a lease that ended before its work did; it matches ErrTimeout. It tells two cases apart:
//   - The lease only ran out: its deadline had passed, but its row was still there. Certainly nobody else held the mutex.
//   - The lease was lost: its row was gone or another's, or nobody could ask. Somebody else may have held the mutex.
//
// Do, Decorate, DoValue, Transaction, Lease.Do and Lease.Release have asked the database. The cause of a context that ended
// at its deadline, and the error of a Renew after it, have not: Lost is true there, to be safe. Find it with errors.As, as
// it may be joined with the work's own error; the first that errors.As finds is the last word.
type TimeoutError struct {
	// LockID names the mutex.
	LockID string
	// Lost is false for a lease that only ran out. It is true for one that was lost, and for one that had been released.
	Lost bool
	// Late is how long after the lease's deadline the work ended, or would have begun. It is 0 if the lease was lost
	// before its deadline, and in the cause of a context.
	Late time.Duration
	// Err is the last failure of a renewal or of the release; nil if none failed.
	Err error

	lease   *Lease
	unasked bool // the deadline has passed, and the row was not asked for
}

// Error says whether the lease was lost or only ran out, or that nobody has asked, how late the work was, and what failed.
func (e *TimeoutError) Error() string {
	if errors.Is(e.Err, errReleased) {
		return fmt.Sprintf("%v: that of %q %v", ErrTimeout, e.LockID, e.Err)
	}
	how, who := "was lost", "somebody else may have held the mutex meanwhile"
	switch {
	case !e.Lost:
		how, who = "ran out", "nobody else held the mutex meanwhile"
	case e.unasked:
		how, who = "reached its deadline", "its row was not asked for, so "+who
	}
	if e.Late > 0 {
		how += fmt.Sprintf(", and the work was %v late", max(e.Late.Round(time.Microsecond), time.Microsecond))
	}
	text := fmt.Sprintf("%v: that of %q %s; %s", ErrTimeout, e.LockID, how, who)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Is makes errors.Is(err, ErrTimeout) true.
func (e *TimeoutError) Is(target error) bool { return target == ErrTimeout }

// Unwrap returns Err.
func (e *TimeoutError) Unwrap() error { return e.Err }

// failed words a database's error. If the caller's context is done, that is the outcome. If it is not, the error must not
// look as if it were.
func (m *Mutex) failed(ctx context.Context, verb string, err error) error {
	if m.id != "" {
		verb = fmt.Sprintf("%s %q", verb, m.id)
	}
	switch {
	case locktable.Done(ctx) != nil:
		return fmt.Errorf("dbmutex: %s: %w", verb, locktable.Done(ctx))
	case m.table.Missing(err):
		return fmt.Errorf("dbmutex: %s: table %q is missing: run AutoMigrate(&dbmutex.%s{}): %w",
			verb, m.key.table, m.model(), err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("dbmutex: %s: not done in time: %s", verb, err.Error())
	default:
		return fmt.Errorf("dbmutex: %s: %w", verb, err)
	}
}

// notReleased words the error of a release that had until limit.
func (m *Mutex) notReleased(ctx context.Context, limit time.Time, verb string, err error) error {
	if time.Until(limit) <= 0 && locktable.Done(ctx) == nil {
		verb = fmt.Sprintf("not done within %v (is the database busy, or a transaction open that guards the lease?): %s",
			locktable.Limit, verb)
	}
	return m.failed(ctx, verb, err)
}
