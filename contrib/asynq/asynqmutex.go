// Package asynqmutex keeps tasks of asynq (https://github.com/hibiken/asynq) from overlapping: a middleware runs each
// task under the dbmutex of its type, on however many workers. It is django-db-mutex's NonOverlappingTask for asynq.
//
//	nonOverlapping, err := asynqmutex.NonOverlapping(db)
//	mux := asynq.NewServeMux()
//	mux.Use(nonOverlapping)
//	mux.HandleFunc("report", buildReport)
//
// A task that finds its mutex held is dropped; Policy has other ways. A run whose lease ended before it did gets
// dbmutex.ErrTimeout, which says whether the lease was lost, so that another run may have overlapped, or only ran out.
// Anything else passes: a task's own error, asynq.SkipRetry, a panic.
//
// The mutex is held until the handler returns or the lease ends, even if asynq gives the run up before: at the task's
// Timeout, at the end of Config.ShutdownTimeout, or because the worker cannot reach Redis any more. The run's context ends
// when asynq gives it up. If asynq then runs the task again, beside the earlier run, the task finds the mutex held by that
// run, and is retried later. This happens under every Policy. So asynq.Config.IsFailure should always be
// asynqmutex.IsFailure, or a function that calls it.
//
// The ids share one namespace with all mutexes of the table.
//
// OncePerTask is another middleware: it keeps a task that has succeeded from running again.
//
// # What is not guaranteed
//
// If a worker dies, other tasks find its mutex held until the lease's TTL is over. The same happens if a program ends while
// handlers run: Server.Shutdown does not wait for handlers that it gave up. asynq runs a dead worker's task again after a
// minute or more, so that dbmutex.WithTTL(30*time.Second) and dbmutex.WithRenewal() suit most tasks. Without renewal, the
// TTL must be longer than the work takes. With renewal, a handler that hangs keeps its mutex for as long as its lease is
// renewed. dbmutex.WithoutTTL is accepted, but a crash then blocks the tasks until dbmutex.Mutex.ForceRelease.
//
// Tasks do not run in the order in which they came: a task that finds its mutex held does not queue up behind the holder.
package asynqmutex

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hibiken/asynq"

	"github.com/gorm-dbmutex/dbmutex"
)

// Held is what becomes of a task that finds its mutex held by another.
type Held int

const (
	// Drop counts the task as done, and logs a warning through GORM's logger. asynq's ErrorHandler is not called. A task
	// with a Retention is kept as completed, without a result. A task with Unique makes room for the next one. A retry, or a
	// task that runs again after a crash, is also dropped if another task holds the mutex: its work is not done.
	Drop Held = iota

	// Retry gives the task back for later. The error matches dbmutex.ErrNotAcquired, and asynq's ErrorHandler gets it.
	// Set two fields of the asynq.Config for it:
	//
	// IsFailure must be asynqmutex.IsFailure, or a function that calls it. Otherwise asynq uses up one of the task's retries
	// each time. With it asynq tries again for as long as it takes. There is one exception: a task that has no retries left,
	// because of MaxRetry(0) or earlier failures, is archived. The error says so.
	//
	// RetryDelayFunc says how much later the task runs. Its n is the number of failures so far; finding the mutex held is
	// none. asynq's default is 15 to 45 seconds for a task that has not failed yet, but 11 to 14 minutes for a task that has
	// failed 5 times. asynq looks for tasks that are due every Config.DelayedTaskCheckInterval.
	Retry

	// Revoke removes the task, also one with a Retention. The error matches asynq.RevokeTask and dbmutex.ErrNotAcquired,
	// and asynq's ErrorHandler gets it.
	Revoke
)

