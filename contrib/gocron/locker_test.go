package gocronmutex_test

import (
	"context"
	"testing"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"github.com/jonboulle/clockwork"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	gocronmutex "github.com/gorm-dbmutex/dbmutex/contrib/gocron"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// fourTicks lets two machines with lockers come to four ticks, and returns how often the job ran.
func fourTicks(t *testing.T, between, after func(), lockers ...gocron.Locker) int {
	t.Helper()
	m := newMachines(t, lateBy, func(machine int, _ clockwork.Clock, events chan string) gocron.SchedulerOption {
		return gocron.WithDistributedLocker(observed{lockers[machine], events})
	})
	for range 4 {
		require.Equal(t, "ran", m.tick(t, between)[0])
		after()
	}
	return len(m.runs)
}

func nothing() {}

func TestClocksDiffer(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		t.Run("a MinHold shorter than the difference", func(t *testing.T) {
			require.Equal(t, 8, fourTicks(t, nothing, nothing, newLocker(t, open(), briefly), newLocker(t, open(), briefly)))
		})
		t.Run("a longer one", func(t *testing.T) {
			db, hold := open(), []dbmutex.Option{dbmutex.WithTTL(time.Hour), dbmutex.WithMinHold(time.Hour)}
			over := func() { expire(t, db, "job") } // as the MinHold is smaller than the interval
			require.Equal(t, 4, fourTicks(t, nothing, over, newLocker(t, open(), hold...), newLocker(t, open(), hold...)))
		})
	})
}

func TestWhereItIsHeld(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		runs, letGo := make(chan int), make(chan bool)
		skips := make(skips, 1)
		var outcomes [2]outcomes
		var jobs [2]gocron.Job
		for i := range jobs {
			s := start(t, gocron.WithDistributedLocker(newLocker(t, open(), briefly, dbmutex.WithHolder("a machine"))),
				gocron.WithMonitor(skips))
			outcomes[i] = make(chan error, 1)
			var err error
			jobs[i], err = s.NewJob(
				rarely, gocron.NewTask(func() { runs <- i; <-letGo }), gocron.WithName("job"), outcomes[i].listener(),
			)
			require.NoError(t, err)
		}
		require.NoError(t, jobs[0].RunNow())
		require.Equal(t, 0, next(t, runs))
		err := outcomes[1].run(t, jobs[1])
		requireLockError(t, err, dbmutex.ErrNotAcquired)
		var held *dbmutex.HeldError
		require.ErrorAs(t, err, &held)
		require.Equal(t, "a machine", held.Holder)
		require.Equal(t, "job", next(t, skips))
		letGo <- true
		require.NoError(t, next(t, outcomes[0]))
		requireSoonFree(t, open(), "job")
		require.NoError(t, jobs[1].RunNow())
		require.Equal(t, 1, next(t, runs))
		letGo <- true
		require.NoError(t, next(t, outcomes[1]))
	})
}

// skips is a gocron.Monitor.
type skips chan string

func (s skips) IncrementJob(_ uuid.UUID, name string, _ []string, status gocron.JobStatus) {
	if status == gocron.Skip {
		s <- name
	}
}

func (s skips) RecordJobTiming(time.Time, time.Time, uuid.UUID, string, []string) {}

// TestWithWait delays a run until the mutex is free.
func TestWithWait(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		held, err := open().Mutex("job").Acquire()
		require.NoError(t, err)
		s := start(t, gocron.WithDistributedLocker(newLocker(t, open(), briefly, dbmutex.WithWait(dbmutex.Forever))))
		outcomes := make(outcomes, 1)
		released := make(chan bool, 1)
		job, err := s.NewJob(rarely, gocron.NewTask(func() {
			select {
			case <-released:
			default:
				t.Error("it ran before the release")
			}
		}), gocron.WithName("job"), outcomes.listener())
		require.NoError(t, err)
		require.NoError(t, job.RunNow())
		released <- true
		require.NoError(t, held.Release())
		require.NoError(t, next(t, outcomes))
	})
}

func TestTheJobsOwnLocker(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		db := open()
		s := start(t, gocron.WithDistributedLocker(newLocker(t, open(), briefly)))
		outcomes := make(outcomes, 1)
		job, err := s.NewJob(rarely, gocron.NewTask(func() {}), gocron.WithName("job"), outcomes.listener(),
			gocron.WithDistributedJobLocker(newLocker(t, open(), dbmutex.WithMinHold(time.Minute), dbmutex.WithHolder("its own"))))
		require.NoError(t, err)
		require.NoError(t, outcomes.run(t, job))
		row, err := db.Mutex("job").Holder()
		require.NoError(t, err)
		require.NotNil(t, row)
		require.Equal(t, "its own", row.Holder)
	})
}

// TestAShutdownReleases though gocron has cancelled the context that Unlock gets.
func TestAShutdownReleases(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		s := start(t, gocron.WithDistributedLocker(newLocker(t, open(), briefly)))
		runs := make(chan bool)
		job, err := s.NewJob(
			rarely, gocron.NewTask(func(ctx context.Context) { runs <- true; <-ctx.Done() }), gocron.WithName("job"),
		)
		require.NoError(t, err)
		require.NoError(t, job.RunNow())
		next(t, runs)
		db := open()
		row, err := db.Mutex("job").Holder()
		require.NoError(t, err)
		require.NotNil(t, row)
		require.NoError(t, s.Shutdown())
		requireSoonFree(t, db, "job")
	})
}

