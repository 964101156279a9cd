package asynqmutex_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	asynqmutex "github.com/gorm-dbmutex/dbmutex/contrib/asynq"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func unexpected(context.Context, *asynq.Task) error {
	panic("the task ran without the mutex")
}

func TestTasksOfOneTypeDoNotOverlap(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		started, proceed := make(chan string, 10), make(chan struct{})
		work := func(ctx context.Context, _ *asynq.Task) error {
			id, _ := asynq.GetTaskID(ctx)
			started <- id
			<-proceed
			return nil
		}
		opts := make([]dbmutex.Option, 0, 8) // with room, which runs must not share
		nonOverlapping, err := asynqmutex.NonOverlapping(p.db, opts...)
		require.NoError(t, err)
		for range 2 {
			p.serve(t, nonOverlapping, work)
		}
		tasks := map[string]*asynq.TaskInfo{}
		for range 6 {
			task := p.enqueue(t, "report")
			tasks[task.ID] = task
		}
		first := tasks[receive(t, started)]
		for id, task := range tasks {
			if task != first {
				p.requireBecomes(t, task, asynq.TaskStateCompleted)
				require.Contains(t, p.log.String(), fmt.Sprintf("dropped task %q of queue \"default\"", id))
			}
		}
		require.Contains(t, p.log.String(), `dbmutex: "report" is held by`)
		require.Equal(t, 5, strings.Count(p.log.String(), "dropped"))
		p.requireBecomes(t, first, asynq.TaskStateActive)
		close(proceed)
		p.requireBecomes(t, first, asynq.TaskStateCompleted)
		require.Empty(t, started)

		next := p.enqueue(t, "report")
		require.Equal(t, next.ID, receive(t, started))
	})
}

func TestTypesDoNotExcludeOneAnother(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		started, proceed := make(chan string, 2), make(chan struct{})
		p.serve(t, p.middleware(t, asynqmutex.Policy{}), func(_ context.Context, task *asynq.Task) error {
			started <- task.Type()
			<-proceed
			return nil
		})
		p.enqueue(t, "report")
		p.enqueue(t, "report:monthly")
		both := []string{receive(t, started), receive(t, started)}
		close(proceed)
		require.ElementsMatch(t, []string{"report", "report:monthly"}, both)
	})
}

func TestKey(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		m := p.middleware(t, asynqmutex.Policy{
			Key: func(ctx context.Context, task *asynq.Task) string {
				queue, _ := asynq.GetQueueName(ctx)
				return queue + string(task.Payload())
			},
		})
		ran := make(chan string, 10)
		_, errs := p.serve(t, m, func(ctx context.Context, _ *asynq.Task) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			ran <- lease.LockID()
			return nil
		}, func(c *asynq.Config) { c.Queues = map[string]int{"low": 1, "high": 1} })
		p.hold(t, "low")
		p.requireBecomes(t, p.enqueue(t, "a", asynq.Queue("low")), asynq.TaskStateCompleted)
		require.Empty(t, ran)
		p.requireBecomes(t, p.enqueue(t, "a", asynq.Queue("high")), asynq.TaskStateCompleted)
		require.Equal(t, "high", receive(t, ran))

		_, err := p.client.Enqueue(asynq.NewTask("a", []byte("\x00")), asynq.Queue("low"))
		require.NoError(t, err)
		require.ErrorIs(t, receive(t, errs), dbmutex.ErrInvalidLockID)
	})
}

func TestDropCountsAsDone(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		_, errs := p.serve(t, p.middleware(t, asynqmutex.Policy{}), unexpected)
		p.hold(t, "report")
		for range 2 { // the first makes room for the second
			task := p.requireBecomes(t, p.enqueue(t, "report", asynq.Unique(time.Hour), asynq.MaxRetry(0)), asynq.TaskStateCompleted)
			require.Empty(t, task.Result)
		}
		require.Empty(t, errs)
	})
}

func TestRetryIsNoFailure(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var ran atomic.Int32
		_, errs := p.serve(
			t, p.middleware(t, asynqmutex.Policy{Held: asynqmutex.Retry}),
			func(context.Context, *asynq.Task) error {
				ran.Add(1)
				return nil
			},
			retryAtOnce,
		)
		lease := p.hold(t, "report")
		task := p.enqueue(t, "report", asynq.MaxRetry(1))
		for range 3 {
			err := receive(t, errs)
			require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
			var held *dbmutex.HeldError
			require.ErrorAs(t, err, &held)
			require.Equal(t, "report", held.LockID)
			require.False(t, asynqmutex.IsFailure(err))
			require.NotContains(t, err.Error(), "MaxRetry")
		}
		require.Zero(t, ran.Load())
		require.NoError(t, lease.Release())
		require.Zero(t, p.requireBecomes(t, task, asynq.TaskStateCompleted).Retried)
		require.EqualValues(t, 1, ran.Load())
		require.NotContains(t, p.log.String(), "dropped")
	})
}

