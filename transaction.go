package dbmutex

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// Transaction acquires the mutex, runs fn in a transaction, and commits only if the lease is still held. The same commit
// releases the lease. No clock, pause or network partition can make two such transactions of one mutex overlap.
//
// If the lease was lost, Transaction rolls back and returns ErrTimeout, with a *TimeoutError whose Lost is true. A lease
// that only ran out does not stop it: it commits and returns nil, however late, as nobody had the mutex meanwhile. (If fn
// fails after the deadline, its error is joined with ErrTimeout, as in Do.)
//
// fn must use tx alone for the database. tx has the handle's settings (gorm.DB.Set, Session), and none of its conditions.
// The transaction runs under the handle's context; LeaseFrom finds the lease in tx.Statement.Context.
//
// Other errors, and what they leave:
//   - fn did not run: the error is as Acquire's, or that of the transaction's beginning.
//   - fn returned an error: the transaction is rolled back, and that error returned.
//   - The release was not done within 5 seconds: the transaction is rolled back, and the error says so.
//   - The answer to the COMMIT was lost: another connection asks how the transaction ended. Only if that fails too, the
//     error says that it is unknown. (On MySQL and MariaDB also if somebody else has had the mutex since.)
//
// On MySQL and MariaDB two things can end a transaction within: a statement that commits implicitly, as all DDL does
// (https://dev.mysql.com/doc/refman/8.4/en/implicit-commit.html), and a deadlock whose error fn ignores. Transaction finds
// that out at its end. It then returns an error that matches gorm.ErrInvalidTransaction, but what was committed before
// stays. So it is on SQLite, where a statement that fails may roll all of it back
// (https://www.sqlite.org/lang_conflict.html), as INSERT OR ROLLBACK does.
//
// ErrInvalidSettings is the error for read-only options and with Settings.SkipHeld. Settings.Renew has an effect on
// PostgreSQL at READ COMMITTED, and on MySQL and MariaDB if opts ask for READ COMMITTED: at higher isolation levels a
// renewal would make the transaction fail. SQLite lets nobody else write meanwhile.
func (m *Mutex) Transaction(fn func(tx *gorm.DB) error, opts ...*sql.TxOptions) error {
	if err := m.checkTransaction(fn, opts); err != nil {
		return err
	}
	lease, err := m.obtain()
	if err != nil {
		return err
	}
	return lease.transact(fn, opts, nil)
}

func (m *Mutex) checkTransaction(fn func(tx *gorm.DB) error, opts []*sql.TxOptions) error {
	if err := m.checkLeasing("Transaction"); err != nil {
		return err
	}
	if fn == nil {
		return errNilFunc
	}
	for _, opt := range opts {
		if opt != nil && opt.ReadOnly {
			return fmt.Errorf("%w: Transaction writes to the lock's table, so it cannot be read-only", ErrInvalidSettings)
		}
	}
	return nil
}

// transact runs fn in a transaction whose commit ends the lease. The record, if any, is what it leaves.
func (l *Lease) transact(fn func(tx *gorm.DB) error, opts []*sql.TxOptions, record *locktable.Record) error {
	m := l.mutex
	if l.stopRenewing != nil {
		l.stopRenewing() // whether they go on depends on the transaction
		l.stopRenewing = nil
	}
	l.inTransaction = true
	ctx := l.valued()
	tx, giveBack, err := m.table.Begin(ctx, opts, m.settings.Wait)
	if err != nil {
		return l.finish(time.Now(), m.failed(ctx, "begin the transaction of", err))
	}
	returned := false
	defer func() {
		if !returned {
			giveBack(tx.Rollback().Error)
			l.releaseAndLog()
		}
	}()
	err = l.prepare(tx, opts, record != nil)
	if err == nil {
		err = fn(m.carry(tx))
	}
	ended := time.Now()
	returned = true
	if err != nil {
		giveBack(tx.Rollback().Error)
		return l.finish(ended, err)
	}
	return l.commit(tx, ended, record, giveBack)
}

// carry gives a transaction the handle's settings, as gorm.DB.Transaction does, but not its conditions.
func (m *Mutex) carry(tx *gorm.DB) *gorm.DB {
	tx = tx.Session(&gorm.Session{SkipHooks: m.caller.SkipHooks})
	m.caller.Settings.Range(func(key, value any) bool {
		tx = tx.Set(key.(string), value)
		return true
	})
	return tx.Session(&gorm.Session{})
}

// prepare makes a transaction ready that ends with commit.
func (l *Lease) prepare(tx *gorm.DB, opts []*sql.TxOptions, record bool) error {
	m := l.mutex
	work := locktable.Work{Renew: m.settings.Renew && m.settings.TTL != nil, Record: record, Wait: m.settings.Wait}
	if len(opts) > 0 && opts[0] != nil {
		work.Level = opts[0].Isolation
	}
	o, renewable := m.table.Prepare(tx, l.key, work)
	if renewable {
		l.startRenewing()
	}
	if o.Err != nil {
		return m.failed(tx.Statement.Context, "begin the transaction of", o.Err)
	}
	return l.lostAt(o, time.Now())
}

// commit ends a transaction whose work ended at a moment, and the lease with it. The record, if any, is what that leaves.
func (l *Lease) commit(tx *gorm.DB, ended time.Time, record *locktable.Record, giveBack func(error)) error {
	m := l.mutex
	ctx := tx.Statement.Context
	if l.stopRenewing != nil {
		l.stopRenewing() // a renewal would wait for the transaction
	}
	const verb = "commit the transaction of"
	limit := time.Now().Add(locktable.Limit)
	limited, cancel := context.WithDeadline(ctx, limit)
	defer cancel()
	var o locktable.Outcome
	var transaction string
	if record != nil {
		o, transaction = m.table.FinishOnce(limited, tx, l.key, *record)
	} else {
		o, transaction = m.table.Finish(limited, tx, l.key, l.minHold())
	}
	err := l.lostAt(o, ended)
	if o.Err != nil {
		err = m.notReleased(ctx, limit, verb, o.Err)
	}
	if err != nil {
		giveBack(tx.Rollback().Error)
		return l.finish(ended, err)
	}
	err = tx.Statement.ConnPool.(gorm.TxCommitter).Commit()
	giveBack(err)
	if err == nil {
		return l.committed(ended)
	}
	if !m.table.InDoubt(err) {
		return l.finish(ended, m.failed(ctx, verb, err))
	}
	switch fate, asked := m.table.Fate(l.parent, l.key, transaction); fate {
	case locktable.Committed:
		return l.committed(ended)
	case locktable.Aborted:
		return l.finish(ended, m.failed(ctx, verb, err))
	default:
		_ = l.releaseRow(time.Now()) // harmless if it committed
		err = errors.Join(fmt.Errorf("dbmutex: %s %q: whether it committed is unknown: %w", verb, m.id, err), asked)
		l.tellEnded(ended, OutcomeUnknown, err)
		return err
	}
}

// committed ends a lease that its transaction has released, after work that ended at a moment.
func (l *Lease) committed(ended time.Time) error {
	l.end(released, nil)
	l.tellGone()
	queues.released(l.mutex.key)
	outcome := OutcomeReleased
	if l.mutex.once {
		outcome = OutcomeRecorded
	}
	l.tellEnded(ended, outcome, nil)
	return nil
}