// Policy says which tasks may not overlap, and what becomes of a task that would. The function NonOverlapping uses the zero
// Policy.
type Policy struct {
	// Key returns the id of a task's mutex. asynq.GetQueueName and similar functions work with ctx. Defaults to the whole
	// type of the task: under a pattern "report:" of asynq.ServeMux, "report:1" and "report:2" may overlap. An invalid id
	// makes the run fail with dbmutex.ErrInvalidLockID.
	Key func(ctx context.Context, task *asynq.Task) string

	// Held is what becomes of a task that finds its mutex held. Defaults to Drop.
	//
	// If the holder is an earlier run of the same task, which asynq has given up, Drop and Revoke would lose the work. The
	// task is then given back as under Retry, whatever Held is. So asynq.Config needs what Retry says.
	Held Held

	// OnTimeout is called if a run's own lease ended before the task did, or before the task could begin; not after a panic.
	// err matches dbmutex.ErrTimeout, and the task's own error if it had one. errors.As finds the run's
	// *dbmutex.TimeoutError in err. If its Lost is true, the lease was lost, and another run may have overlapped. If Lost is
	// false, the lease only ran out, and certainly no other run overlapped. ctx is asynq's, not the lease's, which has ended.
	// asynq gets what OnTimeout returns; with nil the task counts as done.
	//
	// The default returns err, whether the lease was lost or only ran out. The task has then failed: asynq retries it, or
	// archives it if it returned asynq.SkipRetry. A task that returned asynq.RevokeTask has failed, too, and is not removed:
	// asynq would keep no record of the timeout.
	//
	// If asynq has given the run up meanwhile, so that ctx has ended, nobody gets what OnTimeout returns. The default
	// then logs err through GORM's logger.
	OnTimeout func(ctx context.Context, task *asynq.Task, err error) error
}

// NonOverlapping is Policy{}.NonOverlapping.
func NonOverlapping(db *dbmutex.DB, opts ...dbmutex.Option) (asynq.MiddlewareFunc, error) {
	return Policy{}.NonOverlapping(db, opts...)
}

// NonOverlapping makes a middleware that runs each task under a mutex. Give it to asynq.ServeMux.Use, or, for some tasks
// only, call it on their handlers. The task's context is the lease's: it also ends when the lease does, with a cause that
// matches dbmutex.ErrTimeout. dbmutex.LeaseFrom finds the lease in it.
//
// The options change the plugin's settings, as in dbmutex. WithSkipHeld has no effect, as Policy.Held decides. The task's id
// and queue are added to the holder's name, so that the table and dbmutex.HeldError say which task holds the mutex. Under
// WithWait a run that waits occupies a worker, and the task's Timeout includes the wait: a longer wait ends with
// context.DeadlineExceeded, which counts as a failure.
//
// A run that holds a mutex of the same id already, for example because the middleware is there twice, fails at once with
// dbmutex.ErrInvalidSettings: mutexes are not reentrant.
//
// NonOverlapping checks db with one SELECT. The context of db counts for this SELECT alone. The error is
// dbmutex.ErrNotRegistered if the plugin is missing or db is nil; dbmutex.ErrInvalidSettings for an option or a Held that is
// not allowed; or the database's, which says so if the table is missing. If the database fails later, the run fails, and
// asynq retries it.
func (p Policy) NonOverlapping(db *dbmutex.DB, opts ...dbmutex.Option) (asynq.MiddlewareFunc, error) {
	if p.Held < Drop || p.Held > Revoke {
		return nil, fmt.Errorf("%w: there is no Held %d", dbmutex.ErrInvalidSettings, p.Held)
	}
	opts = slices.Clip(slices.Clone(opts)) // every run appends one of its own
	if _, err := db.Mutex("asynqmutex", opts...).Holder(); err != nil {
		return nil, err
	}
	if p.Key == nil {
		p.Key = func(_ context.Context, task *asynq.Task) string { return task.Type() }
	}
	return func(next asynq.Handler) asynq.Handler {
		return asynq.HandlerFunc(func(ctx context.Context, task *asynq.Task) error {
			id := p.Key(ctx, task)
			if err := checkTwice(ctx, id); err != nil {
				return err
			}
			self := describe(ctx)
			lease, err := db.WithContext(ctx).Mutex(id, append(opts, forTask(self))...).Acquire()
			if err != nil {
				return p.notAcquired(ctx, db, self, err)
			}
			var own error
			err = lease.Do(func(ctx context.Context) error {
				own = next.ProcessTask(ctx, task)
				return own
			})
			timeout := timeoutOf(err, id)
			switch {
			case timeout == nil:
				return err
			case p.OnTimeout != nil:
				return p.OnTimeout(ctx, task, err)
			}
			return timedOut(ctx, db, self, timeout, own, err)
		})
	}, nil
}

