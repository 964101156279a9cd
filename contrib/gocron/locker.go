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
// With dbmutex.WithWait a scheduler that finds the mutex held waits for it, and then runs the job as well: no MinHold is
// needed then. dbmutex.Settings.SkipHeld has no effect. The handle's context is not that of the jobs.
//
// It runs one SELECT. The error is dbmutex.ErrInvalidSettings for settings that cannot be, such as a MinHold and a wait of 0;
// what DB.Mutex says is wrong with the handle; or the database's, also where the table is missing.
func NewLocker(db *dbmutex.DB, opts ...dbmutex.Option) (*Locker, error) {
	opts = append(slices.Clone(opts), func(s *dbmutex.Settings) { s.SkipHeld = false })
	settings, err := check(db, "gocronmutex.NewLocker", opts)
	switch {
	case err != nil:
		return nil, fmt.Errorf("dbmutex: gocron locker: %w", err)
	case settings.MinHold == 0 && settings.Wait == 0:
		return nil, fmt.Errorf("%w: a gocron locker needs WithMinHold: a time greater than the difference of the schedulers' "+
			"clocks and smaller than the interval of the jobs, or a tick may run on several machines", dbmutex.ErrInvalidSettings)
	}
	return &Locker{db, opts}, nil
}

// shared matches what the runtime calls an anonymous function, main.main.func1, main.main.func1.2 or main.glob..func1, and a
// generic one, main.F[...]. A function that somebody named func1 is main.func1.
var shared = regexp.MustCompile(`\.[^/]*\.func\d+(\.\d+)*$|\[\.\.\.\]`)

// Lock takes the mutex whose id is key, the job's name; gocron calls it before every run. Jobs of one name exclude each
// other, and so does DB.Mutex of that id.
//
// The error matches dbmutex.ErrNotAcquired where somebody else holds the mutex, or it is the context's or the database's,
// or dbmutex.ErrInvalidLockID. gocron then skips this run, counts it as gocron.Skip, and gives the error to the job's
// gocron.AfterLockError listener, and to nobody else.
//
// A job without a gocron.WithName has the name of its function. That of an anonymous function means nothing: others may have
// it, and it may be another in the next build. So the error is dbmutex.ErrInvalidLockID there, and for a generic function.
// Jobs with one function and different parameters, or one method of different receivers, need names, too.
//
// The lock's Unlock releases also where its context is done. It returns what dbmutex.Lease.Release returns, ErrTimeout
// where the lease was lost, but gocron throws that away: the error of a job from NewJob tells it.
func (l *Locker) Lock(ctx context.Context, key string) (gocron.Lock, error) {
	switch {
	case l == nil || l.db == nil:
		return nil, errNoLocker
	case shared.MatchString(key):
		return nil, fmt.Errorf("%w %q: it is the name of an anonymous or generic function: give the job one by gocron.WithName",
			dbmutex.ErrInvalidLockID, key)
	}
	lease, err := l.mutex(ctx, key).Acquire()
	if err != nil {
		return nil, err
	}
	return lock{lease}, nil
}

func (l *Locker) mutex(ctx context.Context, key string) *dbmutex.Mutex {
	return l.db.WithContext(ctx).Mutex(key, l.opts...)
}

// lock is a gocron.Lock.
type lock struct{ lease *dbmutex.Lease }

func (l lock) Unlock(context.Context) error { return l.lease.Release() }
