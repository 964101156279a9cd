package gocronmutex_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"github.com/jonboulle/clockwork"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	gocronmutex "github.com/gorm-dbmutex/dbmutex/contrib/gocron"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// noon is a tick of every day that is no multiple of a day.
var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// atNoon makes a Locker for which it is nearly noon, or a little later.
func atNoon(t *testing.T, db *dbmutex.DB, off time.Duration, opts ...dbmutex.Option) *gocronmutex.Locker {
	t.Helper()
	locker, err := gocronmutex.NewTickLocker(db, 12*time.Hour, opts...)
	require.NoError(t, err)
	return gocronmutex.At(locker, func() time.Time { return noon.Add(off) })
}

// newTickJob makes a job of a tick Locker's on a scheduler of its own.
func newTickJob(t *testing.T, locker *gocronmutex.Locker, fn func(ctx context.Context) error) (gocron.Job, outcomes) {
	t.Helper()
	outcomes := make(outcomes, 10)
	job, err := locker.NewJob(start(t), rarely, "job", fn, outcomes.listener())
	require.NoError(t, err)
	return job, outcomes
}

// A tick may be unlocked again: nothing more happens.
func TestATickThatIsUnlockedTwiceIsRecordedOnce(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		locker := atNoon(t, open(), 0)
		lock, err := locker.Lock(context.Background(), "job")
		require.NoError(t, err)
		for range 2 {
			require.NoError(t, lock.Unlock(context.Background()))
		}
		_, err = locker.Lock(context.Background(), "job")
		require.ErrorIs(t, err, gocronmutex.ErrTickDone)
	})
}

// TestATickRunsOnceThoughClocksDiffer, and though a machine comes to it early, or late. A machine comes early to its own
// tick if its clock is set back meanwhile.
func TestATickRunsOnceThoughClocksDiffer(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		const half = 29900 * time.Millisecond
		for _, late := range []time.Duration{lateBy, half} {
			for _, off := range [][2]time.Duration{{0, 0}, {-half, half}, {half, -half}} {
				name := fmt.Sprint(late, off)
				m := newMachines(t, late, func(i int, clock clockwork.Clock, events chan string) gocron.SchedulerOption {
					locker, err := gocronmutex.NewTickLocker(open(), time.Minute, dbmutex.WithHolder(name))
					require.NoError(t, err)
					now := func() time.Time { return clock.Now().Add(off[i]) }
					return gocron.WithDistributedLocker(renamed{observed{gocronmutex.At(locker, now), events}, name})
				})
				for range 4 {
					require.Equal(t, [2]string{"ran", "did not"}, m.tick(t, nothing), name)
				}
				require.Len(t, m.runs, 4, name)
			}
		}
	})
}

// renamed gives jobs another name.
type renamed struct {
	gocron.Locker
	name string
}

func (r renamed) Lock(ctx context.Context, _ string) (gocron.Lock, error) {
	return r.Locker.Lock(ctx, r.name)
}

func TestATickIsRecordedWhenItHasSucceeded(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		var result error
		runs := 0
		fn := func(context.Context) error { runs++; return result }
		early, earlyOutcomes := newTickJob(t, atNoon(t, open(), -5*time.Hour), fn)
		late, lateOutcomes := newTickJob(t, atNoon(t, open(), 5*time.Hour), fn)

		result = errOwn
		require.Equal(t, errOwn, earlyOutcomes.run(t, early))
		require.Equal(t, errOwn, lateOutcomes.run(t, late), "it has failed, and runs again")
		result = nil
		require.NoError(t, earlyOutcomes.run(t, early))
		require.Equal(t, 3, runs)
		for range 2 {
			requireLockError(t, earlyOutcomes.run(t, early), gocronmutex.ErrTickDone)
			requireLockError(t, lateOutcomes.run(t, late), gocronmutex.ErrTickDone)
		}
		next, nextOutcomes := newTickJob(t, atNoon(t, open(), 7*time.Hour), fn)
		require.NoError(t, nextOutcomes.run(t, next), "another tick")
		require.Equal(t, 4, runs)
	})
}

