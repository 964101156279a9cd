package dbmutex

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"gorm.io/gorm"
)

// Transaction acquires the mutex, runs fn in a transaction, and commits only if the lease is still held, releasing it in the
// same commit. No clock, pause or network partition can make two such transactions of one mutex overlap. Where the lease was
// lost, it rolls back and returns ErrTimeout, with a *TimeoutError whose Lost is true. A lease that only ran out does not
// abort it: it commits and returns nil, however late, as nobody had the mutex meanwhile. (Where fn fails after the deadline,
// its error is joined with ErrTimeout, as in Do.)
//
// fn must use tx alone for the database. tx has the handle's settings (gorm.DB.Set, Session), and none of its conditions.
// The transaction runs under the handle's context; LeaseFrom finds the lease in tx.Statement.Context. Where fn returns an
// error the transaction is rolled back and the error returned. Where fn did not run, the error is as Acquire's, or that of
// the transaction's beginning. Where the release cannot be done within 5 seconds the transaction is rolled back, and the
// error says so. Where the answer to the COMMIT was lost, its outcome is asked for on another connection; only where that
// cannot be had either does the error say that it is unknown.
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
	tx, giveBack, err := m.begin(ctx, opts)
	if err != nil {
		return lease.finish(time.Now(), m.failed(ctx, "begin the transaction of", err))
	}
	returned := false
	defer func() {
		if !returned {
			giveBack(tx.Rollback().Error)
			lease.releaseAndLog()
		}
	}()
	err = lease.prepare(tx)
	if err == nil {
		err = fn(m.carry(tx))
	}
	ended := time.Now()
	returned = true
	if err != nil {
		giveBack(tx.Rollback().Error)
		return lease.finish(ended, err)
	}
	return lease.commit(tx, ended, giveBack)
}

// begin begins a transaction on a connection that is held until giveBack, which takes the error of the transaction's end:
// not every driver ends a transaction whose COMMIT fails.
func (m *Mutex) begin(ctx context.Context, opts []*sql.TxOptions) (tx *gorm.DB, giveBack func(error), err error) {
	for range 3 { // as database/sql does by itself where no connection is held
		if tx, giveBack, err = m.beginOnce(ctx, opts); !errors.Is(err, driver.ErrBadConn) {
			break
		}
	}
	return tx, giveBack, err
}

func (m *Mutex) beginOnce(ctx context.Context, opts []*sql.TxOptions) (*gorm.DB, func(error), error) {
	t, release, err := m.hold(ctx)
	if err != nil {
		return nil, nil, err
	}
	prepared, _ := m.config.ConnPool.(*gorm.PreparedStmtDB)
	if prepared != nil {
		if _, plain := prepared.ConnPool.(*sql.DB); !plain { // its transactions are of a kind of their own
			release()
			release, t.pool = func() {}, prepared
		}
	}
	giveBack := func(err error) {
		defer release()
		if err != nil {
			limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleLimit)
			defer cancel()
			_, _ = m.dialect.clean(t.under(limited))
		}
	}
	tx := t.session().Begin(opts...)
	if tx.Error != nil {
		giveBack(tx.Error)
		return nil, nil, tx.Error
	}
	if plain, ok := tx.Statement.ConnPool.(*sql.Tx); ok && prepared != nil {
		tx.Statement.ConnPool = &gorm.PreparedStmtTX{PreparedStmtDB: prepared, Tx: plain}
	}
	return tx, giveBack, nil
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
		return l.timeout(true, l.late(time.Now()), nil)
	}
	return nil
}

// commit ends a transaction whose work ended at a moment, and the lease with it.
func (l *Lease) commit(tx *gorm.DB, ended time.Time, giveBack func(error)) error {
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
		giveBack(tx.Rollback().Error)
		if err == nil {
			err = l.timeout(true, l.late(ended), nil)
		} else {
			err = m.notReleased(ctx, limit, verb, err)
		}
		return l.finish(ended, err)
	}
	err = tx.Statement.ConnPool.(gorm.TxCommitter).Commit()
	giveBack(err)
	if err == nil {
		return l.committed()
	}
	if transaction == "" || m.dialect.classify(err) != unknown {
		return l.finish(ended, m.failed(ctx, verb, err))
	}
	switch f, asked := m.fate(l.parent, transaction); f {
	case fateCommitted:
		return l.committed()
	case fateAborted:
		return l.finish(ended, m.failed(ctx, verb, err))
	default:
		_ = l.Release() // harmless where it committed
		return errors.Join(fmt.Errorf("dbmutex: %s %q: whether it committed is unknown: %w", verb, m.id, err), asked)
	}
}

func (l *Lease) committed() error {
	l.become(released, nil)
	l.tellGone()
	queues.released(l.mutex.queue)
	return nil
}
