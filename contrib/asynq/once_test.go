package asynqmutex_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	asynqmutex "github.com/gorm-dbmutex/dbmutex/contrib/asynq"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

func (p *place) oncePerTask(t *testing.T, opts ...dbmutex.Option) asynq.MiddlewareFunc {
	t.Helper()
	m, err := asynqmutex.OncePerTask(p.db, time.Hour, opts...)
	require.NoError(t, err)
	return m
}

// onceID is the id under which the success of a task is recorded.
func onceID(task *asynq.TaskInfo) string { return "asynq/default/" + task.ID }

// requireSucceeded wants a record of a task's success.
func (p *place) requireSucceeded(t *testing.T, task *asynq.TaskInfo, want bool) {
	t.Helper()
	record, err := p.db.Once(onceID(task), time.Hour).Done()
	require.NoError(t, err)
	require.Equal(t, want, record != nil)
}

func TestATaskSucceedsOnce(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var runs, deliveries atomic.Int32
		m := p.oncePerTask(t)
		_, errs := p.serve(t, func(next asynq.Handler) asynq.Handler {
			return asynq.HandlerFunc(func(ctx context.Context, task *asynq.Task) error {
				err := m(next).ProcessTask(ctx, task)
				if deliveries.Add(1) == 3 { // asynq does not learn of the success
					assert.NoError(t, err)
					return errors.New("the worker lost Redis")
				}
				return err
			})
		}, func(ctx context.Context, _ *asynq.Task) error {
			lease, ok := dbmutex.LeaseFrom(ctx)
			assert.True(t, ok)
			assert.NoError(t, lease.Renew())
			if runs.Add(1) < 3 {
				return errOwn
			}
			return nil
		}, retryAtOnce)
		task := p.requireBecomes(t, p.enqueue(t, "report"), asynq.TaskStateCompleted)
		require.EqualValues(t, 4, deliveries.Load())
		require.EqualValues(t, 3, runs.Load(), "two failures, and one success")
		require.Equal(t, errOwn, receive(t, errs))
		p.requireSucceeded(t, task, true)

		p.requireBecomes(t, p.enqueue(t, "report"), asynq.TaskStateCompleted)
		require.EqualValues(t, 4, runs.Load(), "another task of the type runs")
		require.NoError(t, p.inspector.DeleteTask(task.Queue, task.ID))
		p.requireBecomes(t, p.enqueue(t, "report", asynq.TaskID(task.ID)), asynq.TaskStateCompleted)
		require.EqualValues(t, 4, runs.Load(), "the id has been used")
	})
}

// TestATaskThatIsDeliveredAgainWhileItRuns does not run beside its earlier run, nor after that has succeeded.
func TestATaskThatIsDeliveredAgainWhileItRuns(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		m := p.oncePerTask(t)
		started, proceed := make(chan struct{}), make(chan struct{})
		old, _ := p.serve(t, m, func(context.Context, *asynq.Task) error {
			close(started)
			<-proceed
			return nil
		}, func(c *asynq.Config) { c.ShutdownTimeout = time.Millisecond })
		task := p.enqueue(t, "report", asynq.MaxRetry(1))
		receive(t, started)
		old.Shutdown()
		p.requireBecomes(t, task, asynq.TaskStatePending)

		_, errs := p.serve(t, m, unexpected, retryAtOnce)
		for range 3 {
			err := receive(t, errs)
			require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
			require.ErrorContains(t, err, "an earlier run of this task")
			require.False(t, asynqmutex.IsFailure(err))
		}
		close(proceed)
		p.requireBecomes(t, task, asynq.TaskStateCompleted)
		p.requireSucceeded(t, task, true)
	})
}

func TestATaskWhoseLeaseEnds(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		for _, lost := range []bool{true, false} {
			var runs atomic.Int32
			m := p.oncePerTask(t, dbmutex.WithTTL(2*time.Second))
			server, errs := p.serve(t, m, func(ctx context.Context, _ *asynq.Task) error {
				if runs.Add(1) > 1 {
					return nil
				}
				if lease, _ := dbmutex.LeaseFrom(ctx); lost {
					return p.silent().Where("lock_id = ?", lease.LockID()).Delete(&dbmutex.DBOnce{}).Error
				}
				<-ctx.Done()
				return nil
			}, retryAtOnce)
			task := p.enqueue(t, "report")
			p.requireBecomes(t, task, asynq.TaskStateCompleted)
			requireTimeout(t, receive(t, errs), onceID(task), lost)
			p.requireSucceeded(t, task, true)
			if lost {
				require.EqualValues(t, 2, runs.Load(), "nothing was recorded")
			} else {
				require.EqualValues(t, 1, runs.Load(), "its success was recorded")
			}
			server.Shutdown()
		}
	})
}

