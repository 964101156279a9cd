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

	"github.com/gorm-dbmutex/dbmutex"
	asynqmutex "github.com/gorm-dbmutex/dbmutex/contrib/asynq"
)

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
				ran := false
				run := func(policy asynqmutex.Policy) (err error) {
					m := p.middleware(t, policy, dbmutex.WithTTL(20*time.Millisecond))
					handler := m(asynq.HandlerFunc(func(ctx context.Context, _ *asynq.Task) error {
						ran = true
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
					}))
					for ran = false; !ran; { // else the lease ended before the task began
						err = handler.ProcessTask(t.Context(), asynq.NewTask("report", nil))
					}
					return err
				}
				told := 0
				require.Equal(t, errOwn, run(asynqmutex.Policy{OnTimeout: func(_ context.Context, _ *asynq.Task, err error) error {
					if !ran {
						return nil
					}
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
