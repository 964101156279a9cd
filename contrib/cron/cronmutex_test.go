package cronmutex_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	cronmutex "github.com/gorm-dbmutex/dbmutex/contrib/cron"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

func TestARunIsSkippedWhereTheMutexIsHeld(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		job, runs, letGo := holding()
		mine, others := newRecording(), newRecording()
		first := wrapper(t, open(), mine, briefly)(job)
		second := wrapper(t, open(), others, briefly)(job)

		done := async(first)
		<-runs
		second.Run()
		others.requireSkip(t)
		first.Run()
		mine.requireSkip(t)
		letGo <- nil
		<-done

		done = async(second)
		<-runs
		letGo <- nil
		<-done
		require.Empty(t, mine)
		require.Empty(t, others)
	})
}

func TestWithWaitARunIsDelayed(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		job, runs, letGo := holding()
		log := newRecording()
		first := wrapper(t, open(), log, briefly, dbmutex.WithWait(dbmutex.Forever))(job)
		db := open()
		second := wrapper(t, db, log, briefly, dbmutex.WithWait(dbmutex.Forever))(job)
		tries := tried(t, db)

		firstDone := async(first)
		<-runs
		secondDone := async(second)
		<-tries
		letGo <- nil
		<-firstDone
		<-runs
		letGo <- nil
		<-secondDone
		require.Empty(t, log)
	})
}

func TestARunThatWaitedInVainIsSkipped(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		job, runs, letGo := holding()
		log := newRecording()
		wait := dbmutex.WithWait(time.Millisecond)
		done := async(wrapper(t, open(), log, briefly, wait)(job))
		<-runs
		wrapper(t, open(), log, briefly, wait)(job).Run()
		log.requireSkip(t)
		letGo <- nil
		<-done
	})
}

func TestANilJob(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		log := newRecording()
		for _, job := range []cron.Job{nil, cronmutex.Job(nil)} {
			wrapper(t, open(), log, briefly)(job).Run()
			require.ErrorIs(t, (<-log).err, dbmutex.ErrInvalidSettings)
		}
		require.Empty(t, log)
	})
}

func TestATickRunsOnOneMachineThoughTheJobIsShort(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		ran := 0
		job := cron.FuncJob(func() { ran++ })
		log := newRecording()
		wrapper(t, open(), log, dbmutex.WithMinHold(time.Minute))(job).Run()
		wrapper(t, open(), log, dbmutex.WithMinHold(time.Minute))(job).Run()
		log.requireSkip(t)
		require.Equal(t, 1, ran)
	})
}

func TestSettingsOfThePlugin(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, open func() *dbmutex.DB) {
		settings := dbmutex.DefaultSettings()
		settings.SkipHeld, settings.MinHold = true, time.Minute
		db := d.Registered(t, settings)
		ran := 0
		job := cron.FuncJob(func() { ran++ })
		log := newRecording()
		w := wrapper(t, db, log, dbmutex.WithSkipHeld())
		w(job).Run()
		w(job).Run()
		log.requireSkip(t)
		require.Equal(t, 1, ran)
	})
}

func TestErrorsAreLogged(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		db := open()
		log := newRecording()
		run := func(job cronmutex.Job) error {
			wrapper(t, db, log, briefly)(job).Run()
			return log.requireError(t)
		}

		require.Equal(t, errOwn, run(func(context.Context) error { return errOwn }))
		requireFree(t, db)

		inner := &dbmutex.HeldError{LockID: "another"}
		require.Equal(t, inner, run(func(context.Context) error { return inner }), "the job ran: this is no skip")

		job := wrapper(t, db, log, briefly)(cronmutex.Job(func(context.Context) error {
			t.Error("it ran without the mutex")
			return nil
		}))
		require.NoError(t, db.Migrator().DropTable(&dbmutex.DBMutex{}))
		job.Run()
		require.ErrorContains(t, log.requireError(t), "run AutoMigrate")
	})
}

