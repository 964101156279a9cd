package locktable

import (
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"

	"gorm.io/gorm"
)

// dialect has the statements of one database on one table. A new database is a file that implements it, and a line in
// newDialect. Nothing else in the module knows databases apart, but for the tests' own testdb.
//
// A statement runs on an executor: a connection of the pool, or a transaction of a caller's, named tx here.
type dialect interface {
	// inspect looks whether the table can be used, and keeps what the statements need to know of it. Its error says what to
	// change.
	inspect(on executor) error

	// acquire takes the mutex if it is free, if its lease has run out, or if the row is the request's own already. It says
	// whose the mutex is, or whose lease it took over. It waits for nobody's transaction.
	acquire(on executor, r Request) (Answer, error)

	slotted

	// renew, release and guard say whether the row was there.
	renew(on executor, k Key, ttl *time.Duration) (found bool, err error)
	release(on executor, r Release) (found bool, err error)
	guard(tx executor, k Key) (found bool, err error)

	// begin prepares a transaction that ends with releaseIn. If renewals are wanted, it says whether the lease can be renewed
	// meanwhile without making the transaction fail.
	begin(tx executor, k Key, w Work) (found, renewable bool, err error)
	// releaseIn is release as a part of a transaction, which it names for recording.fate.
	releaseIn(tx executor, k Key, minHold time.Duration) (found bool, transaction string, err error)

	// row reads the row, and says whether its lease is live. It is nil if there is none.
	row(on executor, lockID string) (row *Row, live bool, err error)

	// list lists a page of rows, and count counts them all. They wait for nobody. A free row is none.
	list(on executor, q Query) ([]Listed, error)
	count(on executor) (Stats, error)
	// prune removes the next rows that Table.Prune is for, and says where to go on. It passes rows that others have locked, if
	// the database can.
	prune(on executor, after place) (next place, removed int64, err error)

	// token is the fencing token of a row's lease, or 0 if the row does not have it.
	token(row *Row) int64

	// clean rolls back a transaction that somebody left open on the executor's connection, and says whether there was one.
	// A pool that is no *sql.DB has no connection to look at: there it looks at the one that the pool gives next, if it can.
	// restore undoes what clean has changed of the connection, once the connection is not needed any more.
	clean(on executor) (left bool, restore func(), err error)

	// classify says what an error means for the statement that gave it.
	classify(err error) failure

	// migrate makes the model's table, unless there is one that can be used. Many processes may do so at once.
	migrate(on executor, model any) error

	onces
}

// notifying is a dialect whose releases other processes can hear of. Only then can a mutex be handed on: waiters that do
// not hear of a release need the gaps between two leases.
type notifying interface {
	// handOn is a release and the next lease's acquire in one statement. It returns the next lease's token, or 0 if the row is
	// neither the lease's nor, after a try without an answer (again), the next one's.
	handOn(on executor, k Key, next Request, again bool) (token int64, err error)
	// reserve is a release that keeps the mutex for a waiter of another process.
	reserve(on executor, k Key, to Reservation, async bool) (found bool, err error)
	// releaseUnmarked is release, but finds no row that has the mark of tell.
	releaseUnmarked(on executor, r Release) (found bool, err error)
	// tell sends a message, and leaves a mark at the mutex's row.
	tell(on executor, lockID, message string) error
	// withdraw sends a message, and removes the row that keeps the mutex for a waiter.
	withdraw(on executor, k Key, message string) error
	// id tells tables apart, and is the same in all processes. It is 0 while it is not known.
	id() uint32
}

// remote is a dialect whose database runs outside of this process. A statement can go on there, and a COMMIT be done,
// although no answer arrives; and a request can arrive late.
type remote interface {
	// rename gives a lease another id.
	rename(on executor, k Key, leaseID string) (found bool, err error)
}

// fragile is a dialect whose transactions a statement within them can end.
type fragile interface {
	// mark marks a transaction for a statement, as begin does for the whole. unbroken removes that mark, and is an error if
	// the transaction has ended since, or was none.
	mark(tx executor) error
	unbroken(tx executor, whole bool) error
}

// recording is a dialect whose database can be asked how a transaction ended.
type recording interface {
	// The key is that of the lease which the transaction was to end.
	fate(on executor, k Key, transaction string) (Fate, error)
}

// The channels of a database that notifies.
const (
	ReleaseChannel = "dbmutex"       // a mutex was released; the payload is the table's id, a space, and the mutex's id
	MessageChannel = "dbmutex turns" // what processes tell each other of their waiters
)

// newDialect returns the statements for a table, whose name is also quoted.
func newDialect(database, name, quoted string) (dialect, error) {
	switch database {
	case "postgres":
		return newPostgres(quoted), nil
	case "sqlite":
		return newSQLite(name, quoted), nil
	case "mysql":
		return newMySQL(name, quoted), nil
	default:
		return nil, fmt.Errorf("the database %q is not supported: use PostgreSQL, MySQL (or MariaDB) or SQLite", database)
	}
}

// Shape gives the model's columns the types that the handle's database needs, where GORM would choose others. It runs no
// SQL.
func Shape(db *gorm.DB, model any) error {
	if db == nil || db.Config == nil || db.Dialector == nil {
		return nil
	}
	switch db.Name() {
	case "postgres":
		return shapePostgres(db, model)
	case "mysql":
		return shapeMySQL(db, model)
	}
	return nil
}

// Row is a row of the table.
type Row struct {
	ID           int64
	LockID       string
	CreationTime time.Time
	ExpiresAt    *time.Time // nil = never
	Holder       string
	LeaseID      string
	Token        int64 // 0 where the column is not used
}

