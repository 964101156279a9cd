package gocronmutex

import (
	"context"
	"fmt"
	"regexp"
	"slices"

	"github.com/go-co-op/gocron/v2"

	"github.com/gorm-dbmutex/dbmutex"
)

var errNoLocker = fmt.Errorf("%w: the Locker is not from NewLocker", dbmutex.ErrInvalidSettings)

// Locker is a gocron.Locker, for gocron.WithDistributedLocker and gocron.WithDistributedJobLocker. It is safe for many
// goroutines and schedulers.
type Locker struct {
	db   *dbmutex.DB
	opts []dbmutex.Option
}

var _ gocron.Locker = (*Locker)(nil)

// NewLocker makes a Locker whose mutexes have the plugin's settings as opts change them.
//
// It needs a dbmutex.WithMinHold. Schedulers' clocks differ: one that is late comes to a tick when the run of another has
// perhaps ended already, and would run it again. So choose a time greater than the ticks of the schedulers are apart, and
// smaller than the interval of the jobs. A Job.RunNow so soon after a run is skipped, too.
//
// Ticks of a gocron.CronJob, DailyJob, WeeklyJob or MonthlyJob are as far apart as the clocks. Those of a
// gocron.DurationJob begin when its scheduler starts, unless gocron.WithStartAt gives all the same time. Those of a
// gocron.DurationRandomJob, or with gocron.WithIntervalFromCompletion, go separate ways; use an Elector there.
//
// With dbmutex.WithWait a scheduler that finds the mutex held waits for it, and then runs the job as well: every machine's
// run of a tick takes place, one after the other, unless the wait is over before. The MinHold is needed nevertheless, and
// part of what they wait for. dbmutex.Settings.SkipHeld has no effect. The handle's context is not that of the jobs.
//
// It runs one SELECT. The error is dbmutex.ErrInvalidSettings for settings that are not allowed, such as a MinHold of 0;
// what DB.Mutex says is wrong with the handle; or the database's, also if the table is missing.
func NewLocker(db *dbmutex.DB, opts ...dbmutex.Option) (*Locker, error) {
	opts = append(slices.Clone(opts), func(s *dbmutex.Settings) { s.SkipHeld = false })
	settings, err := check(db, "gocronmutex.NewLocker", opts)
	switch {
	case err != nil:
		return nil, err
	case settings.MinHold == 0:
		return nil, fmt.Errorf("%w: a gocron locker needs WithMinHold: a time greater than the difference of the schedulers' "+
			"clocks and smaller than the interval of the jobs, or a tick may run on several machines", dbmutex.ErrInvalidSettings)
	}
	return &Locker{db, opts}, nil
}

// shared matches what the compiler calls an anonymous function, main.main.func1, main.main.func1.2, main.glob..func1, or
// main.main.func1.helper.2 if helper is inlined, and a generic one, main.F[...]. A function that somebody named func1 is
// main.func1.
var shared = regexp.MustCompile(`\.[^/]*\.func\d+(\..*)?$|\[\.\.\.\]`)

// Lock takes the mutex whose id is key, the job's name; gocron calls it before every run. Jobs of one name exclude each
// other, and so does DB.Mutex of that id.
//
// The error matches dbmutex.ErrNotAcquired if somebody else holds the mutex, or it is the context's or the database's,
// or dbmutex.ErrInvalidLockID. gocron then skips this run, counts it as gocron.Skip, and gives the error to the job's
// gocron.AfterLockError listener, and to nobody else.
//
// A job without a gocron.WithName has the name of its function. That of an anonymous function means nothing: others may have
// it, and it may be another in the next build. So the error is dbmutex.ErrInvalidLockID there, and for a generic function.
// It is also logged as an error by the handle's GORM logger, as the job never runs.
// Jobs with one function and different parameters, or one method of different receivers, need names, too.
//
// The lock's Unlock releases also if its context is done. It returns what dbmutex.Lease.Release returns: ErrTimeout
// if the lease has ended before, with a *dbmutex.TimeoutError that says whether it was lost, so that another run may
// have overlapped, or only ran out. gocron throws that away, so it is also logged as an error by the handle's GORM logger.
// Of a job from NewJob its error tells it.
func (l *Locker) Lock(ctx context.Context, key string) (gocron.Lock, error) {
	switch {
	case l == nil || l.db == nil:
		return nil, errNoLocker
	case shared.MatchString(key):
		err := fmt.Errorf("%w %q: it is the name of an anonymous or generic function: give the job one by gocron.WithName",
			dbmutex.ErrInvalidLockID, key)
		l.db.Logger.Error(ctx, "%v", err)
		return nil, err
	}
	lease, err := l.mutex(ctx, key).Acquire()
	if err != nil {
		return nil, err
	}
	return lock{l, lease}, nil
}

func (l *Locker) mutex(ctx context.Context, key string) *dbmutex.Mutex {
	return l.db.WithContext(ctx).Mutex(key, l.opts...)
}

// lock is a gocron.Lock.
type lock struct {
	locker *Locker
	lease  *dbmutex.Lease
}

// Unlock also logs the error, which gocron throws away.
func (l lock) Unlock(ctx context.Context) error {
	return l.locker.logged(ctx, l.lease.Release())
}

func (l *Locker) logged(ctx context.Context, err error) error {
	if err != nil {
		l.db.Logger.Error(ctx, "%v", err)
	}
	return err
}
