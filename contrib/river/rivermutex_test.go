package rivermutex_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	rivermutex "github.com/gorm-dbmutex/dbmutex/contrib/river"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

func TestAJobThatFindsItsMutexHeldIsSnoozed(t *testing.T) {
	w := newWorld(t)
	work, runs, letGo := holding()
	c := w.start(t, rivermutex.Policy{Snooze: 50 * time.Millisecond}, work)

	first := c.insert(t, report{})
	require.Equal(t, first.ID, <-runs)
	row, err := w.db.Mutex("report").Holder()
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("job %d of %s", first.ID, c.ID()), row.Holder)
	second := c.insert(t, report{})
	for snoozes := range 3 {
		job := c.become(t, river.EventKindJobSnoozed, second)
		require.Zero(t, job.Attempt)
		require.Empty(t, job.Errors)
		require.Contains(t, string(job.Metadata), fmt.Sprintf(`"snoozes": %d`, snoozes+1))
	}

	letGo <- nil
	require.Equal(t, second.ID, <-runs)
	letGo <- nil
	completed := map[int64]int{}
	for len(completed) < 2 {
		if event := <-c.events; event.Kind != river.EventKindJobSnoozed {
			require.Equal(t, river.EventKindJobCompleted, event.Kind)
			completed[event.Job.ID] = event.Job.Attempt
		}
	}
	require.Equal(t, map[int64]int{first.ID: 1, second.ID: 1}, completed)
	w.requireFree(t, "report")
}

func TestTheDefaultSnooze(t *testing.T) {
	w := newWorld(t)
	work, runs, _ := holding()
	nonOverlapping, err := rivermutex.NonOverlapping(w.db)
	require.NoError(t, err)
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(work))
	c := w.run(t, config(workers, nonOverlapping))
	c.insert(t, report{})
	<-runs
	began := time.Now()
	job := c.become(t, river.EventKindJobSnoozed, c.insert(t, report{}))
	require.Equal(t, rivertype.JobStateScheduled, job.State)
	require.Greater(t, job.ScheduledAt.Sub(began), rivermutex.DefaultSnooze-time.Second)
}

func TestHeldMatchesErrNotAcquired(t *testing.T) {
	w := newWorld(t)
	for _, held := range []rivermutex.Held{rivermutex.Snooze, rivermutex.Cancel} {
		nonOverlapping, err := rivermutex.Policy{Held: held}.NonOverlapping(w.db)
		require.NoError(t, err)
		lease, err := w.db.Mutex("report").Acquire()
		require.NoError(t, err)
		err = nonOverlapping.Work(t.Context(), &rivertype.JobRow{ID: 7, Kind: "report"}, func(context.Context) error {
			t.Error("it ran")
			return nil
		})
		require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
		require.NoError(t, lease.Release())
	}
}

func TestAJobThatFindsItsMutexHeldIsCancelled(t *testing.T) {
	w := newWorld(t)
	work, runs, letGo := holding()
	c := w.start(t, rivermutex.Policy{Held: rivermutex.Cancel}, work)
	first := c.insert(t, report{})
	<-runs
	job := c.become(t, river.EventKindJobCancelled, c.insert(t, report{}))
	require.Equal(t, rivertype.JobStateCancelled, job.State)
	require.Len(t, job.Errors, 1)
	require.Contains(t, job.Errors[0].Error, fmt.Sprintf(`"report" is held by job %d of %s`, first.ID, c.ID()))
	letGo <- nil
	c.become(t, river.EventKindJobCompleted, first)
}

// An earlier run, of a client that died, may still have the mutex.
// River's own tables stay in PostgreSQL.
func TestTheMutexMayBeInAnyDatabase(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		w := newWorld(t)
		w.db = d.Mutexes(t, dbmutex.DefaultSettings())
		work, runs, letGo := holding()
		c := w.start(t, rivermutex.Policy{Held: rivermutex.Cancel}, work)
		first := c.insert(t, report{})
		require.Equal(t, first.ID, <-runs)
		testdb.RequireHeld(t, w.db, "report")
		c.become(t, river.EventKindJobCancelled, c.insert(t, report{}))
		letGo <- nil
		c.become(t, river.EventKindJobCompleted, first)
		w.requireFree(t, "report")
	})
}

