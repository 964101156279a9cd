//go:build linux

package torture

import (
	"context"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/witness"
)

// What clients do once: they come for the ticks of a schedule.

const (
	keep = time.Hour
	skew = 3 * time.Millisecond // of a client's clock
)

// comeForTick comes for the tick of now, or for one of before.
func (u *usage) comeForTick() {
	at := time.Now().Add(u.upTo(2*skew) - skew)
	if u.maybe(0.4) {
		at = at.Add(-u.Every * time.Duration(1+u.rand.IntN(10)))
	}
	u.id = dbmutex.Tick(u.Ticks, at, u.Every)
	u.minHold = 0
	options := append(u.options(), dbmutex.WithMinHold(0))
	u.visit(u.db.WithContext(u.ctx).Once(u.id, keep, options...), u.maybe(0.5))
}

// visit comes for a tick, and writes down how it went.
func (u *usage) visit(once *dbmutex.Once, inTransaction bool) {
	o := u.begin(visit)
	v := o.Visit
	v.Effect = inTransaction
	u.write(o)
	var workErr error
	bad := u.Habits.Panic && u.maybe(0.05)
	work := func(ctx context.Context, spend func(lease *dbmutex.Lease) error) error {
		lease, _ := dbmutex.LeaseFrom(ctx)
		v.Began, v.Token, v.Expires = now(), lease.Token(), expires(lease)
		u.write(o)
		workErr = spend(lease)
		if workErr == nil && u.maybe(0.1) {
			workErr = errWork
		}
		v.Expires = max(v.Expires, expires(lease))
		v.Ended = now()
		u.write(o)
		if bad {
			workErr = errWork
			panic(errWork)
		}
		return workErr
	}
	err := u.apart(bad, func() error {
		if !inTransaction {
			return once.Do(func(ctx context.Context) error {
				return work(ctx, func(lease *dbmutex.Lease) error { u.hold(lease); return nil })
			})
		}
		return once.Transaction(func(tx *gorm.DB) error {
			return work(tx.Statement.Context, func(*dbmutex.Lease) error {
				err := tx.Create(&run{Attempt: u.name, LockID: u.id}).Error
				u.linger()
				return err
			})
		}, u.isolation()...)
	})
	u.returned(o)
	v.Returned, v.Outcome = o.Return, witness.OutcomeOf(v, err, workErr)
	if bad && err == nil && v.Began != 0 {
		v.Outcome = witness.Failed
	}
	if v.Outcome == witness.Lost && o.Lost > 0 {
		v.Outcome = witness.Unknown
	}
	o.Error = text(err)
	u.write(o)
}
