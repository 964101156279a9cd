package dbmutex

import (
	"errors"
	"fmt"
	"time"
)

// The errors of this package, for errors.Is. A database's own failure comes as the driver's error, wrapped; a context
// that is done as context.Canceled or context.DeadlineExceeded. None of these three matches another.
var (
	// ErrNotAcquired says that somebody else holds the mutex; the work did not run. The error that matches it is a
	// *HeldError, which names the holder. It is django-db-mutex's DBMutexError.
	ErrNotAcquired = errors.New("dbmutex: the mutex is held by someone else")

	// ErrTimeout says that the lease ended before the work did: it ran out, or an operator released it, so another
	// holder may have overlapped with the work. It is django-db-mutex's DBMutexTimeoutError.
	ErrTimeout = errors.New("dbmutex: the lease ended before the work did")

	// ErrInTransaction says that the mutex was asked for on a handle that is in a transaction, where a rollback would
	// take the lock away and others could not see it before the commit. No SQL ran.
	ErrInTransaction = errors.New("dbmutex: the handle is in a transaction: use one that is not, or Mutex.Transaction")

	// ErrNotRegistered says that the plugin is missing. No SQL ran.
	ErrNotRegistered = errors.New("dbmutex: the plugin is not registered: call db.Use(dbmutex.New(dbmutex.DefaultSettings()))")

	// ErrDryRun says that the handle only builds SQL and runs none, so that nothing can be locked.
	ErrDryRun = errors.New("dbmutex: the handle is in DryRun mode")

	// ErrInvalidLockID says that an id is empty, longer than MaxLockIDLength characters, not valid UTF-8, or has a NUL
	// character in it. No SQL ran.
	ErrInvalidLockID = errors.New("dbmutex: invalid lock id")

	// ErrInvalidSettings says which setting or argument cannot be. No SQL ran.
	ErrInvalidSettings = errors.New("dbmutex: invalid settings")
)

var (
	errNilFunc = fmt.Errorf("%w: the function is nil", ErrInvalidSettings)
	errNoLease = fmt.Errorf("%w: the lease is not from Acquire", ErrInvalidSettings)
)

// HeldError is the error of a mutex that is held by someone else; it matches ErrNotAcquired. Where the lease changed
// hands while it was looked at, only LockID is set.
type HeldError struct {
	LockID    string     // the mutex
	Holder    string     // who holds it, as told by the holder's settings: host/pid unless set
	Since     time.Time  // when it was acquired, by the database's clock
	ExpiresAt *time.Time // when the lease ends unless it is renewed, by the database's clock; nil = never
}

// Error says who holds the mutex, since when and until when.
func (e *HeldError) Error() string {
	switch {
	case e.Since.IsZero():
		return fmt.Sprintf("dbmutex: %q is held by someone else", e.LockID)
	case e.ExpiresAt == nil:
		return fmt.Sprintf("dbmutex: %q is held by %s since %s and does not expire",
			e.LockID, e.Holder, e.Since.Format(time.RFC3339))
	default:
		return fmt.Sprintf("dbmutex: %q is held by %s since %s until %s",
			e.LockID, e.Holder, e.Since.Format(time.RFC3339), e.ExpiresAt.Format(time.RFC3339))
	}
}

// Is makes errors.Is(err, ErrNotAcquired) true.
func (e *HeldError) Is(target error) bool { return target == ErrNotAcquired }