func TestAJobIsNotCancelledBecauseOfItself(t *testing.T) {
	w := newWorld(t)
	policy := rivermutex.Policy{
		Held:   rivermutex.Cancel,
		Snooze: 50 * time.Millisecond,
		Key:    func(job *rivertype.JobRow) string { return fmt.Sprint("report ", job.ID) },
	}
	work, runs, letGo := holding()
	c := w.start(t, policy, work)

	var leases []*dbmutex.Lease
	hold := func(id int64, holder string) {
		lease, err := w.db.Mutex(fmt.Sprint("report ", id), dbmutex.WithHolder(holder)).Acquire()
		require.NoError(t, err)
		leases = append(leases, lease)
	}
	hold(1, "job 1 of a client that died")
	hold(2, "job 12 of a client that died")
	first := c.insert(t, report{})
	require.EqualValues(t, 1, first.ID)
	c.become(t, river.EventKindJobSnoozed, first)
	require.NoError(t, leases[0].Release())
	<-runs
	letGo <- nil
	for event := range c.events {
		if event.Kind != river.EventKindJobSnoozed {
			require.Equal(t, river.EventKindJobCompleted, event.Kind)
			break
		}
	}
	second := c.insert(t, report{})
	require.EqualValues(t, 2, second.ID)
	c.become(t, river.EventKindJobCancelled, second)
}

func TestWithWaitAJobIsDelayed(t *testing.T) {
	w := newWorld(t)
	tries := make(chan bool, 1)
	work, runs, letGo := holding()
	c := w.start(t, rivermutex.Policy{}, work, dbmutex.WithWait(dbmutex.Forever))
	first := c.insert(t, report{})
	<-runs
	require.NoError(t, w.db.Callback().Row().After("gorm:row").Register("tried", func(*gorm.DB) {
		select {
		case tries <- true:
		default:
		}
	}))
	second := c.insert(t, report{})
	<-tries
	letGo <- nil
	c.become(t, river.EventKindJobCompleted, first)
	require.Equal(t, second.ID, <-runs)
	letGo <- nil
	c.become(t, river.EventKindJobCompleted, second)
}

func TestKindsRunSideBySide(t *testing.T) {
	w := newWorld(t)
	work, runs, letGo := holding()
	nonOverlapping, err := rivermutex.NonOverlapping(w.db)
	require.NoError(t, err)
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(work))
	river.AddWorker(workers, river.WorkFunc(func(context.Context, *river.Job[mail]) error { return nil }))
	c := w.run(t, config(workers, nonOverlapping))
	first := c.insert(t, report{})
	<-runs
	c.become(t, river.EventKindJobCompleted, c.insert(t, mail{}))
	letGo <- nil
	c.become(t, river.EventKindJobCompleted, first)
}

func TestKey(t *testing.T) {
	w := newWorld(t)
	work, runs, letGo := holding()
	c := w.start(t, rivermutex.Policy{Key: func(job *rivertype.JobRow) string {
		if strings.Contains(string(job.EncodedArgs), "annual") {
			return ""
		}
		return string(job.EncodedArgs)
	}}, work)
	daily := c.insert(t, report{"daily"})
	require.Equal(t, daily.ID, <-runs)
	weekly := c.insert(t, report{"weekly"})
	require.Equal(t, weekly.ID, <-runs, "another key: it runs beside the first")
	c.become(t, river.EventKindJobSnoozed, c.insert(t, report{"daily"}))
	job := c.become(t, river.EventKindJobFailed, c.insert(t, report{"annual"}))
	require.Contains(t, job.Errors[0].Error, dbmutex.ErrInvalidLockID.Error())
	letGo <- nil
	letGo <- nil
}

