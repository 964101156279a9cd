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
// If River's jobs are in the database of the mutexes, a job's effect, its completion (river.JobCompleteTx) and the end of
// its lease (dbmutex.Lease.ReleaseIn) can be one commit, which succeeds only if the lease is still held: see the example.
//
// # What is not guaranteed
//
// If a client dies, other jobs find its mutex held until the lease's TTL is over. River runs the dead client's job again
// after Config.RescueStuckJobsAfter, an hour by default. Without renewal, the TTL must be longer than the work takes. With
// renewal, a job that hangs keeps its mutex for as long as its lease is renewed. dbmutex.WithoutTTL is accepted, but a crash
// then blocks the jobs until dbmutex.Mutex.ForceRelease.
//
// Jobs do not run in the order in which they came: others may overtake a job that is snoozed.
//
// The ids share one namespace with all mutexes of the table.
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
	// Snooze gives the job back for later, as river.JobSnooze does: no attempt is used up, and the job's metadata counts
	// its "snoozes". River's ErrorHandler is not called.
	Snooze Held = iota

	// Cancel ends the job, as river.JobCancel does: its state is cancelled, its errors say who held the mutex, and River's
	// ErrorHandler is not called.
	Cancel
)

// Policy says which jobs may not overlap, and what becomes of a job that would. The function NonOverlapping uses the zero
// Policy.
type Policy struct {
	// Key returns the id of a job's mutex. Defaults to the job's kind. An invalid id makes the attempt fail with
	// dbmutex.ErrInvalidLockID.
	Key func(job *rivertype.JobRow) string

	// Held is what becomes of a job that finds its mutex held. Defaults to the constant Snooze.
	//
	// If the holder is an earlier run of the same job, whose client died or is stuck, Cancel would lose the work. The job is
	// then snoozed, whatever Held is.
	Held Held

	// Snooze is for how long a job is snoozed. 0 means DefaultSnooze. If it is longer than 5 seconds, River's scheduler may
	// add up to 5 seconds. Every snooze costs River two writes: choose a longer one if many jobs want the same mutex.
	Snooze time.Duration

	// OnTimeout is called if a run's own lease ended before the job did, or before the job could begin; not after a panic.
	// err matches dbmutex.ErrTimeout, and the job's own error if it had one. errors.As finds the run's
	// *dbmutex.TimeoutError in err. If its Lost is true, the lease was lost, and another run may have overlapped. If Lost is
	// false, the lease only ran out, and certainly no other run overlapped. ctx is River's, not the lease's, which has ended.
	// River gets what OnTimeout returns; with nil the job is completed.
	//
	// The default returns err, whether the lease was lost or only ran out. The attempt has then failed, or, if the job
	// returned river.JobCancel, the job is cancelled. The attempt of a job that returned river.JobSnooze has failed, too, and
	// the job is not snoozed: River would keep no record of the timeout.
	//
	// If somebody cancelled the job meanwhile, River records that and not err. The default then also logs err through GORM's
	// logger.
	OnTimeout func(ctx context.Context, job *rivertype.JobRow, err error) error
}

// NonOverlapping is Policy{}.NonOverlapping.
func NonOverlapping(db *dbmutex.DB, opts ...dbmutex.Option) (rivertype.WorkerMiddleware, error) {
	return Policy{}.NonOverlapping(db, opts...)
}

// NonOverlapping makes a middleware that runs each job under a mutex. Give it to river.Config.Middleware, or, for one kind
// only, return it from the Middleware method of the kind's worker. The job's context is the lease's: it also ends when the
// lease does, with a cause that matches dbmutex.ErrTimeout. dbmutex.LeaseFrom finds the lease in it. The job's timeout
// begins when the job has the mutex. After anything that ends the job's context, such as the timeout or
// Client.StopAndCancel, the mutex is released once the job returns.
//
// The options change the plugin's settings, as in dbmutex. WithSkipHeld has no effect, as Policy.Held decides. The holder's
// name is "job 12 of X", so that the table and dbmutex.HeldError say which job holds the mutex. X is Settings.Holder, or the
// ID of the client if nobody set that. Under WithWait a run that waits occupies a worker of the queue. If River ends the
// wait, as by Client.StopAndCancel, the job is snoozed.
//
// A run that holds a mutex of the same id already, for example because the middleware is there twice, fails at once with
// dbmutex.ErrInvalidSettings: mutexes are not reentrant.
//
// NonOverlapping checks db with one SELECT. The context of db counts for this SELECT alone. The error is
// dbmutex.ErrNotRegistered if the plugin is missing or db is nil; dbmutex.ErrInvalidSettings for an option, a Held or a
// Snooze that is not allowed; or the database's, which says so if the table is missing. If the database fails later, the
// attempt fails. Earlier middleware then gets an error that wraps the database's. If the mutex was held, earlier middleware
// gets an error that matches dbmutex.ErrNotAcquired.
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
		// If the holder is dbmutex's default, host/pid, the ID of the client says more.
		if strings.HasSuffix(s.Holder, fmt.Sprintf("/%d", os.Getpid())) && len(job.AttemptedBy) > 0 {
			s.Holder = job.AttemptedBy[len(job.AttemptedBy)-1]
		}
		s.Holder = self + s.Holder
		s.SkipHeld = false
	}
}