func TestUnlock(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		db, lines := gocronmutex.Logged(open())
		locker := newLocker(t, db, briefly)
		ctx, cancel := context.WithCancel(context.Background())
		lock, err := locker.Lock(ctx, "job")
		require.NoError(t, err)
		cancel()
		require.NoError(t, lock.Unlock(ctx))
		row, err := db.Mutex("job").Holder()
		require.NoError(t, err)
		require.Nil(t, row)

		lock, err = locker.Lock(context.Background(), "job")
		require.NoError(t, err)
		other := takeOver(t, db, "job")
		_, err = locker.Lock(context.Background(), "job")
		require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
		require.Empty(t, lines)
		err = lock.Unlock(context.Background())
		requireTimeout(t, err, "job", true)
		require.Equal(t, err.Error(), next(t, lines), "gocron throws it away")
		require.NoError(t, other.Release())

		const ttl = 20 * time.Millisecond
		lock, err = newLocker(t, db, briefly, dbmutex.WithTTL(ttl)).Lock(context.Background(), "job")
		require.NoError(t, err)
		time.Sleep(2 * ttl)
		err = lock.Unlock(context.Background())
		requireTimeout(t, err, "job", false)
		require.Equal(t, err.Error(), next(t, lines))

		_, err = locker.Lock(ctx, "job")
		require.ErrorIs(t, err, context.Canceled)
		_, err = locker.Lock(context.Background(), "")
		require.ErrorIs(t, err, dbmutex.ErrInvalidLockID)
	})
}

func named() {}

func generic[T any]() {}

func inGeneric[T any]() func() { return func() {} }

type receiver struct{}

func (*receiver) run() {}

var global = func() {}

func helper(n int) func() { return func() { named(); n++ } }

// TestNames gives gocron's jobs no names, so that they have their functions'.
func TestNames(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		db := open()
		s := start(t, gocron.WithDistributedLocker(newLocker(t, db, dbmutex.WithMinHold(time.Minute))))
		nested := func() func() { return func() {} }()
		var inlined func()
		func() { inlined = helper(len(s.Jobs())) }()
		for name, function := range map[string]any{
			"closure": func() {}, "nested": nested, "global": global, "inlined": inlined,
			"in a generic function": inGeneric[int](), "generic": generic[int],
		} {
			outcomes := make(outcomes, 1)
			job, err := s.NewJob(rarely, gocron.NewTask(function), outcomes.listener())
			require.NoError(t, err)
			err = outcomes.run(t, job)
			require.Error(t, err, "%s: %s", name, job.Name())
			requireLockError(t, err, dbmutex.ErrInvalidLockID)
			require.ErrorContains(t, err, "gocron.WithName")
			require.ErrorContains(t, err, job.Name())
		}
		for _, function := range []any{named, func1, (*receiver).run, new(receiver).run} {
			outcomes := make(outcomes, 1)
			parameters := []any{}
			if _, ok := function.(func(*receiver)); ok {
				parameters = append(parameters, new(receiver))
			}
			job, err := s.NewJob(rarely, gocron.NewTask(function, parameters...), outcomes.listener())
			require.NoError(t, err)
			require.NoError(t, outcomes.run(t, job), job.Name())
			row, err := db.Mutex(job.Name()).Holder()
			require.NoError(t, err)
			require.NotNil(t, row, job.Name())
		}
	})
}

func func1() {}

func TestNamesOfClosures(t *testing.T) {
	db, lines := gocronmutex.Logged(migrated(t))
	locker := newLocker(t, db, briefly)
	for _, name := range []string{
		"main.main.func1", "main.main.func1.2", "main.main.func1.2.3", "glob..func1", "main.glob..func12",
		"example.com/a.b/c.init.func1", "example.com/a/b.(*T).Run.func1", "main.main.F.func2", "main.F[...].func1",
		"main.F[...]", "main.main.F[...].6",
		"main.main.func1.zzHelper.2", "main.init.0.func1.(*T).job.2", "main.(*T[...]).Run-fm",
	} {
		_, err := locker.Lock(context.Background(), name)
		require.ErrorIs(t, err, dbmutex.ErrInvalidLockID, name)
		require.Equal(t, err.Error(), next(t, lines), "the job never runs")
	}
	for _, name := range []string{
		"report", "main.func1", "example.com/a.b/c.func1", "main.main.func1x", "main.(*T).Run-fm", "nightly.func",
		"report v1.2", "list[0]",
	} {
		lock, err := locker.Lock(context.Background(), name)
		require.NoError(t, err, name)
		require.NoError(t, lock.Unlock(context.Background()))
	}
	require.Empty(t, lines)
}

// migrated is a SQLite database's handle.
func migrated(t *testing.T) *dbmutex.DB {
	db := open(t, testdb.SQLite(t), dbmutex.DefaultSettings())
	require.NoError(t, db.Migrate())
	return db
}

