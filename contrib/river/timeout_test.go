package rivermutex_test

import (
	"bytes"
	"context"
	"log"
	"testing"
	"time"

	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/river"
)

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
			return nil
		})
		cancel(nil)
		require.ErrorIs(t, err, dbmutex.ErrTimeout)
		if ended {
			require.Contains(t, out.String(), "job 7: "+err.Error())
		} else {
			require.Empty(t, out.String())
		}
	}
}

// A job may return the cause of its context's end, which is the loss of its own lease.
func TestOnTimeoutOfAJobThatReturnsErrTimeout(t *testing.T) {
	w := newWorld(t)
	lost := false
	nonOverlapping, err := rivermutex.Policy{OnTimeout: func(context.Context, *rivertype.JobRow, error) error {
		lost = true
		return nil
	}}.NonOverlapping(w.db, dbmutex.WithTTL(10*time.Millisecond))
	require.NoError(t, err)
	err = nonOverlapping.Work(t.Context(), &rivertype.JobRow{ID: 7, Kind: "report"}, func(ctx context.Context) error {
		<-ctx.Done()
		return context.Cause(ctx)
	})
	require.NoError(t, err)
	require.True(t, lost)
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
