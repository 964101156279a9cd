package asynqmutex

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hibiken/asynq"

	"github.com/gorm-dbmutex/dbmutex"
)

// OncePerTask makes a middleware that lets each task succeed once, and records that by the task's queue and id. asynq
// delivers at least once: if a worker dies or loses Redis after the work, the task is delivered again. It then finds its
// record, and counts as done without running. A task that has failed has no record, and is retried as without the
// middleware.
//
// Records are dbmutex.Once, with the plugin's settings as opts change them, and so they need the table of dbmutex.DBOnce.
// The options, the task's context and the holder's name are as for NonOverlapping. Give the middleware to
// asynq.ServeMux.Use. The two go together if OncePerTask comes first; a task that Drop drops counts as a success then.
//
// keep is how long a success is remembered: for longer than a task may come late, 7 days for example. A task of asynq.TaskID
// whose id is used again within that time does not run: it counts as done.
//
// A run gets an error, and does not run the task:
//   - It finds an earlier run of the task still at work, which asynq has given up. The task is given back for later. So
//     asynq.Config needs IsFailure and RetryDelayFunc, as under Retry.
//   - The database fails. asynq retries the task.
//   - The queue and the id have more than some 240 characters: dbmutex.ErrInvalidLockID.
//   - It is not in a worker of asynq: dbmutex.ErrInvalidSettings, as there is no id.
//
// If the lease ended before the task did, the error matches dbmutex.ErrTimeout, and asynq retries the task. If the lease was
// lost, nothing is recorded, and the task runs again. If it only ran out, the success is recorded. As for NonOverlapping,
// the error is logged if nobody gets it.
//
// What is not guaranteed: the task runs again if the worker dies between the end of the work and the record. To forbid that,
// use dbmutex.Once.Transaction in the task rather than the middleware. A result of asynq.ResultWriter is not written again.
//
// OncePerTask checks db with one SELECT. The context of db counts for this SELECT alone. The error is
// dbmutex.ErrNotRegistered if the plugin is missing or db is nil; dbmutex.ErrInvalidSettings for a keep that is not
// positive, or settings that are not allowed, such as a MinHold; or the database's, which says so if the table is missing.
func OncePerTask(db *dbmutex.DB, keep time.Duration, opts ...dbmutex.Option) (asynq.MiddlewareFunc, error) {
	opts = slices.Clip(slices.Clone(opts)) // every run appends one of its own
	if _, err := db.Once("asynqmutex", keep, opts...).Done(); err != nil {
		return nil, err
	}
	return func(next asynq.Handler) asynq.Handler {
		return asynq.HandlerFunc(func(ctx context.Context, task *asynq.Task) error {
			name, ok := asynq.GetTaskID(ctx)
			if !ok {
				return fmt.Errorf("%w: the task has no id, as this is no worker of asynq", dbmutex.ErrInvalidSettings)
			}
			queue, _ := asynq.GetQueueName(ctx)
			id, self := "asynq/"+queue+"/"+name, describe(ctx)
			if err := checkTwice(ctx, id); err != nil {
				return err
			}
			ran := false
			var own error
			err := db.WithContext(ctx).Once(id, keep, append(opts, forTask(self))...).Do(func(ctx context.Context) error {
				ran = true
				own = next.ProcessTask(ctx, task)
				return own
			})
			switch timeout := timeoutOf(err, id); {
			case timeout != nil:
				return timedOut(ctx, db, self, timeout, own, err)
			case !ran && errors.Is(err, dbmutex.ErrNotAcquired):
				return retry(ctx, fmt.Errorf("%w (an earlier run of this task)", err))
			case !ran && err == nil:
				db.Logger.Info(ctx, "dbmutex: %s has succeeded before, and does not run again", self)
			}
			return err
		})
	}, nil
}
