package dbmutex

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

// dialect holds the statements of one database over one table. Apart from this file and the two that implement it,
// nothing in this package knows databases apart.
type dialect interface {
	// acquire takes the mutex where it is free, or expired, or held by this very lease, and else says who holds it.
	acquire(t target, r request) (answer, error)
	// renew, release and guard say whether the row was there.
	renew(t target, p proof, ttl *time.Duration) (bool, error)
	release(t target, r release) (bool, error)
	// releaseIn is release as a part of a transaction, which it names so that fate can tell how that ended; "" where an
	// error of its COMMIT always means that it was rolled back.
	releaseIn(tx target, p proof, minHold time.Duration) (found bool, transaction string, err error)
	guard(tx target, p proof) (bool, error)
	fate(t target, transaction string) (fate, error)
	// begin prepares a transaction that ends with releaseIn; false where the row has gone.
	begin(tx target, p proof) (bool, error)
	// renewable says whether a lease can be renewed while such a transaction is open, without making it fail.
	renewable(tx target) (bool, error)
	// discard removes a lease that may have been made. Until it is settled the lease may be in the making still.
	discard(t target, p proof) (settled bool, err error)
	holder(t target, lockID string) (*DBMutex, error)
	// leaseID is that of the row that is there, live or expired.
	leaseID(t target, lockID string) (leaseID string, found bool, err error)
	// clean rolls back a transaction that somebody left open on the target's connection, and says whether there was one. On
	// a pool of somebody else's making that is the connection which the pool gives next, where the dialect can do that.
	clean(t target) (left bool, err error)
	// classify tells an error's consequences, and missing whether it means that there is no such table.
	classify(err error) failure
	missing(err error) bool
	// migrate makes the table, from many processes at once.
	migrate(t target) error
}

// notifying is a dialect whose releases other processes can hear of, on notifyChannel. Others need the gaps between leases,
// so that a mutex is handed on here alone.
type notifying interface {
	// handOn is a release and the next lease's acquire in one, with its token; 0 where the row is not the lease's, nor the
	// next one's while an earlier try may have made it so.
	handOn(t target, p proof, next request, again bool) (token int64, err error)
	// reserve is a release that keeps the mutex for a waiter of another process for a while.
	reserve(t target, p proof, to turn, async bool) (found bool, err error)
	// tell sends a message, and leaves a mark at the mutex's row that shows in release.knocked.
	tell(t target, lockID, message string) error
	// withdraw sends a message and removes what is kept for a waiter.
	withdraw(t target, p proof, message string) error
	// tableID tells tables apart, for all processes; 0 while it is not known.
	tableID() uint32
}

// proof is what owns a row.
type proof struct {
	lockID, leaseID string
	boxed           [2]any // both, as a conversion for every statement would allocate
}

func newProof(lockID, leaseID string) proof { return proof{lockID, leaseID, [2]any{lockID, leaseID}} }

// args are a statement's: the lock_id, the lease_id and others. Each statement gets a slice of its own, as a logger's
// ParamsFilter may write to it.
func (p proof) args(others ...any) []any {
	args := make([]any, 2, 2+len(others))
	copy(args, p.boxed[:])
	return append(args, others...)
}

// request is a lease that is wanted.
type request struct {
	proof
	holder string
	ttl    *time.Duration
	kept   bool   // the mutex is kept for it already, as far as is known
	ticket string // what it is kept under; "" for one that nobody can keep it for
}

// release is a lease that is given back.
type release struct {
	proof
	minHold time.Duration // > 0: leave the row, ownerless, until this long after its acquisition
	async   bool          // a crash of the server may undo it
	notify  bool          // tell the waiters of other processes
	message string        // and this, if it is not ""
	knocked *bool         // if it is not nil: set where a waiter of another process has told of itself
}

// answer is the outcome of an acquire: a token, or the lease in the way.
type answer struct {
	token int64         // 0: not acquired
	held  *DBMutex      // nil: the row changed while it was looked at
	left  time.Duration // of held, by the database's clock
	ended bool          // held has expired
	start time.Time     // when it was asked for, by this process's clock; set by the caller
}

// fate is how a transaction ended.
type fate int

const (
	fateUnknown fate = iota
	fateCommitted
	fateAborted
)

// notifyChannel is where a release tells the waiters of other processes; the payload is the lock id. turnChannel is for
// messages.
const (
	notifyChannel = "dbmutex"
	turnChannel   = "dbmutex turns"
)

// looks is how often an acquire looks at a row that changes under it, or that somebody pins, before it calls it held.
const looks = 3

// newDialect returns the statements for a table, whose name is quoted.
func newDialect(name, table string) (dialect, error) {
	switch name {
	case "postgres":
		return newPostgres(table), nil
	case "sqlite":
		return newSQLite(table), nil
	default:
		return nil, fmt.Errorf("%w: the database %q is not supported: use PostgreSQL or SQLite", ErrInvalidSettings, name)
	}
}

// unsentError is the error of a statement that found no connection: it cannot have had an effect.
type unsentError struct{ error }

func (e *unsentError) Unwrap() error { return e.error }

func isUnsent(err error) bool {
	var unsent *unsentError
	return errors.As(err, &unsent)
}

// isPoolClosed knows an error of database/sql that has no name.
func isPoolClosed(err error) bool { return strings.Contains(err.Error(), "sql: database is closed") }

// roundUp counts the units of a duration, the last of which may not be whole.
func roundUp(d, unit time.Duration) int64 { return int64((d-1)/unit) + 1 }

// queryHolder reads the row of a lease that is live.
func queryHolder(t target, query, lockID string) (*DBMutex, error) {
	row := &DBMutex{}
	var expires sql.NullTime
	found, err := t.queryOne(query, []any{lockID},
		&row.ID, &row.LockID, &row.CreationTime, &expires, &row.Holder, &row.LeaseID)
	if err != nil || !found {
		return nil, err
	}
	if expires.Valid {
		row.ExpiresAt = &expires.Time
	}
	return row, nil
}

// failure is what an error tells of the statement that gave it.
type failure int

const (
	refused     failure = iota // it had no effect, and trying again is of no use
	conflicting                // it had no effect; it may work at once
	cancelled                  // it had no effect; the database's own time limit ended it
	unreachable                // it was not sent
	unknown                    // it may have had its effect
)
