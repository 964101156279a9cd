package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
)

// holding is what a command runs under.
type holding struct {
	*dbmutex.Lease
	end func(succeeded bool) error // releases it, or records that the command has succeeded
}

// hold acquires what the flags ask for. It returns nil, nil if that is done already.
func (r *runner) hold(db *dbmutex.DB) (*holding, error) {
	opts := []dbmutex.Option{dbmutex.WithTTL(r.ttl), dbmutex.WithRenewal(), dbmutex.WithWait(r.patience),
		dbmutex.WithMinHold(r.minHold), dbmutex.WithHolder(r.whoAmI())}
	if r.oncePer > 0 {
		return r.holdOnce(db.Once(r.tick(time.Now()), 2*r.oncePer, opts...))
	}
	acquire := db.Mutex(r.id, opts...).Acquire
	if r.slots > 0 {
		acquire = db.Semaphore(r.id, r.slots, opts...).Acquire
	}
	lease, err := acquire()
	if err != nil {
		return nil, err
	}
	return &holding{lease, func(bool) error { return lease.Release() }}, nil
}

// errNotDone makes a Once release.
var errNotDone = errors.New("the command did not succeed")

// holdOnce begins a run of the Once, which ends with the holding.
func (r *runner) holdOnce(once *dbmutex.Once) (*holding, error) {
	leases, verdict, done := make(chan *dbmutex.Lease), make(chan error), make(chan error, 1)
	go func() {
		done <- once.Do(func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			leases <- lease
			return <-verdict
		})
	}()
	select {
	case lease := <-leases:
		return &holding{lease, func(succeeded bool) error {
			if succeeded {
				verdict <- nil
				return <-done
			}
			verdict <- errNotDone
			if err := <-done; err != errNotDone { //nolint:errorlint // else there is more to say
				return err
			}
			return nil
		}}, nil
	case err := <-done:
		if err == nil {
			r.sayDone(once)
		}
		return nil, err
	}
}

// sayDone says who has done it.
func (r *runner) sayDone(once *dbmutex.Once) {
	text := "done already"
	if record, err := once.Done(); err == nil && record != nil {
		text += fmt.Sprintf(" by %s, begun at %s", printable(record.Holder), utc(record.CreationTime))
	}
	r.log.Info(text, "lock_id", r.id)
}

// borderLimit is how near to the border of two periods it is said that machines may disagree about the period.
const borderLimit = time.Minute

// tick is the id of the period.
func (r *runner) tick(now time.Time) string {
	fromBorder := r.oncePer/2 - now.Sub(now.Round(r.oncePer)).Abs()
	if fromBorder < min(borderLimit, r.oncePer/10) {
		r.log.Warn(fmt.Sprintf("it is %v from the border of two periods of %v: machines whose clocks differ may run the command "+
			"twice; start it nearer to %s", fromBorder.Round(time.Millisecond), r.oncePer, utc(now.Round(r.oncePer))),
			"lock_id", r.id)
	}
	return dbmutex.Tick(r.id, now, r.oncePer)
}