func TestSettingsOfThePlugin(t *testing.T) {
	w := newWorld(t)
	settings := dbmutex.DefaultSettings()
	settings.SkipHeld, settings.Holder = true, "machine-7"
	w.db, w.pool = w.open(t, settings)
	work, runs, letGo := holding()
	c := w.start(t, rivermutex.Policy{}, work)
	first := c.insert(t, report{})
	<-runs
	row, err := w.db.Mutex("report").Holder()
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("job %d of machine-7", first.ID), row.Holder)
	c.become(t, river.EventKindJobSnoozed, c.insert(t, report{}))
	letGo <- nil
	c.become(t, river.EventKindJobCompleted, first)
}

func TestAJobsOwnErrorPasses(t *testing.T) {
	w := newWorld(t)
	seen := make(chan error, 1)
	nonOverlapping, err := rivermutex.Policy{Held: rivermutex.Cancel}.NonOverlapping(w.db)
	require.NoError(t, err)
	var outcome error
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(func(context.Context, *river.Job[report]) error { return outcome }))
	c := w.run(t, config(workers, afterWork(func(err error) { seen <- err }), nonOverlapping))
	for _, test := range []struct {
		outcome error
		want    river.EventKind
	}{
		{nil, river.EventKindJobCompleted},
		{errOwn, river.EventKindJobFailed},
		{river.JobSnooze(time.Hour), river.EventKindJobSnoozed},
		{river.JobCancel(errOwn), river.EventKindJobCancelled},
		{&dbmutex.HeldError{LockID: "another"}, river.EventKindJobFailed},
	} {
		outcome = test.outcome
		c.become(t, test.want, c.insert(t, report{}))
		require.Equal(t, test.outcome, <-seen)
		w.requireFree(t, "report")
	}
}

func TestALostLeaseIsReported(t *testing.T) {
	w := newWorld(t)
	var outcome error
	c := w.start(t, rivermutex.Policy{}, func(context.Context, *river.Job[report]) error {
		assert.NoError(t, w.db.Mutex("report").ForceRelease())
		return outcome
	})
	for _, test := range []struct {
		outcome error
		want    river.EventKind
	}{
		{nil, river.EventKindJobFailed},
		{errOwn, river.EventKindJobFailed},
		{river.JobSnooze(time.Hour), river.EventKindJobFailed},
		{river.JobCancel(errOwn), river.EventKindJobCancelled},
	} {
		outcome = test.outcome
		job := c.become(t, test.want, c.insert(t, report{}))
		require.Len(t, job.Errors, 1)
		require.Contains(t, job.Errors[0].Error, dbmutex.ErrTimeout.Error()+`: that of "report" was lost`)
	}
}

func TestAnotherMutexsLostLease(t *testing.T) {
	w := newWorld(t)
	c := w.start(t, rivermutex.Policy{OnTimeout: func(context.Context, *rivertype.JobRow, error) error {
		t.Error("the job's own lease had not ended")
		return nil
	}}, func(ctx context.Context, _ *river.Job[report]) error {
		return w.db.WithContext(ctx).Mutex("another").Do(func(context.Context) error {
			return w.db.Mutex("another").ForceRelease()
		})
	})
	job := c.become(t, river.EventKindJobFailed, c.insert(t, report{}))
	require.Contains(t, job.Errors[0].Error, dbmutex.ErrTimeout.Error())
}

func TestTheMiddlewareTwice(t *testing.T) {
	w := newWorld(t)
	nonOverlapping, err := rivermutex.NonOverlapping(w.db)
	require.NoError(t, err)
	job := &rivertype.JobRow{ID: 7, Kind: "report"}
	err = nonOverlapping.Work(t.Context(), job, func(ctx context.Context) error {
		return nonOverlapping.Work(ctx, job, func(context.Context) error {
			t.Error("it ran twice")
			return nil
		})
	})
	require.ErrorContains(t, err, "is the middleware there twice?")
	require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
	require.NotErrorIs(t, err, &river.JobSnoozeError{})
}