func TestTheOwnErrorOfATaskThatIsToSucceedOnce(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		for state, own := range map[asynq.TaskState]error{
			asynq.TaskStateRetry:    fmt.Errorf("another mutex: %w", &dbmutex.HeldError{LockID: "other"}),
			asynq.TaskStateArchived: fmt.Errorf("never: %w", asynq.SkipRetry),
		} {
			server, errs := p.serve(t, p.oncePerTask(t), func(context.Context, *asynq.Task) error { return own })
			task := p.requireBecomes(t, p.enqueue(t, "report"), state)
			require.Equal(t, own, receive(t, errs))
			require.True(t, asynqmutex.IsFailure(own))
			p.requireSucceeded(t, task, false)
			server.Shutdown()
		}
	})
}

func TestATaskThatPanicsHasNotSucceeded(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var runs atomic.Int32
		_, errs := p.serve(t, p.oncePerTask(t), func(context.Context, *asynq.Task) error {
			if runs.Add(1) == 1 {
				panic("no")
			}
			return nil
		}, retryAtOnce)
		task := p.requireBecomes(t, p.enqueue(t, "report"), asynq.TaskStateCompleted)
		require.True(t, asynq.IsPanicError(receive(t, errs)))
		require.EqualValues(t, 2, runs.Load())
		p.requireSucceeded(t, task, true)
	})
}

func TestOncePerTaskWithNonOverlapping(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		once, nonOverlapping := p.oncePerTask(t), p.middleware(t, asynqmutex.Policy{Held: asynqmutex.Retry})
		held := p.hold(t, "report")
		var runs atomic.Int32
		_, errs := p.serve(t, func(next asynq.Handler) asynq.Handler { return once(nonOverlapping(next)) },
			func(context.Context, *asynq.Task) error { runs.Add(1); return nil }, retryAtOnce)
		task := p.enqueue(t, "report")
		require.False(t, asynqmutex.IsFailure(receive(t, errs)))
		require.NoError(t, held.Release())
		p.requireBecomes(t, task, asynq.TaskStateCompleted)
		require.EqualValues(t, 1, runs.Load())
	})
}

func TestOncePerTaskThatCannotWork(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		for _, keep := range []time.Duration{0, -time.Hour} {
			_, err := asynqmutex.OncePerTask(p.db, keep)
			require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
		}
		_, err := asynqmutex.OncePerTask(p.db, time.Hour, dbmutex.WithMinHold(time.Second))
		require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
		_, err = asynqmutex.OncePerTask(nil, time.Hour)
		require.ErrorIs(t, err, dbmutex.ErrNotRegistered)

		m := p.oncePerTask(t)
		task := asynq.NewTask("report", nil)
		require.ErrorIs(t, m(asynq.HandlerFunc(unexpected)).ProcessTask(t.Context(), task), dbmutex.ErrInvalidSettings)
		server, errs := p.serve(t, func(next asynq.Handler) asynq.Handler { return m(m(next)) }, unexpected)
		p.requireBecomes(t, p.enqueue(t, "report"), asynq.TaskStateRetry)
		require.ErrorContains(t, receive(t, errs), "is the middleware there twice?")
		server.Shutdown()

		_, errs = p.serve(t, m, unexpected)
		p.enqueue(t, "report", asynq.TaskID(strings.Repeat("t", dbmutex.MaxLockIDLength)))
		require.ErrorIs(t, receive(t, errs), dbmutex.ErrInvalidLockID)
		require.NoError(t, p.silent().Migrator().DropTable(&dbmutex.DBOnce{}))
		p.enqueue(t, "report")
		require.ErrorContains(t, receive(t, errs), "DBOnce")
		_, err = asynqmutex.OncePerTask(testdb.Register(t, p.database.Open(t), dbmutex.DefaultSettings()), time.Hour)
		require.ErrorContains(t, err, "DBOnce")
	})
}

// TestAWorkerThatIsKilledInTheMiddleOfATask: the task, as another queue of the same name delivers it again, runs after the
// TTL, and then never again.
func TestAWorkerThatIsKilledInTheMiddleOfATask(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		env := []string{networkVariable + "=" + p.redis.Network, addressVariable + "=" + p.redis.Addr}
		killed := testprocess.Start(t, p.database, "once", env...)
		task := p.enqueue(t, "report")
		require.Equal(t, "runs "+task.ID, killed.Line(t))
		killed.Kill(t)

		again := p.elsewhere(t)
		var runs atomic.Int32
		_, errs := again.serve(t, again.oncePerTask(t), func(context.Context, *asynq.Task) error { runs.Add(1); return nil },
			func(c *asynq.Config) {
				c.RetryDelayFunc = func(int, error, *asynq.Task) time.Duration { return time.Second }
			})
		for range 2 {
			task = again.enqueue(t, "report", asynq.TaskID(task.ID))
			again.requireBecomes(t, task, asynq.TaskStateCompleted)
			require.EqualValues(t, 1, runs.Load())
			require.NoError(t, again.inspector.DeleteTask(task.Queue, task.ID))
		}
		require.False(t, asynqmutex.IsFailure(receive(t, errs)))
	})
}