func TestARunOfATickKnowsItsLease(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		var inside error
		job, outcomes := newTickJob(t, atNoon(t, open(), 0), func(ctx context.Context) error {
			lease, ok := dbmutex.LeaseFrom(ctx)
			require.True(t, ok)
			inside = lease.Renew()
			return ctx.Err()
		})
		require.NoError(t, outcomes.run(t, job))
		require.NoError(t, inside)
	})
}

func TestATickThatPanicsRunsAgain(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		outcomes, panics := make(outcomes, 10), true
		job, err := atNoon(t, open(), 0).NewJob(start(t), rarely, "job", func(context.Context) error {
			if panics {
				panic(errOwn)
			}
			return nil
		}, outcomes.listener(), gocron.WithEventListeners(gocron.AfterJobRunsWithPanic(func(uuid.UUID, string, any) {})))
		require.NoError(t, err)
		require.ErrorIs(t, outcomes.run(t, job), gocron.ErrPanicRecovered)
		panics = false
		require.NoError(t, outcomes.run(t, job))
		requireLockError(t, outcomes.run(t, job), gocronmutex.ErrTickDone)
	})
}

// TestASchedulerThatWaitsForATick gets the record, or makes up for a failure.
func TestASchedulerThatWaitsForATick(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		runs, letGo := make(chan int), make(chan error)
		var jobs [3]gocron.Job
		var outcomes [3]outcomes
		for i, opts := range [3][]dbmutex.Option{nil, {dbmutex.WithWait(dbmutex.Forever)}, {dbmutex.WithSkipHeld()}} {
			jobs[i], outcomes[i] = newTickJob(t, atNoon(t, open(), 0, opts...), func(context.Context) error {
				runs <- i
				return <-letGo
			})
		}
		require.NoError(t, jobs[0].RunNow())
		require.Equal(t, 0, next(t, runs))
		require.NoError(t, jobs[1].RunNow())
		requireLockError(t, outcomes[2].run(t, jobs[2]), dbmutex.ErrNotAcquired)
		letGo <- errOwn
		require.Equal(t, errOwn, next(t, outcomes[0]))
		require.Equal(t, 1, next(t, runs), "the other has failed")
		require.NoError(t, jobs[1].RunNow()) // it waits for its own machine's run
		letGo <- nil
		require.ElementsMatch(t, []string{"<nil>", gocronmutex.ErrTickDone.Error()},
			[]string{fmt.Sprint(next(t, outcomes[1])), fmt.Sprint(next(t, outcomes[1]))})
		require.Empty(t, runs)
	})
}

// TestARunOfATickWhoseLeaseIsLost records nothing, and its error says so.
func TestARunOfATickWhoseLeaseIsLost(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		lose := true
		db := open()
		job, outcomes := newTickJob(t, atNoon(t, open(), 0), func(ctx context.Context) error {
			lease, ok := dbmutex.LeaseFrom(ctx)
			require.True(t, ok)
			if lose {
				return loseTick(db, lease)
			}
			return nil
		})
		requireTimeout(t, outcomes.run(t, job), "job@2030-01-01T12:00:00Z", true)
		lose = false
		require.NoError(t, outcomes.run(t, job))
		requireLockError(t, outcomes.run(t, job), gocronmutex.ErrTickDone)
	})
}

// loseTick takes the tick of a lease away.
func loseTick(db *dbmutex.DB, lease *dbmutex.Lease) error {
	return db.Where("lock_id = ?", lease.LockID()).Delete(&dbmutex.DBOnce{}).Error
}

func TestWhereGocronDoesNotLockATickRunsOnce(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		runs := 0
		outcomes := make(outcomes, 10)
		s := start(t, gocron.WithGlobalJobOptions(gocron.WithDisabledDistributedJobLocker(true)))
		job, err := atNoon(t, open(), 0).NewJob(s, rarely, "job", func(context.Context) error { runs++; return nil },
			outcomes.listener())
		require.NoError(t, err)
		for range 3 {
			require.NoError(t, outcomes.run(t, job))
		}
		require.Equal(t, 1, runs)
	})
}