func TestAWaitThatRiverEndsIsSnoozed(t *testing.T) {
	w := newWorld(t)
	nonOverlapping, err := rivermutex.NonOverlapping(w.db, dbmutex.WithWait(dbmutex.Forever))
	require.NoError(t, err)
	lease, err := w.db.Mutex("report").Acquire()
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = nonOverlapping.Work(ctx, &rivertype.JobRow{ID: 7, Kind: "report"}, func(context.Context) error { return nil })
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, &river.JobSnoozeError{})
	require.NoError(t, lease.Release())
}

func TestOnTimeout(t *testing.T) {
	w := newWorld(t)
	var timedOut *rivertype.JobRow
	var err error
	c := w.start(t, rivermutex.Policy{OnTimeout: func(ctx context.Context, job *rivertype.JobRow, timeout error) error {
		assert.NoError(t, ctx.Err())
		timedOut, err = job, timeout
		return nil
	}}, func(context.Context, *river.Job[report]) error {
		assert.NoError(t, w.db.Mutex("report").ForceRelease())
		return errOwn
	})
	job := c.insert(t, report{})
	c.become(t, river.EventKindJobCompleted, job)
	require.Equal(t, job.ID, timedOut.ID)
	requireTimeout(t, err, "report", true)
	require.ErrorIs(t, err, errOwn)
}

func TestTheContextIsTheLeases(t *testing.T) {
	w := newWorld(t)
	c := w.start(t, rivermutex.Policy{}, func(ctx context.Context, job *river.Job[report]) error {
		lease, ok := dbmutex.LeaseFrom(ctx)
		if assert.True(t, ok) {
			assert.Equal(t, "report", lease.LockID())
		}
		assert.NotNil(t, river.ClientFromContext[*sql.Tx](ctx))
		<-ctx.Done()
		return context.Cause(ctx)
	}, dbmutex.WithTTL(10*time.Millisecond))
	job := c.become(t, river.EventKindJobFailed, c.insert(t, report{}))
	require.Contains(t, job.Errors[0].Error, dbmutex.ErrTimeout.Error()+`: that of "report" ran out`)
	require.Contains(t, job.Errors[0].Error, "nobody else held the mutex meanwhile")
}

// The context of the handle that the middleware was made with is not that of the jobs.
func TestTheHandlesContextDoesNotCount(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	w.db = w.db.WithContext(ctx)
	c := w.start(t, rivermutex.Policy{}, func(ctx context.Context, _ *river.Job[report]) error { return ctx.Err() })
	cancel()
	c.become(t, river.EventKindJobCompleted, c.insert(t, report{}))
}

func TestAPanicReleases(t *testing.T) {
	w := newWorld(t)
	c := w.start(t, rivermutex.Policy{}, func(context.Context, *river.Job[report]) error { panic(errOwn) })
	job := c.become(t, river.EventKindJobFailed, c.insert(t, report{}))
	require.Equal(t, errOwn.Error(), job.Errors[0].Error)
	require.NotEmpty(t, job.Errors[0].Trace)
	w.requireFree(t, "report")
}

func TestTheJobsTimeoutReleases(t *testing.T) {
	w := newWorld(t)
	nonOverlapping, err := rivermutex.NonOverlapping(w.db)
	require.NoError(t, err)
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(func(ctx context.Context, _ *river.Job[report]) error {
		<-ctx.Done()
		return ctx.Err()
	}))
	config := config(workers, nonOverlapping)
	config.JobTimeout = 10 * time.Millisecond
	c := w.run(t, config)
	job := c.become(t, river.EventKindJobFailed, c.insert(t, report{}))
	require.Equal(t, context.DeadlineExceeded.Error(), job.Errors[0].Error)
	w.requireFree(t, "report")
}

func TestStopWaitsForTheRelease(t *testing.T) {
	w := newWorld(t)
	work, runs, letGo := holding()
	c := w.start(t, rivermutex.Policy{}, work)
	c.insert(t, report{})
	<-runs
	stopped := make(chan error)
	go func() { stopped <- c.Stop(context.Background()) }()
	letGo <- nil
	require.NoError(t, <-stopped)
	w.requireFree(t, "report")
}

