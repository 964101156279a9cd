package dbmutex

import (
	"cmp"
	"fmt"
	"iter"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// How many leases a page has.
const (
	defaultLeases = 100
	mostLeases    = 1000
)

// LeaseState says which leases a LeaseQuery wants, by the database's clock.
type LeaseState int

// The states of leases.
const (
	LeasesHeld    LeaseState = iota // those that hold their mutex, also those that never expire
	LeasesExpired                   // those that ran out, and whose row is still there
	LeasesAll                       // both
)

// LeaseOrder is the order of leases.
type LeaseOrder int

// The orders of leases. Leases that are equal in the order follow each other by their lock id.
const (
	// ByLockID is the order of the unique index on lock_id: by bytes, but on PostgreSQL by the collation of the column. It is
	// the only order in which a page costs little, however many leases there are.
	ByLockID LeaseOrder = iota
	// OldestFirst is by DBMutex.CreationTime. It reads the whole table.
	OldestFirst
	// EndingFirst is by DBMutex.ExpiresAt; what never expires comes last. It reads the whole table.
	EndingFirst
)

// LeaseQuery says which leases to list. The zero value wants the first 100 leases that are held, by lock id.
type LeaseQuery struct {
	State LeaseState // defaults to LeasesHeld

	// Prefix is what the lock id begins with, byte for byte; no character has a meaning of its own. "" = any.
	Prefix string
	// Once wants the table of Once: its runs, and the records of what is done as if they were leases. See LeaseInfo.Done.
	Once bool
	// Holder is contained in the holder's name, byte for byte. "" = any.
	Holder string

	// After and AfterSlot are the LockID and the Slot of the last lease of the page before. That lease need not be there any
	// more. They go with the order ByLockID alone. "" and 0 = from the beginning. An After without its AfterSlot begins behind
	// the mutex of that id, with the slots of the semaphore of that id: these would come again, page after page.
	After     string
	AfterSlot int
	// Order defaults to ByLockID.
	Order LeaseOrder
	// Limit is how many leases a page has at the most. 0 = 100; more than 1000 counts as 1000.
	Limit int
}

// LeaseInfo is a lease as the database saw it in the moment Now.
type LeaseInfo struct {
	DBMutex
	// Now is the database's clock, read once for all leases of a page.
	Now time.Time
	// Left is how long the lease lasts if it is not renewed, by the database's clock. If it is not positive, the lease ran out
	// that long ago. It is 0 for a lease that never expires.
	Left time.Duration
	// Slot is the lease's number if it is a semaphore's, from 1 on; 0 for a mutex. LockID is then the semaphore's id.
	Slot int
}

// Expires says whether the lease ends by itself.
func (i LeaseInfo) Expires() bool { return i.ExpiresAt != nil }

// Expired says whether the lease had run out.
func (i LeaseInfo) Expired() bool { return i.Expires() && i.Left <= 0 }

// HeldFor is how long ago the lease was acquired, by the database's clock, also if it has run out since. It is never
// negative.
func (i LeaseInfo) HeldFor() time.Duration { return max(i.Now.Sub(i.CreationTime), 0) }

// Resting says that no work runs under the lease: it has been released, and Settings.MinHold keeps the mutex until
// ExpiresAt.
func (i LeaseInfo) Resting() bool { return locktable.IsResting(i.LeaseID) }

// Done says that it is no lease but the record of a Once's success, which is kept until ExpiresAt. CreationTime is when that
// run began, Holder who ran it, and Token that of its lease.
func (i LeaseInfo) Done() bool { return i.LeaseID == locktable.DoneID }

// LeaseStats are figures of the whole table.
type LeaseStats struct {
	Now           time.Time  // the database's clock
	Held          int64      // leases that hold their mutex, also those that never expire
	Expired       int64      // leases that ran out, and whose row is still there
	WithoutExpiry int64      // those of Held that never expire
	Oldest        *LeaseInfo // the one of Held that was acquired first; nil = none is held
}

// Leases lists a page of leases, in one statement. It writes nothing and waits for nobody. On MySQL and MariaDB the row of a
// free mutex is no lease.
//
// In the order ByLockID, with or without a Prefix, a page costs as much as the rows between its first lease and its last.
// So a few leases that are held among a million that ran out may take seconds to find; Prune removes the latter. (On
// PostgreSQL the last page of a Prefix costs more if lock_id is not sorted by bytes; it is, where Migrate has made it.)
//
// The error is the handle's own, ErrNotRegistered, ErrDryRun, ErrInTransaction or ErrInvalidSettings, before any SQL; or it
// is the context's, or the database's.
func (db *DB) Leases(q LeaseQuery) ([]LeaseInfo, error) {
	m, err := db.unnamed(q.Once)
	if err != nil {
		return nil, err
	}
	page, err := q.page()
	if err != nil {
		return nil, err
	}
	return m.leases(page)
}

// AllLeases lists all leases of a query, page after page; q.Limit is how many one statement reads. No connection is kept
// between pages, so that the loop may use the mutexes that it sees. An error, as of Leases, ends the sequence: its
// LeaseInfo is zero.
//
// Each page is of its own moment. In the order ByLockID no mutex comes twice, and a lease that is there all the time comes.
// In the other orders every page reads the whole table, and a mutex may come again if its lease was renewed, or is another,
// since.
func (db *DB) AllLeases(q LeaseQuery) iter.Seq2[LeaseInfo, error] {
	return func(yield func(LeaseInfo, error) bool) {
		m, err := db.unnamed(q.Once)
		if err != nil {
			yield(LeaseInfo{}, err)
			return
		}
		page, err := q.page()
		if err != nil {
			yield(LeaseInfo{}, err)
			return
		}
		for {
			leases, err := m.leases(page)
			for _, lease := range leases {
				if !yield(lease, nil) {
					return
				}
			}
			switch {
			case err != nil:
				yield(LeaseInfo{}, err)
				return
			case len(leases) < page.Limit:
				return
			}
			last := leases[len(leases)-1]
			after := locktable.Row(last.DBMutex)
			after.LockID = locktable.SlotID(last.LockID, last.Slot)
			page.After = &after
		}
	}
}

// LeaseStats counts leases, in one statement that reads the whole table. The errors are those of Leases.
func (db *DB) LeaseStats() (LeaseStats, error) {
	m, err := db.unnamed(false)
	if err != nil {
		return LeaseStats{}, err
	}
	s, err := m.table.Stats(m.ctx)
	if err != nil {
		return LeaseStats{}, m.failed(m.ctx, "count the leases", err)
	}
	stats := LeaseStats{Now: s.Now, Held: s.Live, Expired: s.Expired, WithoutExpiry: s.WithoutExpiry}
	if s.Oldest != nil {
		oldest := leaseInfo(*s.Oldest)
		stats.Oldest = &oldest
	}
	return stats, nil
}

// Prune removes the rows of leases that ran out, by the database's clock, and says how many it removed. Nothing needs that
// but the table's size, and the speed of listing: a mutex whose lease ran out is free.
//
// It removes no lease that holds its mutex, also not one that is taken over in the same moment, and fencing tokens go on
// growing. A holder that is late, but that nobody has followed, learns that its lease was lost: nobody can tell any more. A
// row that a transaction pins with Lease.Guard stays. On SQLite such a transaction keeps all others from writing: Prune
// waits for it up to 5 seconds, and then fails.
//
// On MySQL and MariaDB it also removes the rows of free mutexes, and counts them; but for an hour not those that may record
// how a transaction ended, as all that Settings.MinHold has kept do, and never that of a mutex that had more than 16 million
// leases, whose tokens could fall.
//
// It prunes the table of Once as well, if that is there: records that are not to be kept any more, and runs that ran out.
// All is as above.
//
// It works in batches, each a transaction of its own, and looks at the context before each. The error is as that of Leases;
// what was removed until then stays removed.
func (db *DB) Prune() (removed int64, err error) {
	m, err := db.unnamed(false)
	if err != nil {
		return 0, err
	}
	if removed, err = m.table.Prune(m.ctx); err != nil {
		return removed, m.failed(m.ctx, "prune the leases", err)
	}
	once, err := db.unnamed(true)
	if err != nil { // the NamingStrategy has no table for it
		return removed, nil
	}
	records, err := once.table.PruneQuietly(once.ctx)
	if removed += records; err != nil && !once.table.Missing(err) {
		return removed, once.failed(once.ctx, "prune the records", err)
	}
	return removed, nil
}

// unnamed is no mutex: it has the table, for verbs that are about no mutex alone.
func (db *DB) unnamed(once bool) (*Mutex, error) {
	plugin, err := db.plugin()
	if err != nil {
		return nil, err
	}
	m := &Mutex{once: once}
	return m, m.bindTable(db, plugin)
}

// page checks the query.
func (q LeaseQuery) page() (page locktable.Query, err error) {
	states := map[LeaseState]locktable.Which{
		LeasesHeld: locktable.Live, LeasesExpired: locktable.Expired, LeasesAll: locktable.LiveAndExpired,
	}
	orders := map[LeaseOrder]locktable.Order{
		ByLockID: locktable.ByLockID, OldestFirst: locktable.ByCreation, EndingFirst: locktable.ByExpiry,
	}
	which, known := states[q.State]
	order, sorted := orders[q.Order]
	switch {
	case !known:
		err = fmt.Errorf("%w: there is no LeaseState %d", ErrInvalidSettings, q.State)
	case !sorted:
		err = fmt.Errorf("%w: there is no LeaseOrder %d", ErrInvalidSettings, q.Order)
	case q.After != "" && q.Order != ByLockID:
		err = fmt.Errorf("%w: After goes with the order ByLockID alone", ErrInvalidSettings)
	case q.AfterSlot < 0, q.AfterSlot > locktable.MaxSlots, q.AfterSlot != 0 && q.After == "":
		err = fmt.Errorf("%w: an AfterSlot of %d: it is a slot, and goes with After", ErrInvalidSettings, q.AfterSlot)
	case q.Limit < 0:
		err = fmt.Errorf("%w: a Limit of %d: it may not be negative", ErrInvalidSettings, q.Limit)
	}
	for name, text := range map[string]string{"Prefix": q.Prefix, "Holder": q.Holder, "After": q.After} {
		if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			err = fmt.Errorf("%w: %s must be valid UTF-8 without NUL characters", ErrInvalidSettings, name)
		}
		if name != "Holder" && strings.Contains(text, locktable.SlotMark) {
			err = fmt.Errorf("%w: %s has the character U+001F, which no id has", ErrInvalidSettings, name)
		}
	}
	page = locktable.Query{
		Which: which, Prefix: q.Prefix, Holder: q.Holder, Order: order, Limit: min(cmp.Or(q.Limit, defaultLeases), mostLeases),
	}
	if q.After != "" {
		page.After = &locktable.Row{LockID: locktable.SlotID(q.After, q.AfterSlot)}
	}
	return page, err
}

func (m *Mutex) leases(q locktable.Query) ([]LeaseInfo, error) {
	rows, err := m.table.List(m.ctx, q)
	if err != nil {
		return nil, m.failed(m.ctx, "list the leases", err)
	}
	leases := make([]LeaseInfo, len(rows))
	for i, row := range rows {
		leases[i] = leaseInfo(row)
	}
	return leases, nil
}

func leaseInfo(row locktable.Listed) LeaseInfo {
	info := LeaseInfo{DBMutex: DBMutex(row.Row), Now: row.Now, Left: row.Left}
	info.LockID, info.Slot = locktable.SplitSlot(row.LockID)
	return info
}
