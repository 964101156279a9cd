package gocronmutex_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	gocronmutex "github.com/gorm-dbmutex/dbmutex/contrib/gocron"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

var errOwn = errors.New("the job's own")

// newJob makes a job whose work is fn.
func newJob(t *testing.T, s gocron.Scheduler, db *dbmutex.DB, fn func(context.Context) error, opts []dbmutex.Option,
	options ...gocron.JobOption) (gocron.Job, outcomes) {
	t.Helper()
	outcomes := make(outcomes, 10)
	job, err := newLocker(t, db, append([]dbmutex.Option{briefly}, opts...)...).
		NewJob(s, rarely, "job", fn, append(options, outcomes.listener())...)
	require.NoError(t, err)
	return job, outcomes
}

func TestAJobKnowsItsLease(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		db := open()
		type key struct{}
		var token int64
		var last context.Context
		job, outcomes := newJob(t, start(t), db, func(ctx context.Context) error {
			lease, ok := dbmutex.LeaseFrom(ctx)
			require.True(t, ok)
			require.Equal(t, "job", lease.LockID())
			require.Greater(t, lease.Token(), token)
			require.Equal(t, "the job's", ctx.Value(key{}))
			require.NoError(t, ctx.Err())
			require.ErrorIs(t, db.Mutex("job").Do(func(context.Context) error { return nil }), dbmutex.ErrNotAcquired)
			token, last = lease.Token(), ctx
			return nil
		}, nil, gocron.WithContext(context.WithValue(context.Background(), key{}, "the job's")), gocron.WithName("another name"))
		require.Equal(t, "job", job.Name())
		for range 2 {
			require.NoError(t, outcomes.run(t, job))
			require.ErrorIs(t, last.Err(), context.Canceled)
			row, err := db.Mutex("job").Holder() // it has been released when gocron reports the outcome
			require.NoError(t, err)
			require.Nil(t, row)
		}
	})
}

func TestTheOutcomeOfAJob(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		db := open()
		var lose bool
		var result error
		job, outcomes := newJob(t, start(t), open(), func(context.Context) error {
			if lose {
				require.NoError(t, db.Mutex("job").ForceRelease())
			}
			return result
		}, nil)
		for _, c := range []struct {
			lose   bool
			result error
		}{{false, nil}, {false, errOwn}, {true, nil}, {true, errOwn}} {
			lose, result = c.lose, c.result
			err := outcomes.run(t, job)
			if !lose {
				require.Equal(t, result, err)
				continue
			}
			requireTimeout(t, err, "job", true)
			if result != nil {
				require.ErrorIs(t, err, result)
			}
		}
	})
}

// TestAJobThatIsLate outlives its lease. What its error says of that comes before what the job has heard.
func TestAJobThatIsLate(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		db := open()
		var lost, ran bool
		var result func(ctx context.Context) error
		var own error
		job, outcomes := newJob(t, start(t), open(), func(ctx context.Context) error {
			ran = true
			<-ctx.Done()
			require.ErrorIs(t, context.Cause(ctx), dbmutex.ErrTimeout)
			if lost {
				lease, err := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
				require.NoError(t, err)
				defer func() { require.NoError(t, lease.Release()) }()
			}
			own = result(ctx)
			return own
		}, []dbmutex.Option{dbmutex.WithTTL(100 * time.Millisecond)})
		for _, lost = range []bool{false, true} {
			another := &dbmutex.TimeoutError{LockID: "another", Lost: !lost}
			for name, report := range map[string]func(ctx context.Context) error{
				"nil":                func(context.Context) error { return nil },
				"its own":            func(context.Context) error { return errOwn },
				"another mutex's":    func(context.Context) error { return another },
				"the cause":          context.Cause,
				"the cause, wrapped": func(ctx context.Context) error { return fmt.Errorf("report: %w", context.Cause(ctx)) },
			} {
				result = report
				var err error
				for ran = false; !ran; { // it does not if the lease has ended before
					err = outcomes.run(t, job)
				}
				requireTimeout(t, err, "job", lost)
				switch name {
				case "nil", "the cause":
					require.Equal(t, 1, strings.Count(err.Error(), dbmutex.ErrTimeout.Error()), "it is told once")
				default:
					require.ErrorIs(t, err, own, name)
				}
			}
		}
	})
}

