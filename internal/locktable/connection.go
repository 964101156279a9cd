package locktable

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"

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
	on = executor{ctx: ctx, config: t.config, pool: t.config.ConnPool, main: true}
	giveBack = func() {}
	switch on.pool.(type) {
	case *sql.DB, *gorm.PreparedStmtDB:
		if pool, err := sqlDB(on.pool); err == nil {
			conn, err := pool.Conn(ctx)
			if err != nil {
				return on, nil, &unsentError{err}
			}
			on.pool, giveBack = conn, func() { _ = conn.Close() }
		}
	}
	left, err := t.clean(on)
	if err != nil {
		giveBack()
		return on, nil, err
	}
	if left {
		t.config.Logger.Warn(ctx, "dbmutex: rolled back a transaction that was left open on a connection of the pool")
	}
	return on, giveBack, nil
}

// Begin begins a transaction on a connection that is held until giveBack, which takes the error of the transaction's end:
// not every driver ends a transaction whose COMMIT fails.
func (t Table) Begin(ctx context.Context, opts []*sql.TxOptions) (tx *gorm.DB, giveBack func(error), err error) {
	for range 3 { // as database/sql does by itself if no connection is held
		if tx, giveBack, err = t.beginOnce(ctx, opts); !errors.Is(err, driver.ErrBadConn) {
			break
		}
	}
	return tx, giveBack, err
}

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
			_, _ = t.clean(on.under(limited))
		}
	}
	tx := on.session().Begin(opts...)
	if tx.Error != nil {
		giveBack(tx.Error)
		return nil, nil, tx.Error
	}
	if plain, ok := tx.Statement.ConnPool.(*sql.Tx); ok && prepared != nil {
		tx.Statement.ConnPool = &gorm.PreparedStmtTX{PreparedStmtDB: prepared, Tx: plain}
	}
	return tx, giveBack, nil
}
