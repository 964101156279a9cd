// Package cronmutex lets all the machines whose schedulers have a github.com/robfig/cron job share it, by the database:
//   - NonOverlapping keeps its runs from overlapping: cron's SkipIfStillRunning and DelayIfStillRunning across processes, by
//     a mutex. Nothing is recorded: a tick may be missed, and a machine that is late enough repeats it.
//   - OncePerTick runs each tick once, and records it. No machine repeats a tick, and one that waits makes up for a machine
//     that fails. Ticks may overlap.
//
// The ids of NonOverlapping share one namespace with all mutexes of the table, those of OncePerTick with every dbmutex.Once.
// With renewal, a job that hangs keeps its mutex for as long as its lease is renewed. dbmutex.WithoutTTL is accepted, but a
// crash then blocks the job until dbmutex.Mutex.ForceRelease, or a tick until dbmutex.Once.ForceRelease.
package cronmutex

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/robfig/cron/v3"

	"github.com/gorm-dbmutex/dbmutex"
)

// Job is a cron job that has a context and an error. Behind NonOverlapping or OncePerTick its context is the lease's: it
// ends when the handle's does, or when the lease does, with a cause that matches dbmutex.ErrTimeout. dbmutex.LeaseFrom
// finds the lease. For this NonOverlapping must be the last wrapper of the chain, next to the job: any other wrapper hides
// the job's type.
type Job func(ctx context.Context) error

// Run makes it a cron.Job. It is for a job that NonOverlapping does not see: the context is context.Background(), and an
// error goes to cron.DefaultLogger, as there is nobody to return it to.
func (j Job) Run() {
	if err := j(context.Background()); err != nil {
		cron.DefaultLogger.Error(err, "run")
	}
}

// NonOverlapping makes a wrapper whose jobs run only while they hold the mutex id. Give each job an id, and so a wrapper, of
// its own: jobs that share an id do not overlap with each other either.
//
// If somebody else holds the mutex the run is skipped, with logger.Info("skip", ...), as by cron.SkipIfStillRunning.
// With dbmutex.WithWait it is delayed, as by cron.DelayIfStillRunning, and skipped only if the mutex is still held after
// that time. dbmutex.Settings.SkipHeld has no effect.
//
// Every other failure goes to logger.Error: the job's own error; the database's, if the job did not run; and
// dbmutex.ErrTimeout, if the lease ended before the job did, or before the job could begin. errors.As finds the run's
// *dbmutex.TimeoutError: it says whether the lease was lost, so that another run may have overlapped, or only ran out. The
// job's own error is joined.
//
// If the job panics, the mutex is released. The panic goes on, to cron.Recover if that comes earlier in the chain. If the
// lease ended before, GORM's logger gets the timeout.
//
// Schedulers' clocks differ: a machine whose clock is late comes to a tick when another machine's run has perhaps ended
// already, and would run the job again. So dbmutex.WithMinHold is needed: choose a time that is longer than the clocks
// differ, and shorter than the interval of the schedule. With dbmutex.WithWait every machine runs the job at each tick, one
// after the other.
//
// For this the machines' ticks must be the same. Ticks of "@every 1h" are not: they count from the start of each scheduler.
// Use a schedule such as "0 * * * *", with cron.WithLocation(time.UTC) if machines have different time zones.
//
// A job that is nil is an error for the logger, and never runs.
//
// A cron job has no context of its own, so all runs have that of the handle. When it is done, runs stop waiting, the context
// of a run that works ends, and later runs fail. The context that cron.Cron.Stop returns is done after the last release.
//
// The error comes before any job runs. It is dbmutex.ErrInvalidSettings for settings that are not allowed, a MinHold of 0 or
// a nil logger; what DB.Mutex says is wrong with the handle or the id; or the database's, also if the table is missing.
func NonOverlapping(db *dbmutex.DB, id string, logger cron.Logger, opts ...dbmutex.Option) (cron.JobWrapper, error) {
	var settings dbmutex.Settings
	mutex := db.Mutex(id, append(slices.Clone(opts), func(s *dbmutex.Settings) {
		s.SkipHeld = false
		settings = *s
	})...)
	_, err := mutex.Holder()
	switch {
	case err != nil:
		return nil, err
	case logger == nil:
		return nil, fmt.Errorf("%w: non-overlapping cron jobs need a logger", dbmutex.ErrInvalidSettings)
	case settings.MinHold == 0:
		return nil, fmt.Errorf("%w: non-overlapping cron jobs need WithMinHold: a time greater than the difference of the "+
			"schedulers' clocks and smaller than the interval, or a tick may run on several machines", dbmutex.ErrInvalidSettings)
	}
	return wrapper(id, logger, func(work func(ctx context.Context) error) (skip, err error) {
		lease, err := mutex.Acquire()
		switch {
		case errors.Is(err, dbmutex.ErrNotAcquired):
			return err, nil
		case err != nil:
			return nil, err
		}
		return nil, lease.Do(work)
	}), nil
}

// wrapper makes jobs that run by a function. It runs their work, or returns why this is skipped.
func wrapper(
	id string, logger cron.Logger, run func(work func(ctx context.Context) error) (skip, err error),
) cron.JobWrapper {
	return func(job cron.Job) cron.Job {
		if own, ok := job.(Job); job == nil || ok && own == nil {
			logger.Error(fmt.Errorf("%w: the job is nil", dbmutex.ErrInvalidSettings), "wrap", "mutex", id)
			return cron.FuncJob(func() {})
		}
		return cron.FuncJob(func() {
			skip, err := run(func(ctx context.Context) error {
				if job, ok := job.(Job); ok {
					return job(ctx)
				}
				job.Run()
				return nil
			})
			switch {
			case skip != nil:
				logger.Info("skip", "reason", skip)
			case err != nil:
				logger.Error(err, "run", "mutex", id)
			}
		})
	}
}