func TestStopAndCancelReleases(t *testing.T) {
	w := newWorld(t)
	work, runs, _ := holding()
	c := w.start(t, rivermutex.Policy{}, work, dbmutex.WithWait(dbmutex.Forever))
	c.insert(t, report{})
	<-runs
	waiting := c.insert(t, report{})
	require.Eventually(t, func() bool {
		job, err := c.JobGet(context.Background(), waiting.ID)
		return err == nil && job.State == rivertype.JobStateRunning
	}, time.Minute, 10*time.Millisecond)
	require.NoError(t, c.StopAndCancel(context.Background()))
	w.requireFree(t, "report")
	job, err := c.JobGet(t.Context(), waiting.ID)
	require.NoError(t, err)
	require.NotEqual(t, rivertype.JobStateRunning, job.State)
}

func TestTheDatabaseFails(t *testing.T) {
	w := newWorld(t)
	c := w.start(t, rivermutex.Policy{}, func(context.Context, *river.Job[report]) error {
		t.Error("it ran without the mutex")
		return nil
	})
	require.NoError(t, w.db.Migrator().DropTable(&dbmutex.DBMutex{}))
	job := c.become(t, river.EventKindJobFailed, c.insert(t, report{}))
	require.Contains(t, job.Errors[0].Error, "run AutoMigrate")
}

func TestBadWiring(t *testing.T) {
	w := newWorld(t)
	refused := func(p rivermutex.Policy, db *dbmutex.DB, opts ...dbmutex.Option) error {
		t.Helper()
		nonOverlapping, err := p.NonOverlapping(db, opts...)
		require.Nil(t, nonOverlapping)
		require.ErrorContains(t, err, "dbmutex: ")
		return err
	}
	var policy rivermutex.Policy
	require.ErrorIs(t, refused(policy, nil), dbmutex.ErrNotRegistered)
	require.ErrorIs(t, refused(policy, dbmutex.Wrap(w.d.Open(t))), dbmutex.ErrNotRegistered)
	require.ErrorIs(t, refused(policy, w.db, dbmutex.WithTTL(-1)), dbmutex.ErrInvalidSettings)
	require.ErrorIs(t, refused(rivermutex.Policy{Held: 2}, w.db), dbmutex.ErrInvalidSettings)
	require.ErrorIs(t, refused(rivermutex.Policy{Held: -1}, w.db), dbmutex.ErrInvalidSettings)
	require.ErrorIs(t, refused(rivermutex.Policy{Snooze: -1}, w.db), dbmutex.ErrInvalidSettings)
	require.NoError(t, w.db.Migrator().DropTable(&dbmutex.DBMutex{}))
	require.ErrorContains(t, refused(policy, w.db), "run AutoMigrate")
}

func TestProcesses(t *testing.T) {
	w := newWorld(t)
	inserter, err := river.NewClient(riverdatabasesql.New(w.pool), &river.Config{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	insert := func() int64 {
		inserted, err := inserter.Insert(t.Context(), report{}, nil)
		require.NoError(t, err)
		return inserted.Job.ID
	}
	// Each works one job at a time, so that the other gets the next.
	next := func(p *testprocess.Process, ignored string) string {
		line := p.Line(t)
		for line == ignored {
			line = p.Line(t)
		}
		return line
	}
	a := testprocess.Start(t, w.d, "work")
	first := insert()
	require.Equal(t, fmt.Sprint("runs ", first), a.Line(t))
	b := testprocess.Start(t, w.d, "work")
	second := insert()
	snoozed := fmt.Sprint("snoozed ", second)
	require.Equal(t, snoozed, b.Line(t))
	a.Kill(t)
	require.Equal(t, fmt.Sprint("runs ", second), next(b, snoozed))

	c := testprocess.Start(t, w.d, "work")
	third := insert()
	snoozed = fmt.Sprint("snoozed ", third)
	require.Equal(t, snoozed, c.Line(t))
	b.CloseInput(t)
	require.Equal(t, fmt.Sprint("completed ", second), next(b, ""))
	require.NoError(t, b.Wait())
	require.Equal(t, fmt.Sprint("runs ", third), next(c, snoozed))
	c.End(t)
	w.requireFree(t, "report")
}
