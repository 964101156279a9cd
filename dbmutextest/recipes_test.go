package dbmutextest_test

import (
	"context"
	"errors"
	"testing"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/dbmutextest"
)

// This file has the recipes of docs/testing.md.

// Reports is the code under test.
type Reports struct {
	db   *dbmutex.DB
	send func(ctx context.Context) error
}

// Run sends the nightly report, unless another machine does.
func (r *Reports) Run() error {
	err := r.db.Mutex("nightly-report", dbmutex.WithRenewal()).Do(r.send)
	if errors.Is(err, dbmutex.ErrNotAcquired) {
		return nil
	}
	return err
}

func TestHeld(t *testing.T) {
	db := dbmutextest.Open(t)
	sent := 0
	reports := &Reports{db, func(context.Context) error { sent++; return nil }}

	release := dbmutextest.Hold(t, db, "nightly-report")
	if err := reports.Run(); err != nil || sent != 0 {
		t.Errorf("held: sent %d times, %v", sent, err)
	}
	release()
	if err := reports.Run(); err != nil || sent != 1 {
		t.Errorf("free: sent %d times, %v", sent, err)
	}
	if dbmutextest.Held(t, db, "nightly-report") {
		t.Error("the mutex was not released")
	}
}

func TestRanOut(t *testing.T) {
	db := dbmutextest.Open(t)
	reports := &Reports{db, func(ctx context.Context) error {
		lease, _ := dbmutex.LeaseFrom(ctx)
		dbmutextest.RunOut(t, lease)
		return ctx.Err() // the work has to stop: its context is done
	}}

	err := reports.Run()
	var timeout *dbmutex.TimeoutError
	if !errors.As(err, &timeout) || timeout.Lost {
		t.Errorf("want a lease that only ran out: %v", err)
	}
}

func TestLost(t *testing.T) {
	db := dbmutextest.Open(t)
	reports := &Reports{db, func(ctx context.Context) error {
		lease, _ := dbmutex.LeaseFrom(ctx)
		dbmutextest.Lose(t, lease)
		dbmutextest.Hold(t, db, "nightly-report") // the next holder
		return ctx.Err()
	}}

	err := reports.Run()
	var timeout *dbmutex.TimeoutError
	if !errors.As(err, &timeout) || !timeout.Lost {
		t.Errorf("want a lease that was lost: %v", err)
	}
}
