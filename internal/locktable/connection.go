package locktable

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"gorm.io/gorm"
)

// tryOnce runs try on a held connection: an error then tells whether there was a connection, and database/sql repeats no
// statement by itself.
func (t Table) tryOnce(ctx context.Context, try func(executor) error) error {
	on, giveBack, err := t.hold(ctx)
	if err != nil {
		return err
	}
	defer giveBack()
	return try(on)
}

// hold takes a connection of the pool, outside of any transaction. A pool that is not database/sql's has none to hold.
func (t Table) hold(ctx context.Context) (on executor, giveBack func(), err error) {
	on = executor{ctx: ctx, config: t.config, pool: t.config.ConnPool, main: true, hush: conflicts, judge: t.dialect}
	giveBack = func() {}
	switch on.pool.(type) {
	case *sql.DB, *gorm.PreparedStmtDB:
		if pool, err := sqlDB(on.pool); err == nil {
			conn, err := pool.Conn(ctx)
			switch {
			case err == nil:
			case err == context.DeadlineExceeded && pool.Stats().MaxOpenConnections > 0: //nolint:errorlint // the pool's own
				return on, nil, &unsentError{error: fmt.Errorf("no connection of the pool became free: %w", err)}
			default:
				return on, nil, &unsentError{error: err}
			}
			on.pool, giveBack = conn, func() { _ = conn.Close() }
		}
	}
	left, restore, err := t.clean(on)
	if err != nil {
		restore()
		giveBack()
		return on, nil, &unsentError{err, true}
	}
	give := giveBack
	giveBack = func() { restore(); give() }
	if left {
		t.config.Logger.Warn(ctx, "dbmutex: rolled back a transaction that was left open on a connection of the pool")
	}
	return on, giveBack, nil
}

// Begin begins a transaction on a connection that is held until giveBack, which takes the error of the transaction's end:
// not every driver ends a transaction whose COMMIT fails. While other writers lock it out it goes on as Prepare does.
func (t Table) Begin(
	ctx context.Context, opts []*sql.TxOptions, wait time.Duration,
) (tx *gorm.DB, giveBack func(error), err error) {
	giveUp := time.Now().Add(atLeastLimit(wait))
	for bad := 0; ; {
		tx, giveBack, err = t.beginOnce(ctx, opts)
		switch {
		case err == nil:
			return tx, giveBack, nil
		case errors.Is(err, driver.ErrBadConn) && bad < 2: // as database/sql does by itself if no connection is held
			bad++
		case t.failureOf(err) != conflicting || time.Now().After(giveUp) ||
			Sleep(ctx, time.Millisecond+rand.N(time.Millisecond)) != nil:
			return nil, nil, err
		}
	}
}

// atLeastLimit is how long to go on for a caller who waits so long; a wait of less than 0 has no end.
func atLeastLimit(wait time.Duration) time.Duration {
	if wait < 0 {
		return forever
	}
	return max(wait, Limit)
}

// forever is a wait that only the context ends.
const forever time.Duration = math.MaxInt64

func (t Table) beginOnce(ctx context.Context, opts []*sql.TxOptions) (*gorm.DB, func(error), error) {
	on, release, err := t.hold(ctx)
	if err != nil {
		return nil, nil, err
	}
	prepared, _ := t.config.ConnPool.(*gorm.PreparedStmtDB)
	if prepared != nil {
		if _, plain := prepared.ConnPool.(*sql.DB); !plain { // its transactions are of a kind of their own
			release()
			release, on.pool = func() {}, prepared
		}
	}
	giveBack := func(err error) {
		defer release()
		if err != nil {
			limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), Limit)
			defer cancel()
			_, _, _ = t.clean(on.under(limited))
		}
	}
	tx := on.hushing(nothing).session().Begin(opts...) // it is the caller's
	if tx.Error != nil {
		giveBack(tx.Error)
		return nil, nil, tx.Error
	}
	if plain, ok := tx.Statement.ConnPool.(*sql.Tx); ok && prepared != nil {
		tx.Statement.ConnPool = &gorm.PreparedStmtTX{PreparedStmtDB: prepared, Tx: plain}
	}
	return tx, giveBack, nil
}
