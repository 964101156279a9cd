//go:build linux

package torture

import (
	"database/sql"
	"errors"
	"strings"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
)

// What clients do to the database under a mutex: the counters that the judge compares.

// counter is what a mutex protects.
type counter struct {
	LockID string `gorm:"primaryKey"`
	N      int
}

// run is a transaction that committed.
type run struct {
	Attempt string `gorm:"primaryKey"`
	LockID  string
}

// count raises the counter without any lock of its own.
func (u *usage) count(tx *gorm.DB, attempt string) error {
	var n int
	if err := tx.Raw(`SELECT n FROM counters WHERE lock_id = ?`, u.id).Scan(&n).Error; err != nil {
		return err
	}
	u.linger()
	if err := tx.Exec(`UPDATE counters SET n = ? WHERE lock_id = ?`, n+1, u.id).Error; err != nil {
		return err
	}
	return tx.Create(&run{Attempt: attempt, LockID: u.id}).Error
}

// linger lets time pass in a transaction.
func (u *usage) linger() {
	if u.maybe(0.7) {
		time.Sleep(u.upTo(25 * time.Millisecond))
	} else if u.maybe(0.1) {
		time.Sleep(u.upTo(2 * u.ttl))
	}
}

func (u *usage) isolation() []*sql.TxOptions {
	if u.Isolates && u.maybe(0.3) {
		levels := []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead}
		return []*sql.TxOptions{{Isolation: levels[u.rand.IntN(len(levels))]}}
	}
	return nil
}

func (u *usage) transaction() {
	whole, o := u.begin(transaction), u.begin(acquire)
	var workErr error
	var lease *dbmutex.Lease
	bad := u.Habits.Panic && u.maybe(0.05)
	err := u.apart(bad, func() error {
		return u.lock.Transaction(func(tx *gorm.DB) error {
			lease, _ = dbmutex.LeaseFrom(tx.Statement.Context)
			u.acquired(o, lease)
			whole.Mutex = u.id
			u.promise(lease)
			workErr = u.count(tx, whole.Attempt)
			if workErr == nil && !bad && u.maybe(0.1) {
				workErr = errWork
			}
			o = u.begin(release)
			o.Attempt = whole.Attempt
			if bad {
				panic(errWork)
			}
			return workErr
		}, u.isolation()...)
	})
	if lease == nil {
		u.refused(o, err)
		whole.Outcome = aborted
	} else {
		if bad && workErr != nil { // only the release's error is known
			workErr = nil
		}
		u.released(o, lease, err, workErr)
		switch {
		case bad:
			whole.Outcome = aborted
		case err == nil:
			whole.Outcome = ok
		case !strings.Contains(err.Error(), "whether it committed is unknown"):
			whole.Outcome = aborted
		}
	}
	u.returned(whole)
	whole.Error = text(err)
	u.write(whole)
}

// guarded counts in transactions of the client's own, the last of which may release.
func (u *usage) guarded() {
	lease := u.acquire()
	if lease == nil {
		return
	}
	if u.maybe(0.3) {
		u.hold(lease)
	}
	u.inGuard(lease)
	if !u.retired && !u.unsure && u.maybe(0.5) {
		u.inGuard(lease)
	}
	if u.maybe(0.2) {
		time.Sleep(u.upTo(20 * time.Millisecond))
	}
	u.release(lease)
}

func (u *usage) inGuard(lease *dbmutex.Lease) {
	whole := u.begin(transaction)
	var last *operation
	var workErr error
	err := u.db.WithContext(u.ctx).Gorm.Transaction(func(tx *gorm.DB) error {
		workErr = u.guardAndCount(tx, lease, whole.Attempt)
		if workErr != nil {
			return workErr
		}
		if u.maybe(0.6) {
			last = u.begin(pinned)
			return nil
		}
		u.retired = true
		last = u.begin(release)
		workErr = lease.ReleaseIn(tx)
		return workErr
	}, u.isolation()...)
	u.returned(whole)
	switch {
	case err == nil:
		whole.Outcome = ok
	case workErr != nil: // it never came to the commit
		whole.Outcome = aborted
	}
	whole.Error = text(err)
	u.unsure = whole.Outcome == unknown
	if last != nil {
		last.Outcome, last.Error, last.Return, last.Lost = whole.Outcome, whole.Error, whole.Return, whole.Lost
		if errors.Is(workErr, dbmutex.ErrTimeout) {
			last.Outcome = lost
		}
		u.write(last)
	}
	u.write(whole)
}

func (u *usage) guardAndCount(tx *gorm.DB, lease *dbmutex.Lease, attempt string) error {
	o := u.begin(guard)
	err := lease.Guard(tx)
	u.returned(o)
	o.Error = text(err)
	switch {
	case err == nil:
		o.Outcome = ok
	case errors.Is(err, dbmutex.ErrTimeout):
		o.Outcome = lost
	}
	u.write(o)
	if err != nil {
		return err
	}
	if err := u.count(tx, attempt); err != nil {
		return err
	}
	if u.maybe(0.1) {
		return errWork
	}
	return nil
}
