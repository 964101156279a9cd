package asynqmutex_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/assert"
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
		_, errs := p.serve(t, p.middleware(t, asynqmutex.Policy{Held: asynqmutex.Retry}), func(context.Context, *asynq.Task) error {
			ran.Add(1)
			return nil
		}, retryAtOnce)
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
		_, errs := p.serve(t, p.middleware(t, asynqmutex.Policy{Held: asynqmutex.Retry}), func(context.Context, *asynq.Task) error {
			return errors.New("it fails")
		})
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

func TestTheContextIsTheLeases(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		type seen struct {
			lease        *dbmutex.Lease
			id, holder   string
			heldByOthers error
		}
		runs := make(chan seen, 2)
		work := func(ctx context.Context, _ *asynq.Task) error {
			var s seen
			s.lease, _ = dbmutex.LeaseFrom(ctx)
			s.id, _ = asynq.GetTaskID(ctx)
			row, _ := p.mutex("report").Holder()
			s.holder = row.Holder
			_, s.heldByOthers = p.mutex("report").Acquire()
			runs <- s
			return nil
		}
		host, _ := os.Hostname()
		for holder, opts := range map[string][]dbmutex.Option{
			fmt.Sprintf("%s/%d", host, os.Getpid()): nil,
			"machine-7":                             {dbmutex.WithHolder("machine-7")},
		} {
			server, _ := p.serve(t, p.middleware(t, asynqmutex.Policy{}, opts...), work)
			task := p.enqueue(t, "report")
			s := receive(t, runs)
			p.requireBecomes(t, task, asynq.TaskStateCompleted)
			require.Equal(t, "report", s.lease.LockID())
			require.ErrorIs(t, s.lease.Context().Err(), context.Canceled, "it is released")
			require.Equal(t, task.ID, s.id)
			require.Equal(t, fmt.Sprintf(`%s, task %q of queue "default"`, holder, task.ID), s.holder)
			require.ErrorContains(t, s.heldByOthers, s.holder)
			server.Shutdown()
		}
	})
}

var errOwn = errors.New("the task's own")

func TestALostLease(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var told atomic.Int32
		onTimeout := func(ctx context.Context, task *asynq.Task, err error) error {
			told.Add(1)
			assert.NoError(t, ctx.Err())
			assert.ErrorIs(t, err, dbmutex.ErrTimeout)
			if task.Type() == "fine" {
				return nil
			}
			return fmt.Errorf("it may have overlapped: %w: %w", err, asynq.SkipRetry)
		}
		for _, test := range []struct {
			taskType  string
			onTimeout func(context.Context, *asynq.Task, error) error
			result    error
			state     asynq.TaskState
			told      int32
		}{
			{"report", nil, nil, asynq.TaskStateRetry, 0},
			{"report", nil, errOwn, asynq.TaskStateRetry, 0},
			{"report", nil, asynq.SkipRetry, asynq.TaskStateArchived, 0},
			{"report", onTimeout, nil, asynq.TaskStateArchived, 1},
			{"fine", onTimeout, errOwn, asynq.TaskStateCompleted, 2},
		} {
			server, errs := p.serve(t, p.middleware(t, asynqmutex.Policy{OnTimeout: test.onTimeout}),
				func(_ context.Context, task *asynq.Task) error {
					assert.NoError(t, p.mutex(task.Type()).ForceRelease())
					return test.result
				})
			p.requireBecomes(t, p.enqueue(t, test.taskType), test.state)
			require.Equal(t, test.told, told.Load())
			if test.state != asynq.TaskStateCompleted {
				err := receive(t, errs)
				requireTimeout(t, err, test.taskType, true)
				require.True(t, asynqmutex.IsFailure(err))
				if test.result != nil {
					require.ErrorIs(t, err, test.result)
				}
			}
			require.Empty(t, errs)
			require.Empty(t, p.log.String(), "nothing is logged that is returned")
			server.Shutdown()
		}
	})
}

func TestALeaseThatRunsOut(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		_, errs := p.serve(t, p.middleware(t, asynqmutex.Policy{}, dbmutex.WithTTL(20*time.Millisecond)),
			func(ctx context.Context, _ *asynq.Task) error {
				<-ctx.Done()
				return context.Cause(ctx)
			})
		task := p.requireBecomes(t, p.enqueue(t, "report"), asynq.TaskStateRetry)
		requireTimeout(t, receive(t, errs), "report", false)
		require.Contains(t, task.LastErr, "nobody else held the mutex meanwhile")
	})
}

