package dbmutex

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"gorm.io/gorm"
)

// Transaction acquires the mutex, runs fn in a transaction, and commits only if the lease is still held, releasing it in
// the same commit. No clock, pause or network partition can make two such transactions of one mutex overlap. After a
// loss it rolls back and returns ErrTimeout. A deadline that passes does not abort it: what counts is whether somebody
// else, or an operator, has taken the lease away. (Work that fails past the deadline has its error joined with
// ErrTimeout, as in Do.)
//
// fn must use tx alone for the database. tx has the handle's settings (gorm.DB.Set, Session), and none of its conditions.
// The transaction runs under the handle's context; LeaseFrom finds the lease in tx.Statement.Context. Where fn returns an error the transaction is rolled back and the error returned. Where fn did not
// run, the error is as Acquire's, or that of the transaction's beginning. Where the release cannot be done within 5 seconds
// the transaction is rolled back, and the error says so. Where the answer to the COMMIT was lost, its
// outcome is asked for on another connection; only where that cannot be had either does the error say that it is unknown.
//
// ErrInvalidSettings is the error for read-only options and with Settings.SkipHeld. Settings.Renew has an effect on
// PostgreSQL at READ COMMITTED alone: at higher isolation levels a renewal would make the transaction fail, and SQLite
// lets nobody else write anyway.
func (m *Mutex) Transaction(fn func(tx *gorm.DB) error, opts ...*sql.TxOptions) error {
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
	lease, err := m.wait()
	if err != nil {
		return err
	}
	lease.inTransaction = true
	ctx := context.Context(&lease.work)
	tx := m.session(ctx).Begin(opts...)
	if tx.Error != nil {
		return lease.finish(m.failed(ctx, "begin the transaction of", tx.Error))
	}
	returned := false
	defer func() {
		if !returned {
			tx.Rollback()
			lease.releaseAndLog()
		}
	}()
	err = lease.prepare(tx)
	if err == nil {
		err = fn(m.carry(tx))
	}
	returned = true
	if err != nil {
		tx.Rollback()
		return lease.finish(err)
	}
	return lease.commit(tx)
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

// prepare readies a transaction that ends with commit.
func (l *Lease) prepare(tx *gorm.DB) error {
	m := l.mutex
	t := in(tx.Statement.Context, tx)
	found, err := m.dialect.begin(t, l.proof)
	if err == nil && found && m.settings.Renew && m.settings.TTL != nil {
		var renewable bool
		if renewable, err = m.dialect.renewable(t); renewable {
			l.keep()
		}
	}
	switch {
	case err != nil:
		return m.failed(tx.Statement.Context, "begin the transaction of", err)
	case !found:
		return m.lost(nil)
	}
	return nil
}

// commit ends a transaction whose work is done, and the lease with it.
func (l *Lease) commit(tx *gorm.DB) error {
	m := l.mutex
	ctx := tx.Statement.Context
	if l.stopKeep != nil {
		l.stopKeep() // a renewal would wait for the transaction
	}
	const verb = "commit the transaction of"
	limit := time.Now().Add(settleLimit)
	limited, cancel := context.WithDeadline(ctx, limit)
	defer cancel()
	found, transaction, err := m.dialect.releaseIn(in(limited, tx), l.proof, l.minHold())
	if err != nil || !found {
		tx.Rollback()
		if err == nil {
			err = m.lost(nil)
		} else {
			err = m.notReleased(ctx, limit, verb, err)
		}
		return l.finish(err)
	}
	err = tx.Statement.ConnPool.(gorm.TxCommitter).Commit()
	if err == nil {
		return l.committed()
	}
	if transaction == "" || m.dialect.classify(err) != unknown {
		return l.finish(m.failed(ctx, verb, err))
	}
	switch f, asked := m.fate(l.parent, transaction); f {
	case fateCommitted:
		return l.committed()
	case fateAborted:
		return l.finish(m.failed(ctx, verb, err))
	default:
		_ = l.Release() // harmless where it committed
		return errors.Join(fmt.Errorf("dbmutex: %s %q: whether it committed is unknown: %w", verb, m.id, err), asked)
	}
}

func (l *Lease) committed() error {
	l.become(released)
	l.tellGone()
	queues.released(l.mutex.queue)
	return nil
}
