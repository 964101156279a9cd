// Package rivermutex keeps jobs of River (https://riverqueue.com) from overlapping: a middleware runs each job under the
// dbmutex of its kind, on however many clients.
//
//	nonOverlapping, err := rivermutex.NonOverlapping(db)
//	client, err := river.NewClient(driver, &river.Config{Middleware: []rivertype.Middleware{nonOverlapping}, ...})
//
// A job that finds its mutex held is snoozed, which uses up no attempt; Policy has another way. A run whose lease ended
// before it did gets dbmutex.ErrTimeout, which says whether the lease was lost, so that another run may have overlapped, or
// only ran out. Anything else passes: a job's own error, river.JobSnooze, river.JobCancel, a panic.
//
// Where River's jobs are in the database of the mutexes, a job's effect, its completion (river.JobCompleteTx) and the end of
// its lease (dbmutex.Lease.ReleaseIn) can be one commit, which takes place only if the lease is still held: see the
// example.
//
// # What is not guaranteed
//
// A client that dies leaves the mutex to the lease's TTL. Until then other jobs find it held. Its job is another matter:
// River runs that again after Config.RescueStuckJobsAfter, an hour by default.
//
// Nothing runs jobs in the order in which they came: one that is snoozed may be overtaken. A job that hangs keeps its mutex
// for as long as its lease is renewed; with dbmutex.WithoutTTL, which is accepted, a crash blocks the jobs until
// dbmutex.Mutex.ForceRelease. The ids share one namespace with all mutexes of the table.
package rivermutex

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"github.com/gorm-dbmutex/dbmutex"
)

// DefaultSnooze is Policy.Snooze if that is 0: 10 seconds.
const DefaultSnooze = 10 * time.Second

// Held is what becomes of a job that finds its mutex held by another.
type Held int

const (
	// Snooze gives the job back for later, as river.JobSnooze does: no attempt is used up, and the job's metadata count its
	// "snoozes". River's ErrorHandler is not called.
	Snooze Held = iota

	// Cancel ends the job, as river.JobCancel does: its state is cancelled, its errors say who held the mutex, and River's
	// ErrorHandler is not called.
	Cancel
)

// Policy says what is kept from overlapping with what, and what becomes of a job that would. The zero Policy is that of the
// function NonOverlapping.
type Policy struct {
	// Key is the mutex's id for a job. Defaults to the job's kind. An invalid id makes the attempt fail with
	// dbmutex.ErrInvalidLockID.
	Key func(job *rivertype.JobRow) string

	// Held is what becomes of a job that finds its mutex held. Defaults to the constant Snooze.
	//
	// If it is held by an earlier run of the same job, whose client died or is stuck, Cancel would lose the work. There,
	// whatever Held is, the job is snoozed.
	Held Held

	// Snooze is for how long a job is snoozed. 0 means DefaultSnooze. Beyond 5 seconds River's scheduler may add as much
	// again. Every snooze costs River two writes: choose a longer one if many jobs want the same mutex.
	Snooze time.Duration

	// OnTimeout is called if a run's own lease ended before the job did, or before it could begin; not after a panic. err
	// matches dbmutex.ErrTimeout, and the job's own error if it had one. errors.As finds the run's *dbmutex.TimeoutError in
	// it: with Lost the lease was lost, so that another run may have overlapped; without, it only ran out, and certainly none
	// did. River gets what OnTimeout returns; with nil the job is completed. ctx is River's, not the lease's, which has
	// ended.
	//
	// Defaults to err itself, whether the lease was lost or only ran out: a failed attempt, or, if the job returned
	// river.JobCancel, a cancelled job. Only a job that returned river.JobSnooze is not snoozed, as River would keep no
	// record of the timeout, but has failed.
	//
	// If somebody cancelled the job meanwhile, River records that and not err, so that the default also logs err through
	// GORM's logger.
	OnTimeout func(ctx context.Context, job *rivertype.JobRow, err error) error
}

// NonOverlapping is Policy{}.NonOverlapping.
func NonOverlapping(db *dbmutex.DB, opts ...dbmutex.Option) (rivertype.WorkerMiddleware, error) {
	return Policy{}.NonOverlapping(db, opts...)
}