func TestBadWiring(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, _ func() *dbmutex.DB) {
		empty := d.Another(t)
		good := open(t, d, dbmutex.DefaultSettings())
		done, cancel := context.WithCancel(context.Background())
		cancel()
		tooLong, hold := dbmutex.WithMinHold(2*dbmutex.DefaultTTL), dbmutex.WithMinHold(time.Second)
		for _, c := range []struct {
			name string
			db   *dbmutex.DB
			opts []dbmutex.Option
			want error  // one of these
			text string // or both
		}{
			{"no handle", nil, []dbmutex.Option{hold}, dbmutex.ErrNotRegistered, ""},
			{"an empty handle", &dbmutex.DB{}, []dbmutex.Option{hold}, dbmutex.ErrNotRegistered, ""},
			{"no plugin", dbmutex.Wrap(d.Open(t)), []dbmutex.Option{hold}, dbmutex.ErrNotRegistered, ""},
			{"no table", open(t, empty, dbmutex.DefaultSettings()), []dbmutex.Option{hold}, nil, "run AutoMigrate"},
			{"DryRun", good.Session(&gorm.Session{DryRun: true}), []dbmutex.Option{hold}, dbmutex.ErrDryRun, ""},
			{"a context that is done", good.WithContext(done), []dbmutex.Option{hold}, context.Canceled, ""},
			{"a MinHold that is too long", good, []dbmutex.Option{tooLong}, dbmutex.ErrInvalidSettings, "greater than the TTL"},
		} {
			_, err := gocronmutex.NewLocker(c.db, c.opts...)
			requireWiringError(t, c.name, err, c.want, c.text)
			_, err = gocronmutex.NewElector(c.db, "leader", c.opts...)
			requireWiringError(t, c.name, err, c.want, c.text)
		}
		_, err := gocronmutex.NewLocker(good)
		requireWiringError(t, "no MinHold", err, dbmutex.ErrInvalidSettings, "smaller than the interval")
		_, err = gocronmutex.NewLocker(good, dbmutex.WithWait(time.Second))
		requireWiringError(t, "a wait without MinHold", err, dbmutex.ErrInvalidSettings, "smaller than the interval")
		_, err = gocronmutex.NewElector(good, "leader", dbmutex.WithoutTTL())
		requireWiringError(t, "no TTL", err, dbmutex.ErrInvalidSettings, "needs a TTL")
		_, err = gocronmutex.NewElector(good, "")
		requireWiringError(t, "no id", err, dbmutex.ErrInvalidLockID, "")

		locker := newLocker(t, good, hold)
		s, job := start(t), func(context.Context) error { return nil }
		for name, f := range map[string]func() (gocron.Job, error){
			"no scheduler":  func() (gocron.Job, error) { return locker.NewJob(nil, rarely, "job", job) },
			"no definition": func() (gocron.Job, error) { return locker.NewJob(s, nil, "job", job) },
			"no function":   func() (gocron.Job, error) { return locker.NewJob(s, rarely, "job", nil) },
			"no locker":     func() (gocron.Job, error) { return (*gocronmutex.Locker)(nil).NewJob(s, rarely, "job", job) },
			"a zero locker": func() (gocron.Job, error) { return new(gocronmutex.Locker).NewJob(s, rarely, "job", job) },
		} {
			_, err := f()
			requireWiringError(t, name, err, dbmutex.ErrInvalidSettings, "")
		}
		_, err = locker.NewJob(s, rarely, "", job)
		requireWiringError(t, "no name", err, dbmutex.ErrInvalidLockID, "")
		_, err = locker.NewJob(s, gocron.DurationJob(0), "job", job)
		require.ErrorIs(t, err, gocron.ErrDurationJobIntervalZero)
		require.Empty(t, s.Jobs())

		_, err = (*gocronmutex.Locker)(nil).Lock(context.Background(), "job")
		require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
		for _, none := range []*gocronmutex.Elector{nil, {}} {
			require.ErrorIs(t, none.IsLeader(context.Background()), gocronmutex.ErrNotLeader)
			require.NoError(t, none.Close())
		}
	})
}

func requireWiringError(t *testing.T, name string, err, want error, text string) {
	t.Helper()
	require.Error(t, err, name)
	if want != nil {
		require.ErrorIs(t, err, want, name)
	}
	require.ErrorContains(t, err, text, name)
	require.Regexp(t, "^dbmutex: ", err.Error(), name)
}

// TestThePluginsSettings count as the options do, but for SkipHeld.
func TestThePluginsSettings(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, _ func() *dbmutex.DB) {
		settings := dbmutex.DefaultSettings()
		settings.MinHold, settings.SkipHeld = time.Minute, true
		db := open(t, d, settings)
		lock, err := newLocker(t, db).Lock(context.Background(), "job")
		require.NoError(t, err)
		require.NoError(t, lock.Unlock(context.Background()))
		_, err = newLocker(t, db).Lock(context.Background(), "job")
		require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
		elector := newElector(t, db)
		eventually(t, func() bool { return elector.IsLeader(context.Background()) == nil })
	})
}
