package gocronmutex

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/go-co-op/gocron/v2"

	"github.com/gorm-dbmutex/dbmutex"
)

// NewJob is scheduler.NewJob for a job whose runs know their lease, which gocron's Locker cannot give them. The job gets the
// name and this Locker, whatever options and the scheduler say about both.
//
// fn gets the lease's context, with the lease for dbmutex.LeaseFrom. It ends when the job's context does (gocron ends that
// at a shutdown, or when the job is removed), or when the lease does, with a cause that matches dbmutex.ErrTimeout. The
// mutex is released when fn returns or panics.
//
// The job's error, for gocron.AfterJobRunsWithError, is that of dbmutex.Lease.Do: fn's own, unless the lease ended before fn
// did. Then it matches dbmutex.ErrTimeout, joined with fn's own: errors.As finds the run's *dbmutex.TimeoutError, which says
// whether the lease was lost, so that another run may have overlapped, or only ran out. If the lease had ended before fn
// could begin, fn did not run, and the error is the same. A failed release is joined with fn's error, too.
//
// If fn panics, or gocron never begins the run, the handle's GORM logger logs the timeout or the failed release as an error
// instead. gocron gives a job's error to gocron.AfterJobRunsWithError alone, and the error of Lock to gocron.AfterLockError
// alone: have listeners for both.
//
// If gocron does not lock, because the scheduler has an Elector or by gocron.WithDisabledDistributedJobLocker, the job takes
// the mutex itself. If the mutex is held, fn does not run, and the job's error matches dbmutex.ErrNotAcquired. If it is a
// tick that has run already, fn does not run, and there is no error.
//
// gocron.Scheduler.Update would take the name and the Locker away: remove the job and call NewJob again instead.
//
// NewJob runs one SELECT. The error is dbmutex.ErrInvalidSettings if the scheduler, the definition or fn is nil,
// dbmutex.ErrInvalidLockID for a name that is not allowed as a mutex's id, the database's, or gocron's. No job is made then.
func (l *Locker) NewJob(scheduler gocron.Scheduler, definition gocron.JobDefinition, name string,
	fn func(ctx context.Context) error, options ...gocron.JobOption) (gocron.Job, error) {
	switch {
	case l == nil || l.db == nil:
		return nil, errNoLocker
	case scheduler == nil || definition == nil || fn == nil:
		return nil, fmt.Errorf(
			"%w: job %q: the scheduler, the definition or the function is nil", dbmutex.ErrInvalidSettings, name,
		)
	}
	if err := l.checkName(name); err != nil {
		return nil, err
	}
	j := &job{locker: l, name: name, fn: fn}
	return scheduler.NewJob(definition, gocron.NewTask(j.run),
		append(slices.Clone(options), gocron.WithName(name), gocron.WithDistributedJobLocker(j))...)
}

// job is a job of NewJob. It is also its own gocron.Locker, which hands the lease from Lock to the run.
type job struct {
	locker *Locker
	name   string
	fn     func(ctx context.Context) error

	mu   sync.Mutex
	next *jobLock // of the run that is about to begin
}

// Lock takes the mutex. gocron calls Lock, run and Unlock one after the other, but other runs of the job may come in
// between. If the run of an earlier Lock has not begun yet, its lease has ended. This Lock then leaves the turn to that run.
func (j *job) Lock(ctx context.Context, key string) (gocron.Lock, error) {
	held, err := j.locker.take(ctx, key)
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	free := j.next == nil
	lock := &jobLock{job: j, held: held}
	if free {
		j.next = lock
	}
	j.mu.Unlock()
	if !free {
		return nil, errors.Join(&dbmutex.HeldError{LockID: key}, held.Release())
	}
	return lock, nil
}

func (j *job) run(ctx context.Context) error {
	j.mu.Lock()
	lock := j.next
	j.next = nil
	j.mu.Unlock()
	if lock == nil {
		return j.locker.do(ctx, j.name, j.fn)
	}
	lock.began = true
	return lock.held.Do(func(ctx context.Context) error {
		if lease, _ := dbmutex.LeaseFrom(ctx); lease.Lost() { // a *tick does not look
			return dbmutex.ErrTimeout
		}
		return j.fn(ctx)
	})
}

// jobLock is a job's gocron.Lock.
type jobLock struct {
	job   *job
	held  holding
	began bool // the run's error says what became of the lease
}

// Unlock releases if the run never began, and logs the error, which gocron throws away.
func (l *jobLock) Unlock(ctx context.Context) error {
	l.job.mu.Lock()
	if l.job.next == l {
		l.job.next = nil
	}
	l.job.mu.Unlock()
	err := l.held.Release()
	if l.began {
		return err
	}
	return l.job.locker.logged(ctx, err)
}