// TestTheEndOfALease: OnTimeout, or else asynq, gets an error that says of the run's own lease what it can know first of
// all, before what the task has heard.
func TestTheEndOfALease(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		for _, lost := range []bool{false, true} {
			another := &dbmutex.TimeoutError{LockID: "another", Lost: !lost}
			for name, result := range map[string]func(ctx context.Context) error{
				"nil":                func(context.Context) error { return nil },
				"its own":            func(context.Context) error { return errOwn },
				"to be revoked":      func(context.Context) error { return fmt.Errorf("stale: %w", asynq.RevokeTask) },
				"another mutex's":    func(context.Context) error { return another },
				"the cause":          context.Cause,
				"the cause, wrapped": func(ctx context.Context) error { return fmt.Errorf("report: %w", context.Cause(ctx)) },
			} {
				var own error
				run := func(policy asynqmutex.Policy) error {
					m := p.middleware(t, policy, dbmutex.WithTTL(20*time.Millisecond))
					return m(asynq.HandlerFunc(func(ctx context.Context, _ *asynq.Task) error {
						<-ctx.Done()
						if lost {
							next, err := p.db.Mutex("report", func(s *dbmutex.Settings) {
								s.SkipHeld, s.Wait = false, dbmutex.Forever
							}).Acquire()
							assert.NoError(t, err)
							assert.NoError(t, next.Release())
						}
						own = result(ctx)
						return own
					})).ProcessTask(t.Context(), asynq.NewTask("report", nil))
				}
				told := 0
				require.Equal(t, errOwn, run(asynqmutex.Policy{OnTimeout: func(_ context.Context, _ *asynq.Task, err error) error {
					told++
					requireTimeout(t, err, "report", lost)
					if own != nil && name != "the cause" {
						require.ErrorIs(t, err, own, name)
					}
					return errOwn
				}}))
				require.Equal(t, 1, told)

				err := run(asynqmutex.Policy{})
				requireTimeout(t, err, "report", lost)
				require.NotErrorIs(t, err, asynq.RevokeTask, "asynq would keep no record of it")
				if name == "to be revoked" {
					require.ErrorContains(t, err, ", and the task asked to be revoked: stale: ")
				}
			}
		}
	})
}

func TestATasksOwnErrorPassesUnchanged(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		policy := asynqmutex.Policy{
			OnTimeout: func(context.Context, *asynq.Task, error) error { return errors.New("the lease had not ended") },
		}
		for state, own := range map[asynq.TaskState]error{
			asynq.TaskStateRetry:    fmt.Errorf("another mutex: %w", &dbmutex.HeldError{LockID: "other"}),
			asynq.TaskStateArchived: fmt.Errorf("never: %w", asynq.SkipRetry),
		} {
			server, errs := p.serve(t, p.middleware(t, policy), func(context.Context, *asynq.Task) error { return own })
			task := p.requireBecomes(t, p.enqueue(t, "report"), state)
			require.Equal(t, own, receive(t, errs))
			require.Equal(t, own.Error(), task.LastErr)
			require.True(t, asynqmutex.IsFailure(own))
			require.NotContains(t, p.log.String(), "dropped")
			server.Shutdown()
		}
	})
}

func TestAnotherMutexsLostLease(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		for _, both := range []bool{false, true} {
			told := make(chan error, 1)
			m := p.middleware(t, asynqmutex.Policy{OnTimeout: func(_ context.Context, _ *asynq.Task, err error) error {
				told <- err
				return err
			}}, dbmutex.WithTTL(time.Hour))
			server, errs := p.serve(t, m, func(ctx context.Context, _ *asynq.Task) error {
				return p.mutex("inner").Do(func(context.Context) error {
					if both {
						lease, _ := dbmutex.LeaseFrom(ctx)
						assert.NoError(t, p.mutex("report").ForceRelease())
						assert.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout)
					}
					return p.mutex("inner").ForceRelease()
				})
			})
			p.requireBecomes(t, p.enqueue(t, "report"), asynq.TaskStateRetry)
			require.ErrorIs(t, receive(t, errs), dbmutex.ErrTimeout)
			if both {
				requireTimeout(t, receive(t, told), "report", true)
			}
			require.Empty(t, told)
			server.Shutdown()
		}
	})
}

func TestALostLeaseOfATaskThatIsRevokedIsRecorded(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		_, errs := p.serve(t, p.middleware(t, asynqmutex.Policy{}), func(context.Context, *asynq.Task) error {
			assert.NoError(t, p.mutex("report").ForceRelease())
			return asynq.RevokeTask
		})
		task := p.enqueue(t, "report")
		err := receive(t, errs)
		requireTimeout(t, err, "report", true)
		require.NotErrorIs(t, err, asynq.RevokeTask)
		require.Contains(t, p.requireBecomes(t, task, asynq.TaskStateRetry).LastErr, "the task asked to be revoked")
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

func TestALeaseThatIsLostAfterAsynqsTimeoutIsLogged(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var first sync.Once
		p.serve(t, p.middleware(t, asynqmutex.Policy{}), func(ctx context.Context, _ *asynq.Task) error {
			first.Do(func() {
				<-ctx.Done()
				assert.NoError(t, p.mutex("report").ForceRelease())
			})
			return nil
		}, retryAtOnce)
		task := p.enqueue(t, "report", asynq.Timeout(time.Second))
		p.requireBecomes(t, task, asynq.TaskStateCompleted)
		want := fmt.Sprintf(`task %q of queue "default": %v`, task.ID, dbmutex.ErrTimeout)
		require.Eventually(t, func() bool { return strings.Contains(p.log.String(), want) }, time.Minute, 10*time.Millisecond)
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
