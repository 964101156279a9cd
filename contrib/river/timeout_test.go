package rivermutex_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/river"
)

// TestTheEndOfALease: OnTimeout, or else River, gets an error that says of the run's own lease what it can know first of
// all, before what the job has heard.
func TestTheEndOfALease(t *testing.T) {
	w := newWorld(t)
	job := &rivertype.JobRow{ID: 7, Kind: "report"}
	for _, lost := range []bool{false, true} {
		another := &dbmutex.TimeoutError{LockID: "another", Lost: !lost}
		for name, result := range map[string]func(ctx context.Context) error{
			"nil":                func(context.Context) error { return nil },
			"its own":            func(context.Context) error { return errOwn },
			"a snooze":           func(context.Context) error { return fmt.Errorf("too early: %w", river.JobSnooze(time.Hour)) },
			"another mutex's":    func(context.Context) error { return another },
			"the cause":          context.Cause,
			"the cause, wrapped": func(ctx context.Context) error { return fmt.Errorf("report: %w", context.Cause(ctx)) },
		} {
			var own error
			ran := false
			run := func(p rivermutex.Policy) error {
				nonOverlapping, err := p.NonOverlapping(w.db, dbmutex.WithTTL(20*time.Millisecond))
				require.NoError(t, err)
				work := func(ctx context.Context) error {
					ran = true
					<-ctx.Done()
					if lost {
						next, err := w.db.Mutex("report", dbmutex.WithWait(dbmutex.Forever)).Acquire()
						assert.NoError(t, err)
						assert.NoError(t, next.Release())
					}
					own = result(ctx)
					return own
				}
				for ran = false; !ran; { // else the lease ended before the job began
					err = nonOverlapping.Work(t.Context(), job, work)
				}
				return err
			}
			told := 0
			require.Equal(t, errOwn, run(rivermutex.Policy{OnTimeout: func(_ context.Context, _ *rivertype.JobRow, err error) error {
				if !ran {
					return nil
				}
				told++
				requireTimeout(t, err, "report", lost)
				if own != nil && name != "the cause" {
					require.ErrorIs(t, err, own, name)
				}
				return errOwn
			}}))
			require.Equal(t, 1, told)

			err := run(rivermutex.Policy{})
			requireTimeout(t, err, "report", lost)
			require.NotErrorIs(t, err, &river.JobSnoozeError{}, "River would keep no record of it")
			if name == "a snooze" {
				require.ErrorContains(t, err, ", and the job asked to be snoozed: too early: ")
			}
		}
	}
}

// River records ErrJobCancelledRemotely in the place of any error, so that the log must say that the lease was lost.
func TestALostLeaseIsLoggedWhereRiverHasEndedTheRun(t *testing.T) {
	w := newWorld(t)
	for _, ended := range []bool{true, false} {
		var out bytes.Buffer
		logged := logger.New(log.New(&out, "", 0), logger.Config{LogLevel: logger.Error})
		db := dbmutex.Wrap(w.db.Gorm.Session(&gorm.Session{Logger: logged}))
		nonOverlapping, err := rivermutex.NonOverlapping(db)
		require.NoError(t, err)
		ctx, cancel := context.WithCancelCause(t.Context())
		err = nonOverlapping.Work(ctx, &rivertype.JobRow{ID: 7, Kind: "report"}, func(context.Context) error {
			assert.NoError(t, w.db.Mutex("report").ForceRelease())
			if ended {
				cancel(rivertype.ErrJobCancelledRemotely)
			}
			return &dbmutex.TimeoutError{LockID: "another"}
		})
		cancel(nil)
		requireTimeout(t, err, "report", true)
		if ended {
			require.Contains(t, out.String(), "job 7: "+err.Error())
		} else {
			require.Empty(t, out.String())
		}
	}
}

func TestTheMiddlewareTwiceWithKeysOfTheirOwn(t *testing.T) {
	w := newWorld(t)
	job := &rivertype.JobRow{ID: 7, Kind: "report"}
	outer, err := rivermutex.NonOverlapping(w.db)
	require.NoError(t, err)
	inner, err := rivermutex.Policy{Key: func(*rivertype.JobRow) string { return "inner" }}.NonOverlapping(w.db)
	require.NoError(t, err)
	ran := false
	require.NoError(t, outer.Work(t.Context(), job, func(ctx context.Context) error {
		return inner.Work(ctx, job, func(context.Context) error { ran = true; return nil })
	}))
	require.True(t, ran)
}