// NonOverlapping makes a middleware that runs each job under a mutex, for river.Config.Middleware or, for one kind only,
// for the Middleware method of its worker. The job's context is the lease's: it ends when River's does, or, with a cause
// that matches dbmutex.ErrTimeout, when the lease does. dbmutex.LeaseFrom finds the lease in it. The job's timeout begins
// when it has the mutex. What ends the job's context, the timeout and Client.StopAndCancel too, releases the mutex once the
// job returns.
//
// The options mean what they mean in dbmutex, over the plugin's settings, but for these: WithSkipHeld has no effect, as
// Policy.Held decides; and the holder, for people, is "job 12 of ..." with the name of WithHolder or else the ID of the
// client. A run that waits, under WithWait, occupies a worker of the queue.
//
// Under a lease of the same id, for example if the middleware is there twice, a run fails at once with
// dbmutex.ErrInvalidSettings: mutexes are not reentrant. A run whose wait is ended by River, as by Client.StopAndCancel,
// is snoozed.
//
// If the job did not run because the mutex was held, the error that earlier middleware gets matches
// dbmutex.ErrNotAcquired. If the database failed it wraps the database's: a failed attempt.
//
// db is checked with one SELECT. The error is dbmutex.ErrNotRegistered if the plugin is missing or db is nil,
// dbmutex.ErrInvalidSettings for an option, a Held or a Snooze that is not allowed, or the database's, which says so if the
// table is missing. The context of db counts for this SELECT alone.
func (p Policy) NonOverlapping(db *dbmutex.DB, opts ...dbmutex.Option) (rivertype.WorkerMiddleware, error) {
	switch {
	case p.Held < Snooze || p.Held > Cancel:
		return nil, fmt.Errorf("%w: there is no Held %d", dbmutex.ErrInvalidSettings, p.Held)
	case p.Snooze < 0:
		return nil, fmt.Errorf("%w: a Snooze of %v: it may not be negative", dbmutex.ErrInvalidSettings, p.Snooze)
	}
	opts = slices.Clip(slices.Clone(opts)) // every run appends one of its own
	if _, err := db.Mutex("rivermutex", opts...).Holder(); err != nil {
		return nil, err
	}
	if p.Key == nil {
		p.Key = func(job *rivertype.JobRow) string { return job.Kind }
	}
	if p.Snooze == 0 {
		p.Snooze = DefaultSnooze
	}
	return river.WorkerMiddlewareFunc(func(ctx context.Context, job *rivertype.JobRow, work func(context.Context) error) error {
		id := p.Key(job)
		if lease, ok := dbmutex.LeaseFrom(ctx); ok && lease.LockID() == id {
			return fmt.Errorf("%w: this run holds %q already, and a mutex is not reentrant: is the middleware there twice?",
				dbmutex.ErrInvalidSettings, id)
		}
		self := fmt.Sprintf("job %d of ", job.ID)
		lease, err := db.WithContext(ctx).Mutex(id, append(opts, forJob(job, self))...).Acquire()
		if err != nil {
			return p.notAcquired(ctx, self, err)
		}
		var own error
		err = lease.Do(func(ctx context.Context) error {
			own = work(ctx)
			return own
		})
		// The run's own timeout comes first in err. The job's error may be that of another mutex.
		var timeout *dbmutex.TimeoutError
		switch {
		case !errors.As(err, &timeout) || timeout.LockID != id:
			return err
		case p.OnTimeout != nil:
			return p.OnTimeout(ctx, job, err)
		case errors.Is(own, &river.JobSnoozeError{}):
			err = fmt.Errorf("%w, and the job asked to be snoozed: %s", timeout, own.Error())
		}
		if errors.Is(context.Cause(ctx), rivertype.ErrJobCancelledRemotely) { // River records that, and throws the error away
			db.Logger.Error(ctx, "job %d: %v", job.ID, err)
		}
		return err
	}), nil
}

// notAcquired is what becomes of a job that did not run.
func (p Policy) notAcquired(ctx context.Context, self string, err error) error {
	var held *dbmutex.HeldError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", err, river.JobSnooze(p.Snooze))
	case !errors.As(err, &held):
		return err
	case p.Held == Cancel && !strings.HasPrefix(held.Holder, self):
		return river.JobCancel(err)
	default:
		return fmt.Errorf("%w: %w", err, river.JobSnooze(p.Snooze))
	}
}

// forJob makes the settings those of one run.
func forJob(job *rivertype.JobRow, self string) dbmutex.Option {
	return func(s *dbmutex.Settings) {
		// The ID of the client says more than dbmutex's default, host/pid.
		if strings.HasSuffix(s.Holder, fmt.Sprintf("/%d", os.Getpid())) && len(job.AttemptedBy) > 0 {
			s.Holder = job.AttemptedBy[len(job.AttemptedBy)-1]
		}
		s.Holder = self + s.Holder
		s.SkipHeld = false
	}
}
