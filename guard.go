package dbmutex

import (
	"fmt"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// Guard fails the transaction if the lease was lost. Else it pins the lease until the transaction ends: nobody takes it over
// meanwhile, even past its deadline. If it fails, it rolls the transaction back, so that nothing is committed even if its
// error is ignored. tx must be on the lock's own database.
//
// Call it on the transaction itself. In a nested one it pins the lease only until that one is over, if it rolls back to its
// savepoint.
//
// On MySQL and MariaDB it writes to the row, so renewals wait for the transaction, too. Above READ COMMITTED the database
// may refuse it if a renewal came since the transaction began (error 1020, as on PostgreSQL a serialization failure).
//
// The error is ErrTimeout if the lease was lost, gorm.ErrInvalidTransaction if tx is not a transaction, tx's own, or the
// database's. Keep such transactions short: Release and ForceRelease wait for them.
func (l *Lease) Guard(tx *gorm.DB) error {
	return l.within(tx, "guard", func() locktable.Outcome { return l.mutex.table.Guard(tx, l.key) })
}

// ReleaseIn makes the release a part of a transaction: it commits, or rolls back, with it. Others get the mutex with the
// commit. Call Release afterwards (Do does): it has nothing left to do, or releases if the transaction rolled back.
// ReleaseIn fails as Guard does. In Mutex.Transaction, which releases by itself, it gives ErrInvalidSettings.
//
// The lease's context goes on after the commit until Release or, as its row is gone, a renewal. A transaction under that
// context cannot commit after the deadline: begin it on a handle with another context if it should.
//
// Call it on the transaction itself, not in a nested one: that may roll back to its savepoint while the whole commits.
// On SQLite, which keeps no record of transactions, a lease that is gone after ReleaseIn counts as released by it. MySQL and
// MariaDB keep the record in the row, until somebody else has the mutex. A Release that comes later than that, and after the
// deadline, calls the lease lost, as nobody can say more.
func (l *Lease) ReleaseIn(tx *gorm.DB) error {
	if l != nil && l.inTransaction {
		return fmt.Errorf("%w: Mutex.Transaction releases its lease itself", ErrInvalidSettings)
	}
	return l.within(tx, "release", func() locktable.Outcome {
		o, transaction := l.mutex.table.ReleaseIn(tx.Statement.Context, tx, l.key, l.minHold())
		if o.Row == locktable.RowFound {
			l.mu.Lock()
			l.transaction = &transaction
			l.mu.Unlock()
		}
		return o
	})
}

// within runs a statement that must find the lease's row in a transaction of the caller's.
func (l *Lease) within(tx *gorm.DB, verb string, statement func() locktable.Outcome) error {
	if l == nil || l.mutex == nil {
		return errNoLease
	}
	switch {
	case tx == nil || tx.Config == nil || tx.Statement == nil:
		return fmt.Errorf("dbmutex: %s %q: %w", verb, l.mutex.id, gorm.ErrInvalidTransaction)
	case tx.Error != nil:
		return tx.Error
	case tx.DryRun:
		return ErrDryRun
	case !locktable.InTransaction(tx):
		return fmt.Errorf("dbmutex: %s %q: %w", verb, l.mutex.id, gorm.ErrInvalidTransaction)
	}
	var err error
	if !l.usable() {
		err = l.over()
	} else {
		o := statement()
		if err = l.lostAt(o, time.Now()); o.Row == locktable.RowNotAsked {
			err = l.mutex.failed(tx.Statement.Context, verb, o.Err)
		}
	}
	if err != nil {
		_ = tx.AddError(err)
		_ = tx.Statement.ConnPool.(gorm.TxCommitter).Rollback()
	}
	return err
}

// lostAt is the error of a statement in a transaction that did not find the lease's row, at a moment. Nobody asks why the
// row is missing: that may take another connection, while the transaction has the only one.
func (l *Lease) lostAt(o locktable.Outcome, moment time.Time) error {
	if o.Row != locktable.RowMissing {
		return nil
	}
	return l.timeout(true, l.late(moment), o.Err)
}