// checkTwice refuses a run that holds its mutex already.
func checkTwice(ctx context.Context, id string) error {
	if lease, ok := dbmutex.LeaseFrom(ctx); ok && lease.LockID() == id {
		return fmt.Errorf("%w: this run holds %q already, and a mutex is not reentrant: is the middleware there twice?",
			dbmutex.ErrInvalidSettings, id)
	}
	return nil
}

// timeoutOf is the timeout of the run's own lease, or nil. It comes first in err. The task's error may be that of another
// mutex.
func timeoutOf(err error, id string) *dbmutex.TimeoutError {
	var timeout *dbmutex.TimeoutError
	if !errors.As(err, &timeout) || timeout.LockID != id {
		return nil
	}
	return timeout
}

// timedOut is what asynq gets of a run whose lease ended before it did.
func timedOut(ctx context.Context, db *dbmutex.DB, self string, timeout *dbmutex.TimeoutError, own, err error) error {
	if errors.Is(own, asynq.RevokeTask) {
		err = fmt.Errorf("%w, and the task asked to be revoked: %s", timeout, own.Error())
	}
	if ctx.Err() != nil { // asynq has given the run up, and throws the error away
		db.Logger.Error(ctx, "%s: %v", self, err)
	}
	return err
}

// notAcquired is what becomes of a task that did not run.
func (p Policy) notAcquired(ctx context.Context, db *dbmutex.DB, self string, err error) error {
	var held *dbmutex.HeldError
	switch {
	case !errors.As(err, &held):
		return err
	case strings.HasSuffix(held.Holder, self):
		return retry(ctx, fmt.Errorf("%w (an earlier run of this task)", err))
	case p.Held == Retry:
		return retry(ctx, err)
	case p.Held == Revoke:
		return &notRun{fmt.Errorf("%w: %w", err, asynq.RevokeTask)}
	}
	db.Logger.Warn(ctx, "dropped %s: %v", self, err)
	return nil
}

// describe names the task of a run: for people, and to know an earlier run of the same task.
func describe(ctx context.Context) string {
	id, inServer := asynq.GetTaskID(ctx)
	if !inServer { // every call is a task of its own
		id = rand.Text()
	}
	queue, _ := asynq.GetQueueName(ctx)
	return fmt.Sprintf("task %q of queue %q", id, queue)
}

// forTask makes the settings those of one run.
func forTask(self string) dbmutex.Option {
	return func(s *dbmutex.Settings) {
		s.Holder += ", " + self
		s.SkipHeld = false
	}
}

// retry is the error that gives a task back for later.
func retry(ctx context.Context, err error) error {
	retried, _ := asynq.GetRetryCount(ctx)
	if most, ok := asynq.GetMaxRetry(ctx); ok && retried >= most {
		err = fmt.Errorf("%w; asynq archives the task, which has no retries left: give it a greater MaxRetry", err)
	}
	return &notRun{err}
}

// notRun is the error of a run that found the mutex held. dbmutex.ErrNotAcquired does not tell it from others: a task's own
// error may match that, too.
type notRun struct{ error }

// Unwrap returns why.
func (e *notRun) Unwrap() error { return e.error }

// IsFailure is for asynq.Config.IsFailure. It is false for nil and for the error of a run that found its mutex held. It is
// true for any other error, as asynq's default is.
func IsFailure(err error) bool {
	var held *notRun
	return err != nil && !errors.As(err, &held)
}
