package gocronmutex_test

import (
	"context"
	"testing"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"github.com/jonboulle/clockwork"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	gocronmutex "github.com/gorm-dbmutex/dbmutex/contrib/gocron"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// TestMain also is the body of the child processes.
func TestMain(m *testing.M) {
	testprocess.Main(m, tasks)
}

// each runs fn on every kind of database, with open for the handles of as many machines as it needs.
func each(t *testing.T, fn func(t *testing.T, d *testdb.Database, open func() *dbmutex.DB)) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		open := func() *dbmutex.DB { return open(t, d, dbmutex.DefaultSettings()) }
		require.NoError(t, open().Migrate())
		fn(t, d, open)
	})
}

func open(t *testing.T, d *testdb.Database, settings dbmutex.Settings) *dbmutex.DB {
	return d.Registered(t, settings)
}

// briefly is for tests whose runs do not come at the same tick: the mutex is free as soon as they end.
var briefly = dbmutex.WithMinHold(time.Microsecond)

func newLocker(t *testing.T, db *dbmutex.DB, opts ...dbmutex.Option) *gocronmutex.Locker {
	t.Helper()
	locker, err := gocronmutex.NewLocker(db, opts...)
	require.NoError(t, err)
	return locker
}

func newElector(t *testing.T, db *dbmutex.DB, opts ...dbmutex.Option) *gocronmutex.Elector {
	t.Helper()
	elector, err := gocronmutex.NewElector(db, "leader", opts...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = elector.Close() })
	return elector
}

// start starts a scheduler, which ends with the test.
func start(t *testing.T, options ...gocron.SchedulerOption) gocron.Scheduler {
	t.Helper()
	s, err := gocron.NewScheduler(options...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Shutdown() })
	s.Start()
	return s
}

// rarely is for jobs that the test runs by RunNow.
var rarely = gocron.DurationJob(24 * time.Hour)

// outcomes are what gocron reports of a job's runs: nil, the run's error, or one of Lock's as a lockError.
type outcomes chan error

type lockError struct{ error }

func (e lockError) Unwrap() error { return e.error }

// listener is the job's option that fills the outcomes.
func (o outcomes) listener() gocron.JobOption {
	return gocron.WithEventListeners(
		gocron.AfterJobRuns(func(uuid.UUID, string) { o <- nil }),
		gocron.AfterJobRunsWithError(func(_ uuid.UUID, _ string, err error) { o <- err }),
		gocron.AfterLockError(func(_ uuid.UUID, _ string, err error) { o <- lockError{err} }))
}

// run runs a job now, and returns the outcome.
func (o outcomes) run(t *testing.T, job gocron.Job) error {
	t.Helper()
	require.NoError(t, job.RunNow())
	return next(t, o)
}

func requireLockError(t *testing.T, err, target error) {
	t.Helper()
	require.ErrorAs(t, err, new(lockError))
	require.ErrorIs(t, err, target)
}

var requireTimeout = testdb.RequireTimeout

// next waits for what comes from a channel.
func next[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(time.Minute):
		require.FailNow(t, "nothing happened")
		panic("unreachable")
	}
}

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, time.Minute, 10*time.Millisecond)
}

// requireSoonFree waits for the release of a mutex, which comes after the outcome.
func requireSoonFree(t *testing.T, db *dbmutex.DB, id string) {
	t.Helper()
	eventually(t, func() bool {
		row, err := db.Mutex(id).Holder()
		require.NoError(t, err)
		return row == nil
	})
}

var expire = testdb.Expire

// takeOver gives a mutex to somebody else while its lease is held.
func takeOver(t *testing.T, db *dbmutex.DB, id string) *dbmutex.Lease {
	t.Helper()
	require.NoError(t, db.Mutex(id).ForceRelease())
	lease, err := db.Mutex(id, dbmutex.WithHolder("somebody else")).Acquire()
	require.NoError(t, err)
	t.Cleanup(func() { _ = lease.Release() })
	return lease
}

// lateBy is how far the clocks of the machines are apart, unless a test says otherwise.
const lateBy = 60 * time.Millisecond

// machines are two schedulers with the same job, every minute, each by a clock of its own. The second one's is late.
type machines struct {
	late   time.Duration
	clocks [2]*clockwork.FakeClock
	events [2]chan string // what becomes of a tick: "ran" or "did not"
	runs   chan int       // the machine of each run
}

// newMachines gives each scheduler an option, which reports events.
func newMachines(
	t *testing.T, late time.Duration,
	option func(machine int, clock clockwork.Clock, events chan string) gocron.SchedulerOption,
) *machines {
	t.Helper()
	m := &machines{late: late, runs: make(chan int, 100)}
	// A millisecond goes beyond each tick: gocron may take one twice by a clock that stands still at it.
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Millisecond)
	for i := range m.clocks {
		m.clocks[i] = clockwork.NewFakeClockAt(begin.Add(time.Duration(1-i) * late))
		m.events[i] = make(chan string, 1)
		s := start(t, gocron.WithClock(m.clocks[i]), gocron.WithLocation(time.UTC), option(i, m.clocks[i], m.events[i]))
		_, err := s.NewJob(gocron.CronJob("* * * * *", false), gocron.NewTask(func() { m.runs <- i }), gocron.WithName("job"))
		require.NoError(t, err)
	}
	return m
}

// tick lets a minute pass, and returns what became of the tick on each machine. between happens when the first has had it.
func (m *machines) tick(t *testing.T, between func()) (events [2]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i, d := range []time.Duration{time.Minute - m.late, m.late} {
		for _, c := range m.clocks {
			require.NoError(t, c.BlockUntilContext(ctx, 1), "no tick is scheduled")
			c.Advance(d)
		}
		events[i] = next(t, m.events[i])
		if i == 0 {
			between()
		}
	}
	require.Empty(t, m.events[0])
	return events
}

// observed reports what becomes of a real Locker's locks.
type observed struct {
	gocron.Locker
	events chan string
}

func (o observed) Lock(ctx context.Context, key string) (gocron.Lock, error) {
	lock, err := o.Locker.Lock(ctx, key)
	if err != nil {
		o.events <- "did not"
		return nil, err
	}
	return observedLock{lock, o.events}, nil
}

type observedLock struct {
	gocron.Lock
	events chan string
}

func (o observedLock) Unlock(ctx context.Context) error {
	err := o.Lock.Unlock(ctx)
	o.events <- "ran"
	return err
}