func TestATickLockerThatCannotWork(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, open func() *dbmutex.DB) {
		db := open()
		for _, every := range []time.Duration{0, -time.Second} {
			_, err := gocronmutex.NewTickLocker(db, every)
			require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
			require.ErrorContains(t, err, "positive")
		}
		_, err := gocronmutex.NewTickLocker(db, time.Minute, briefly)
		require.ErrorIs(t, err, dbmutex.ErrInvalidSettings, "a MinHold")
		_, err = gocronmutex.NewTickLocker(nil, time.Minute)
		require.ErrorIs(t, err, dbmutex.ErrNotRegistered)
		locker := atNoon(t, db, 0)
		_, err = locker.NewJob(start(t), rarely, strings.Repeat("j", dbmutex.MaxLockIDLength), func(context.Context) error {
			return nil
		})
		require.ErrorIs(t, err, dbmutex.ErrInvalidLockID, "there is no room for the time")
		_, err = locker.Lock(t.Context(), "main.main.func1")
		require.ErrorIs(t, err, dbmutex.ErrInvalidLockID)
		require.NoError(t, db.Migrator().DropTable(&dbmutex.DBOnce{}))
		_, err = gocronmutex.NewTickLocker(open(), time.Minute)
		require.ErrorContains(t, err, "DBOnce")
	})
}

// tick is a process with a scheduler that runs the tick of noon until stdin ends.
func tick(d *testdb.Database, stdin io.Reader) error {
	db, err := d.Connect()
	if err != nil {
		return err
	}
	locker, err := gocronmutex.NewTickLocker(db, 12*time.Hour,
		dbmutex.WithTTL(childTTL), dbmutex.WithRenewal(), dbmutex.WithWait(dbmutex.Forever))
	if err != nil {
		return err
	}
	scheduler, err := gocron.NewScheduler()
	if err != nil {
		return err
	}
	ended := make(chan bool)
	_, err = gocronmutex.At(locker, func() time.Time { return noon }).NewJob(scheduler,
		gocron.OneTimeJob(gocron.OneTimeJobStartImmediately()), "job", func(context.Context) error {
			fmt.Println("runs")
			_, err := io.Copy(io.Discard, stdin)
			return err
		}, gocron.WithEventListeners(
			gocron.AfterLockError(func(_ uuid.UUID, _ string, err error) { fmt.Println(err); close(ended) }),
			gocron.AfterJobRuns(func(uuid.UUID, string) { fmt.Println("no error"); close(ended) }),
			gocron.AfterJobRunsWithError(func(_ uuid.UUID, _ string, err error) { fmt.Println(err); close(ended) })))
	if err != nil {
		return err
	}
	scheduler.Start()
	<-ended
	return scheduler.Shutdown()
}

// TestAMachineIsKilledInTheMiddleOfATick: another one that waits runs it, and nobody after that.
func TestAMachineIsKilledInTheMiddleOfATick(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, _ func() *dbmutex.DB) {
		killed := testprocess.Start(t, d, "tick")
		require.Equal(t, "runs", killed.Line(t))
		waits := testprocess.Start(t, d, "tick")
		killed.Kill(t)
		require.Equal(t, "runs", waits.Line(t))
		third := testprocess.Start(t, d, "tick")
		waits.CloseInput(t)
		require.Equal(t, "no error", waits.Line(t))
		require.NoError(t, waits.Wait())
		require.Equal(t, gocronmutex.ErrTickDone.Error(), third.Line(t))
		require.NoError(t, third.Wait())
		last := testprocess.Start(t, d, "tick")
		require.Equal(t, gocronmutex.ErrTickDone.Error(), last.Line(t))
		require.NoError(t, last.Wait())
	})
}