// TestTheEndOfALeaseIsLogged: what the log says of the run's own lease comes before what the job has heard.
func TestTheEndOfALeaseIsLogged(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		db, others := open(), open()
		log := newRecording()
		for _, lost := range []bool{false, true} {
			ran := false
			requireLogged := func(job cron.Job) (err error) {
				for ran = false; !ran; { // else the lease ended before the job began
					wrapper(t, db, log, dbmutex.WithTTL(shortLease), briefly)(job).Run()
					err = log.requireError(t)
				}
				_ = requireTimeout(t, err, lost)
				return err
			}
			another := &dbmutex.TimeoutError{LockID: "another", Lost: !lost}
			for _, result := range []func(ctx context.Context) error{
				func(context.Context) error { return nil },
				func(context.Context) error { return errOwn },
				func(context.Context) error { return another },
				func(ctx context.Context) error { return fmt.Errorf("report: %w", context.Cause(ctx)) },
			} {
				var own error
				err := requireLogged(cronmutex.Job(func(ctx context.Context) error {
					ran = true
					<-ctx.Done()
					if lost {
						overlap(t, others)
					}
					own = result(ctx)
					return own
				}))
				if own != nil {
					require.ErrorIs(t, err, own)
				}
			}
			_ = requireLogged(cron.FuncJob(func() {
				ran = true
				time.Sleep(2 * shortLease)
				if lost {
					overlap(t, others)
				}
			}))
		}

		wrapper(t, db, log, briefly)(cronmutex.Job(func(context.Context) error { return db.Mutex("job").ForceRelease() })).Run()
		require.Zero(t, requireTimeout(t, log.requireError(t), true).Late, "it was lost before its deadline")
	})
}

func TestAPanicReleasesAndGoesOn(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		db := open()
		log := newRecording()
		chain := cron.NewChain(cron.Recover(log), wrapper(t, db, log, briefly))
		for _, job := range []cron.Job{
			cron.FuncJob(func() { panic(errOwn) }),
			cronmutex.Job(func(context.Context) error { panic(errOwn) }),
		} {
			chain.Then(job).Run()
			require.Len(t, log, 1)
			e := <-log
			require.Equal(t, "panic", e.msg)
			require.Equal(t, errOwn, e.err)
			requireFree(t, db)
		}
	})
}

func TestTheContextIsTheLeases(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		log := newRecording()
		w := wrapper(t, open(), log, dbmutex.WithTTL(shortLease), dbmutex.WithMinHold(time.Microsecond))
		var cause error
		job := w(cronmutex.Job(func(ctx context.Context) error {
			lease, ok := dbmutex.LeaseFrom(ctx)
			assert.True(t, ok)
			assert.Equal(t, "job", lease.LockID())
			<-ctx.Done()
			cause = context.Cause(ctx)
			return cause
		}))
		for cause == nil { // else the lease ended before the job began
			job.Run()
			require.ErrorIs(t, log.requireError(t), dbmutex.ErrTimeout)
		}
		require.ErrorIs(t, cause, dbmutex.ErrTimeout)
	})
}

func TestTheHandlesContextEndsWaitsAndWork(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		ctx, cancel := context.WithCancel(t.Context())
		waits := open()
		working, waiting := newRecording(), newRecording()
		runs := make(chan bool)
		works := async(wrapper(t, open().WithContext(ctx), working, briefly)(cronmutex.Job(func(ctx context.Context) error {
			close(runs)
			<-ctx.Done()
			return ctx.Err()
		})))
		<-runs
		job := wrapper(t, waits.WithContext(ctx), waiting, briefly, dbmutex.WithWait(dbmutex.Forever))(cron.FuncJob(func() {
			t.Error("it ran")
		}))
		tries := tried(t, waits)
		waited := async(job)
		<-tries
		cancel()
		<-works
		<-waited
		require.ErrorIs(t, working.requireError(t), context.Canceled)
		require.ErrorIs(t, waiting.requireError(t), context.Canceled)
		requireFree(t, open())
	})
}