func TestRetryIsAFailureUnlessAsynqIsTold(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		p.serve(t, p.middleware(t, asynqmutex.Policy{Held: asynqmutex.Retry}), unexpected,
			func(c *asynq.Config) { c.IsFailure = nil })
		p.hold(t, "report")
		require.Equal(t, 1, p.requireBecomes(t, p.enqueue(t, "report"), asynq.TaskStateRetry).Retried)
	})
}

func TestRetryWithNoRetriesLeft(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		_, errs := p.serve(t, p.middleware(t, asynqmutex.Policy{Held: asynqmutex.Retry}), unexpected)
		p.hold(t, "report")
		task := p.requireBecomes(t, p.enqueue(t, "report", asynq.MaxRetry(0)), asynq.TaskStateArchived)
		require.Contains(t, task.LastErr, "asynq archives the task, which has no retries left")
		require.ErrorIs(t, receive(t, errs), dbmutex.ErrNotAcquired)
	})
}

func TestRetryAfterFailuresThatUsedUpTheRetries(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		_, errs := p.serve(
			t, p.middleware(t, asynqmutex.Policy{Held: asynqmutex.Retry}),
			func(context.Context, *asynq.Task) error {
				return errors.New("it fails")
			},
		)
		task := p.enqueue(t, "report", asynq.MaxRetry(1))
		require.EqualError(t, receive(t, errs), "it fails")
		require.Equal(t, 1, p.requireBecomes(t, task, asynq.TaskStateRetry).Retried)
		p.hold(t, "report")
		require.NoError(t, p.inspector.RunTask(task.Queue, task.ID))
		require.Contains(t, p.requireBecomes(t, task, asynq.TaskStateArchived).LastErr, "which has no retries left")
	})
}

func TestRevoke(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		_, errs := p.serve(t, p.middleware(t, asynqmutex.Policy{Held: asynqmutex.Revoke}), unexpected)
		p.hold(t, "report")
		task := p.enqueue(t, "report")
		err := receive(t, errs)
		require.ErrorIs(t, err, asynq.RevokeTask)
		require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
		var held *dbmutex.HeldError
		require.ErrorAs(t, err, &held)
		require.Eventually(t, func() bool {
			_, err := p.inspector.GetTaskInfo(task.Queue, task.ID)
			return errors.Is(err, asynq.ErrTaskNotFound)
		}, time.Minute, 10*time.Millisecond)
		require.NotContains(t, p.log.String(), "dropped")
	})
}

func TestWaitDelaysTheRun(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		tried, ran := make(chan struct{}, 1), make(chan struct{}, 1)
		m := p.middleware(t, asynqmutex.Policy{
			Key: func(_ context.Context, task *asynq.Task) string {
				tried <- struct{}{}
				return task.Type()
			},
		}, dbmutex.WithWait(dbmutex.Forever))
		p.serve(t, m, func(context.Context, *asynq.Task) error {
			ran <- struct{}{}
			return nil
		})
		lease := p.hold(t, "report")
		task := p.enqueue(t, "report")
		receive(t, tried)
		require.Empty(t, ran)
		require.NoError(t, lease.Release())
		p.requireBecomes(t, task, asynq.TaskStateCompleted)
		receive(t, ran)
	})
}

func TestTheMiddlewareTwice(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		m := p.middleware(t, asynqmutex.Policy{})
		_, errs := p.serve(t, func(next asynq.Handler) asynq.Handler { return m(m(next)) }, unexpected)
		p.requireBecomes(t, p.enqueue(t, "report"), asynq.TaskStateRetry)
		err := receive(t, errs)
		require.ErrorContains(t, err, "is the middleware there twice?")
		require.True(t, asynqmutex.IsFailure(err))
	})
}

func TestAPanicReleasesAndGoesOn(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		_, errs := p.serve(t, p.middleware(t, asynqmutex.Policy{}), func(context.Context, *asynq.Task) error { panic("no") })
		p.requireBecomes(t, p.enqueue(t, "report"), asynq.TaskStateRetry)
		require.True(t, asynq.IsPanicError(receive(t, errs)))
		p.requireBecomesFree(t, "report")
	})
}

func TestAsynqsTimeoutEndsTheRun(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var first sync.Once
		causes := make(chan error, 1)
		_, errs := p.serve(t, p.middleware(t, asynqmutex.Policy{}), func(ctx context.Context, _ *asynq.Task) error {
			first.Do(func() {
				<-ctx.Done()
				causes <- context.Cause(ctx)
			})
			return ctx.Err()
		}, retryAtOnce)
		task := p.enqueue(t, "report", asynq.Timeout(time.Second))
		require.ErrorIs(t, receive(t, errs), context.DeadlineExceeded)
		require.ErrorIs(t, receive(t, causes), context.DeadlineExceeded)
		p.requireBecomes(t, task, asynq.TaskStateCompleted)
		p.requireBecomesFree(t, "report")
	})
}