// TestAShutdownHidesNothing of what became of the lease.
func TestAShutdownHidesNothing(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		for _, end := range []string{"ran out", "lost"} {
			s, begins := start(t), make(chan bool)
			job, outcomes := newJob(t, s, open(), func(ctx context.Context) error {
				begins <- true
				<-ctx.Done()
				if end == "lost" {
					return open().Mutex("job").ForceRelease()
				}
				lease, _ := dbmutex.LeaseFrom(ctx)
				deadline, _ := lease.ExpiresAt()
				time.Sleep(time.Until(deadline) + time.Millisecond)
				return nil
			}, []dbmutex.Option{dbmutex.WithTTL(2 * time.Second)})
			require.NoError(t, job.RunNow())
			next(t, begins)
			require.NoError(t, s.Shutdown())
			requireTimeout(t, next(t, outcomes), "job", end == "lost")
		}
	})
}

// TestAReleaseThatCommittedIsNoTimeout however late it is.
func TestAReleaseThatCommittedIsNoTimeout(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		db, lines := gocronmutex.Logged(open())
		var ran, commits bool
		job, outcomes := newJob(t, start(t), db, func(ctx context.Context) error {
			ran = true
			<-ctx.Done()
			lease, _ := dbmutex.LeaseFrom(ctx)
			err := db.Gorm.Transaction(func(tx *gorm.DB) error {
				require.NoError(t, lease.ReleaseIn(tx))
				if commits {
					return nil
				}
				return errOwn
			})
			require.Equal(t, commits, err == nil)
			return nil
		}, []dbmutex.Option{dbmutex.WithTTL(100 * time.Millisecond)})
		for _, commits = range []bool{true, false} {
			var err error
			for ran = false; !ran; {
				err = outcomes.run(t, job)
			}
			if commits {
				require.NoError(t, err)
			} else {
				requireTimeout(t, err, "job", false)
			}
			requireSoonFree(t, open(), "job")
		}
		require.Empty(t, lines)
	})
}

func TestAReleaseThatFails(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, open func() *dbmutex.DB) {
		db := open()
		errDB := errors.New("the database's")
		var fails atomic.Bool
		fail := func(tx *gorm.DB) {
			if fails.Load() && d.Verb(tx.Statement.SQL.String()) == "release" {
				_ = tx.AddError(errDB)
			}
		}
		require.NoError(t, db.Callback().Row().Before("gorm:row").Register("fail", fail))
		require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("fail", fail))
		for _, late := range []bool{false, true} {
			for _, result := range []error{nil, errOwn} {
				ttl := time.Hour
				if late {
					ttl = 100 * time.Millisecond
				}
				job, outcomes := newJob(t, start(t), db, func(ctx context.Context) error {
					fails.Store(true)
					if late {
						<-ctx.Done()
					}
					return result
				}, []dbmutex.Option{dbmutex.WithTTL(ttl)})
				err := outcomes.run(t, job)
				for !fails.Load() { // the lease ended before the work could begin
					require.True(t, late)
					err = outcomes.run(t, job)
				}
				require.ErrorIs(t, err, errDB)
				require.Equal(t, late, errors.Is(err, dbmutex.ErrTimeout), err)
				require.Equal(t, result != nil, errors.Is(err, errOwn), err)
				fails.Store(false)
				require.NoError(t, open().Mutex("job").ForceRelease())
			}
		}
	})
}

func TestAPanicReleases(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		panics := make(chan any, 1)
		outcomes := make(outcomes, 1)
		job, err := newLocker(t, open(), briefly).NewJob(start(t), rarely, "job", func(context.Context) error { panic(errOwn) },
			gocron.WithEventListeners(gocron.AfterJobRunsWithPanic(func(_ uuid.UUID, _ string, value any) { panics <- value })),
			outcomes.listener())
		require.NoError(t, err)
		require.ErrorIs(t, outcomes.run(t, job), gocron.ErrPanicRecovered)
		require.Equal(t, errOwn, next(t, panics))
		requireSoonFree(t, open(), "job")
	})
}