// Not parallel: it replaces cron.DefaultLogger.
func TestAJobThatTheWrapperDoesNotSee(t *testing.T) {
	original := cron.DefaultLogger
	defer func() { cron.DefaultLogger = original }()
	log := newRecording()
	cron.DefaultLogger = log

	job := cronmutex.Job(func(ctx context.Context) error {
		assert.Equal(t, context.Background(), ctx)
		return errOwn
	})
	cron.NewChain(cron.Recover(log)).Then(job).Run()
	require.Len(t, log, 1)
	require.Equal(t, entry{"run", errOwn, nil}, <-log)

	cronmutex.Job(func(context.Context) error { return nil }).Run()
	require.Empty(t, log)
}

func TestBadWiring(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, open func() *dbmutex.DB) {
		log := newRecording()
		refused := func(db *dbmutex.DB, id string, logger cron.Logger, opts ...dbmutex.Option) error {
			w, err := cronmutex.NonOverlapping(db, id, logger, opts...)
			require.Nil(t, w)
			require.ErrorContains(t, err, "dbmutex: ")
			return err
		}
		db := open()
		require.ErrorIs(t, refused(nil, "job", log, briefly), dbmutex.ErrNotRegistered)
		require.ErrorIs(t, refused(dbmutex.Wrap(d.Open(t)), "job", log, briefly), dbmutex.ErrNotRegistered)
		require.ErrorIs(t, refused(db, "", log, briefly), dbmutex.ErrInvalidLockID)
		require.ErrorIs(t, refused(db, "job", nil, briefly), dbmutex.ErrInvalidSettings)
		require.ErrorIs(t, refused(db, "job", log, dbmutex.WithTTL(-1)), dbmutex.ErrInvalidSettings)
		require.ErrorIs(t, refused(db, "job", log, dbmutex.WithWait(time.Second)), dbmutex.ErrInvalidSettings)
		err := refused(db, "job", log)
		require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
		require.ErrorContains(t, err, "WithMinHold")
		tx := db.Begin()
		require.ErrorIs(t, refused(dbmutex.Wrap(tx), "job", log, briefly), dbmutex.ErrInTransaction)
		require.NoError(t, tx.Rollback().Error)
		require.NoError(t, db.Migrator().DropTable(&dbmutex.DBMutex{}))
		require.ErrorContains(t, refused(db, "job", log, briefly), "run AutoMigrate")
		require.Empty(t, log)
	})
}

// Two schedulers have the same job: while one runs it the other skips it. Stop waits for the release, too.
func TestSchedulers(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		runs := make(chan bool, 100)
		letGo := make(chan bool)
		job := cronmutex.Job(func(context.Context) error {
			runs <- true
			<-letGo
			return nil
		})
		log := newRecording()
		var machines []*cron.Cron
		for range 2 {
			machine := cron.New()
			_, err := machine.AddJob("@every 1s", cron.NewChain(cron.Recover(log), wrapper(t, open(), log, briefly)).Then(job))
			require.NoError(t, err)
			machine.Start()
			machines = append(machines, machine)
		}
		<-runs
		require.Equal(t, "skip", (<-log).msg)
		require.Empty(t, runs)
		var stopped []context.Context
		for _, machine := range machines {
			stopped = append(stopped, machine.Stop())
		}
		close(letGo)
		for _, ctx := range stopped {
			<-ctx.Done()
		}
		requireFree(t, open())
		for len(log) > 0 {
			require.Equal(t, "skip", (<-log).msg)
		}
	})
}

func TestProcesses(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, open func() *dbmutex.DB) {
		a := testprocess.Start(t, d, "schedule")
		require.Equal(t, "runs", a.Line(t))
		b := testprocess.Start(t, d, "schedule")
		require.Equal(t, "skip", b.Line(t))
		a.Kill(t)
		line := b.Line(t)
		for line == "skip" {
			line = b.Line(t)
		}
		require.Equal(t, "runs", line)

		c := testprocess.Start(t, d, "schedule")
		require.Equal(t, "skip", c.Line(t))
		b.CloseInput(t)
		for line = b.Line(t); line == "skip"; {
			line = b.Line(t)
		}
		require.Equal(t, "ends", line)
		require.NoError(t, b.Wait())
		for line = c.Line(t); line == "skip"; {
			line = c.Line(t)
		}
		require.Equal(t, "runs", line)
		c.End(t)
		requireFree(t, open())
	})
}