// A task that asynq pushes back, as its worker shuts down, is not lost while what is left of its run has the mutex.
func TestShutdown(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		for taskType, held := range map[string]asynqmutex.Held{
			"drop": asynqmutex.Drop, "retry": asynqmutex.Retry, "revoke": asynqmutex.Revoke,
		} {
			m := p.middleware(t, asynqmutex.Policy{Held: held})
			started, proceed, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			old, _ := p.serve(t, m, func(ctx context.Context, _ *asynq.Task) error {
				close(started)
				<-proceed
				ended <- ctx.Err()
				return nil
			}, func(c *asynq.Config) { c.ShutdownTimeout = time.Millisecond })
			task := p.enqueue(t, taskType)
			receive(t, started)
			old.Shutdown()
			p.requireBecomes(t, task, asynq.TaskStatePending)

			ran := make(chan struct{}, 1)
			later, errs := p.serve(t, m, func(context.Context, *asynq.Task) error {
				ran <- struct{}{}
				return nil
			}, retryAtOnce)
			err := receive(t, errs)
			require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
			require.ErrorContains(t, err, "an earlier run of this task")
			require.False(t, asynqmutex.IsFailure(err))
			require.Empty(t, ran)
			if held == asynqmutex.Drop { // another task is dropped as ever
				p.requireBecomes(t, p.enqueue(t, taskType), asynq.TaskStateCompleted)
				require.Empty(t, ran)
			}

			close(proceed)
			require.ErrorIs(t, receive(t, ended), context.Canceled)
			p.requireBecomes(t, task, asynq.TaskStateCompleted)
			receive(t, ran)
			p.requireBecomesFree(t, taskType)
			later.Shutdown()
		}
	})
}

func TestOutsideOfAServer(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		m := p.middleware(t, asynqmutex.Policy{})
		ran := false
		require.NoError(t, m(asynq.HandlerFunc(func(_ context.Context, task *asynq.Task) error {
			ran = true
			return m(asynq.HandlerFunc(unexpected)).ProcessTask(context.Background(), task)
		})).ProcessTask(context.Background(), asynq.NewTask("report", nil)))
		require.True(t, ran)
		require.Contains(t, p.log.String(), "dropped")
	})
}

func TestIsFailure(t *testing.T) {
	require.False(t, asynqmutex.IsFailure(nil))
	require.True(t, asynqmutex.IsFailure(errors.New("own")))
	require.True(t, asynqmutex.IsFailure(dbmutex.ErrNotAcquired), "a task's own")
}

func TestBadWiring(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		open := func(plugin bool) *dbmutex.DB {
			gdb := d.Open(t)
			if plugin {
				require.NoError(t, gdb.Use(dbmutex.New(dbmutex.DefaultSettings())))
			}
			return dbmutex.Wrap(gdb)
		}
		db := open(true)
		_, err := asynqmutex.NonOverlapping(db)
		require.ErrorContains(t, err, "AutoMigrate")
		require.NoError(t, db.Migrate())
		ended, end := context.WithCancel(context.Background())
		end()
		for name, test := range map[string]struct {
			policy asynqmutex.Policy
			db     *dbmutex.DB
			opts   []dbmutex.Option
			want   error
		}{
			"nil handle":    {db: nil, want: dbmutex.ErrNotRegistered},
			"no plugin":     {db: open(false), want: dbmutex.ErrNotRegistered},
			"dry run":       {db: db.Session(&gorm.Session{DryRun: true}), want: dbmutex.ErrDryRun},
			"transaction":   {db: dbmutex.Wrap(begin(t, db)), want: dbmutex.ErrInTransaction},
			"TTL":           {db: db, opts: []dbmutex.Option{dbmutex.WithTTL(-1)}, want: dbmutex.ErrInvalidSettings},
			"Held":          {db: db, policy: asynqmutex.Policy{Held: 3}, want: dbmutex.ErrInvalidSettings},
			"negative Held": {db: db, policy: asynqmutex.Policy{Held: -1}, want: dbmutex.ErrInvalidSettings},
			"context":       {db: db.WithContext(ended), want: context.Canceled},
			"none":          {db: db, opts: []dbmutex.Option{dbmutex.WithSkipHeld(), nil}, want: nil},
		} {
			m, err := test.policy.NonOverlapping(test.db, test.opts...)
			if test.want == nil {
				require.NoError(t, err, name)
				require.NotNil(t, m, name)
				continue
			}
			require.ErrorIs(t, err, test.want, name)
			require.True(t, strings.HasPrefix(err.Error(), "dbmutex: "), err)
			require.Nil(t, m, name)
		}
	})
}

func begin(t *testing.T, db *dbmutex.DB) *gorm.DB {
	tx := db.Begin()
	t.Cleanup(func() { tx.Rollback() })
	return tx
}