// TestARunThatNeverBegins leaves nothing behind for the next.
func TestARunThatNeverBegins(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		refuse := make(chan error, 1)
		refused := make(chan bool, 1)
		job, outcomes := newJob(t, start(t), open(), func(ctx context.Context) error { return ctx.Err() }, nil,
			gocron.WithEventListeners(gocron.BeforeJobRunsSkipIfBeforeFuncErrors(func(uuid.UUID, string) error {
				select {
				case err := <-refuse:
					refused <- true
					return err
				default:
					return nil
				}
			})))
		refuse <- errOwn
		require.NoError(t, job.RunNow())
		next(t, refused)
		requireSoonFree(t, open(), "job")
		require.NoError(t, outcomes.run(t, job))
	})
}

// TestALeaseThatIsLostBeforeTheRun is never another run's.
func TestALeaseThatIsLostBeforeTheRun(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		db := open()
		before, goOn := make(chan bool), make(chan bool)
		var late atomic.Bool
		late.Store(true)
		job, outcomes := newJob(t, start(t), open(), func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			row, err := db.Mutex("job").Holder()
			require.NoError(t, err)
			if late.Load() {
				require.Nil(t, row, "the lease of the run that was refused is gone")
				return nil
			}
			require.NotNil(t, row)
			require.NoError(t, lease.Renew())
			return nil
		}, nil, gocron.WithEventListeners(gocron.BeforeJobRuns(func(uuid.UUID, string) {
			if late.Load() {
				before <- true
				<-goOn
			}
		})))
		require.NoError(t, job.RunNow())
		next(t, before)
		expire(t, db, "job")
		requireLockError(t, outcomes.run(t, job), dbmutex.ErrNotAcquired)
		goOn <- true
		requireTimeout(t, next(t, outcomes), "job", true)
		late.Store(false)
		require.NoError(t, outcomes.run(t, job))
	})
}

// TestARunWhoseLeaseIsLost leaves the mutex to the next, also on its own machine.
func TestARunWhoseLeaseIsLost(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		begins, goOn := make(chan bool), make(chan bool)
		job, outcomes := newJob(t, start(t), open(), func(context.Context) error {
			begins <- true
			<-goOn
			return nil
		}, nil)
		require.NoError(t, job.RunNow())
		next(t, begins)
		db := open()
		expire(t, db, "job")
		require.NoError(t, job.RunNow())
		next(t, begins)
		goOn <- true
		goOn <- true
		outcome := []error{next(t, outcomes), next(t, outcomes)}
		require.Contains(t, outcome, error(nil))
		require.ErrorIs(t, errors.Join(outcome...), dbmutex.ErrTimeout)
	})
}

// TestWhereGocronDoesNotLock the job takes the mutex itself.
func TestWhereGocronDoesNotLock(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		db := open()
		elector := newElector(t, open())
		eventually(t, func() bool { return elector.IsLeader(context.Background()) == nil })
		for name, s := range map[string]gocron.Scheduler{
			"an Elector":        start(t, gocron.WithDistributedElector(elector)),
			"a disabled locker": start(t, gocron.WithGlobalJobOptions(gocron.WithDisabledDistributedJobLocker(true))),
		} {
			runs := make(chan bool, 10)
			job, outcomes := newJob(t, s, open(), func(ctx context.Context) error {
				lease, ok := dbmutex.LeaseFrom(ctx)
				require.True(t, ok)
				require.NoError(t, lease.Renew())
				runs <- true
				return nil
			}, nil)
			require.NoError(t, outcomes.run(t, job), name)
			require.Len(t, runs, 1)
			held, err := db.Mutex("job").Acquire()
			require.NoError(t, err)
			require.ErrorIs(t, outcomes.run(t, job), dbmutex.ErrNotAcquired, name)
			require.NoError(t, held.Release())
			require.Len(t, runs, 1)
		}
	})
}