// leftMark begins the lease_id of a row that MinHold leaves behind, which is nobody's.
const leftMark = "-"

// Key owns a row: it is the lease's id with the mutex's.
type Key struct {
	LockID, LeaseID string
	RowID           int64  // the row's id, from Answer.RowID; 0 = not known, or not needed
	Slots           int    // > 0: LockID is a semaphore's, and the row is that of one of so many slots: see Key.At
	boxed           [2]any // both ids, as a conversion for every statement would allocate
}

// NewKey makes a Key.
func NewKey(lockID, leaseID string) Key { return Key{lockID, leaseID, 0, 0, [2]any{lockID, leaseID}} }

// Renamed is the key of the same row under another lease's id.
func (k Key) Renamed(leaseID string) Key {
	renamed := NewKey(k.LockID, leaseID)
	renamed.RowID = k.RowID
	return renamed
}

// args are a statement's arguments: the lock_id, the lease_id and others. Each statement gets a slice of its own, as a
// logger's ParamsFilter may write to it.
func (k Key) args(others ...any) []any {
	args := make([]any, 2, 2+len(others))
	copy(args, k.boxed[:])
	return append(args, others...)
}

// Request asks for a lease.
type Request struct {
	Key
	Holder string
	TTL    *time.Duration // nil = never expires
	Ticket string         // the Reservation.Ticket that the mutex may be kept under; "" = none
	Kept   bool           // the mutex is kept for it already, as far as is known
}

// owns says whether a lease that an acquire found does not keep the request out: it has ended, is the request's own, or
// keeps the mutex for it.
func (r Request) owns(a Answer) bool {
	return a.Held.ExpiresAt != nil && a.Left <= 0 || a.Held.LeaseID == r.LeaseID || a.Held.LeaseID == r.Ticket
}

// past is the lease that has run out, if the row that a request takes over is one's: it may also be the request's own
// already, free, a record, or what MinHold has left.
func (r Request) past(row *Row) *Row {
	none := []string{"", DoneID, r.LeaseID, r.Ticket}
	if row == nil || strings.HasPrefix(row.LeaseID, leftMark) || slices.Contains(none, row.LeaseID) {
		return nil
	}
	return row
}

// Answer is the outcome of an acquire: a token, or the lease in the way.
type Answer struct {
	Token int64         // 0: not acquired
	RowID int64         // for the Key, if the dialect needs it
	Held  *Row          // nil: the row changed while it was looked at
	Left  time.Duration // of Held, by the database's clock
	Start time.Time     // when the statement was sent, by this process's clock
	Doubt bool          // the request may have an effect later: see Table.DiscardLater
	Busy  bool          // others kept the request from having an effect, and may let it have one later
	Ended bool          // of Held: it holds the mutex no more, but the mutex could not be taken over
	Past  *Row          // with Token: the lease that had run out, and whose row is the new lease's; nil if there was none

	Slot   int   // with Token: which of the request's slots it is
	Newest int64 // of a semaphore that is full: it is another number when one of its leases is another, and not 0
}

// Release says how a lease ends.
type Release struct {
	Key
	MinHold time.Duration // > 0: the row stays, without an owner, until this long after its acquisition
	Async   bool          // a crash of the server may undo it
	Notify  bool          // tell the waiters of other processes (with Async)
	Message string        // and send this, if it is not "" (with Notify)
	Unaware bool          // look for the mark of a waiter that has sent a message (with Notify)
}

// together says whether it may be combined with others, and how.
func (r Release) together() (how together, combines bool) {
	_, slot := SplitSlot(r.LockID)
	switch {
	case slot > 0, r.MinHold > 0, r.Message != "", !r.Async:
		return 0, false
	case r.Unaware:
		return unmarkedTogether, r.Notify
	case r.Notify:
		return notifyTogether, true
	}
	return releaseTogether, true
}

// Work is what a transaction of Begin is for.
type Work struct {
	Renew  bool               // the lease is to be renewed meanwhile
	Record bool               // it ends with a record
	Wait   time.Duration      // how long to wait if other writers lock the transaction out, but at least Limit; < 0 = forever
	Level  sql.IsolationLevel // that the transaction was begun with
}

// Reservation keeps a mutex for a waiter of another process.
type Reservation struct {
	Ticket  string        // stands in the place of a lease's id, and is none
	Holder  string        // the waiter's
	For     time.Duration // how long the mutex is kept
	Message string        // sent with it
}

// Fate is how a transaction ended.
type Fate int

// A transaction's fates.
const (
	NotRecorded Fate = iota // the database keeps no record
	Unknown                 // there is none any more, or it could not be asked for
	Committed
	Aborted
)

// LeaseIDLength is how many characters a lease's id, or a ticket, has.
const LeaseIDLength = 26

// unusable is the error of inspect.
func unusable(table, problem string) error {
	return &refusedError{fmt.Errorf("table %s cannot be used: %s", table, problem)}
}

// notMended is the error of a table that AutoMigrate cannot change so that it can be used.
func notMended(problem, err error) error {
	return fmt.Errorf("%w (AutoMigrate did not mend it: %w)", problem, err)
}

// maxLooks is how often an acquire looks at a row that changes meanwhile, or that somebody pins, before it calls it held.
const maxLooks = 3

// microseconds is a duration in the unit of a database's clock, rounded up, or NULL.
func microseconds(d *time.Duration) any {
	if d == nil {
		return nil
	}
	return roundUp(*d, time.Microsecond)
}

// roundUp counts the units of a duration, the last of which may not be whole.
func roundUp(d, unit time.Duration) int64 { return int64((d-1)/unit) + 1 }
