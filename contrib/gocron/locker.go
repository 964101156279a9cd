package gocronmutex

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/go-co-op/gocron/v2"

	"github.com/gorm-dbmutex/dbmutex"
)

var errNoLocker = fmt.Errorf("%w: the Locker is not from NewLocker", dbmutex.ErrInvalidSettings)

// Locker is a gocron.Locker, for gocron.WithDistributedLocker and gocron.WithDistributedJobLocker. It is safe for many
// goroutines and schedulers. There are two kinds:
//   - NewLocker's holds a mutex while a job runs, and for a while after. Runs of a job do not overlap. Nothing is recorded:
//     a tick may be missed, and a scheduler that is late enough repeats it.
//   - NewTickLocker's records each tick that has run. No scheduler repeats it, and one that waits makes up for a machine
//     that fails. Ticks may overlap.
type Locker struct {
	db    *dbmutex.DB
	opts  []dbmutex.Option
	every time.Duration    // of ticks; 0 if the Locker is NewLocker's
	now   func() time.Time // for ticks
}

var _ gocron.Locker = (*Locker)(nil)

// NewLocker makes a Locker whose mutexes have the plugin's settings as opts change them.
//
// A dbmutex.WithMinHold is needed. Schedulers' clocks differ: a scheduler whose clock is late comes to a tick when another
// scheduler's run has perhaps ended already, and would run the job again. So choose a time that is longer than the
// schedulers' ticks are apart, and shorter than the interval of the jobs. A Job.RunNow so soon after a run is skipped, too.
//
// How far apart the schedulers' ticks are depends on the kind of job:
//   - The ticks of a gocron.CronJob, DailyJob, WeeklyJob or MonthlyJob are as far apart as the clocks.
//   - The ticks of a gocron.DurationJob begin when its scheduler starts, unless gocron.WithStartAt gives all schedulers the
//     same time.
//   - The ticks of a gocron.DurationRandomJob, or with gocron.WithIntervalFromCompletion, may be any time apart. Use an
//     Elector there.
//
// With dbmutex.WithWait a scheduler that finds the mutex held waits for it, and then runs the job as well: every machine
// runs the job at each tick, one after the other, unless the wait is over before. The MinHold is still needed, and is a part
// of what they wait for. dbmutex.Settings.SkipHeld has no effect. The jobs do not have the handle's context.
//
// NewLocker runs one SELECT. The error is dbmutex.ErrInvalidSettings for settings that are not allowed, such as a MinHold of
// 0; what DB.Mutex says is wrong with the handle; or the database's, also if the table is missing.
func NewLocker(db *dbmutex.DB, opts ...dbmutex.Option) (*Locker, error) {
	opts = neverSkipHeld(opts)
	settings, err := check(db, "gocronmutex.NewLocker", opts)
	switch {
	case err != nil:
		return nil, err
	case settings.MinHold == 0:
		return nil, fmt.Errorf("%w: a gocron locker needs WithMinHold: a time greater than the difference of the schedulers' "+
			"clocks and smaller than the interval of the jobs, or a tick may run on several machines", dbmutex.ErrInvalidSettings)
	}
	return &Locker{db: db, opts: opts}, nil
}

// neverSkipHeld is opts without effect of SkipHeld.
func neverSkipHeld(opts []dbmutex.Option) []dbmutex.Option {
	return append(slices.Clone(opts), func(s *dbmutex.Settings) { s.SkipHeld = false })
}

// shared matches what the compiler calls an anonymous function, main.main.func1, main.main.func1.2, main.glob..func1, or
// main.main.func1.helper.2 if helper is inlined, and a generic one, main.F[...]. A function that somebody named func1 is
// main.func1.
var shared = regexp.MustCompile(`\.[^/]*\.func\d+(\..*)?$|\[\.\.\.\]`)

// Lock takes the mutex whose id is key, the job's name; gocron calls it before every run. Jobs of one name exclude each
// other, and so does DB.Mutex of that id. A Locker from NewTickLocker begins the job's tick instead.
//
// The error matches dbmutex.ErrNotAcquired if somebody else holds the mutex or runs the tick, and ErrTickDone if the tick
// has run. Or it is the context's or the database's, or dbmutex.ErrInvalidLockID. gocron then skips this run, counts it as
// gocron.Skip, and gives the error to the job's gocron.AfterLockError listener, and to nobody else.
//
// A job without a gocron.WithName has the name of its function. The name of an anonymous function means nothing: other
// functions may have it, and it may change with the next build. So the error is dbmutex.ErrInvalidLockID for an anonymous
// and for a generic function. The handle's GORM logger logs it as an error, too, as the job never runs. Jobs with one
// function and different parameters, or one method of different receivers, also need names.
//
// The lock's Unlock releases also if its context is done. It returns what dbmutex.Lease.Release returns: ErrTimeout if the
// lease ended before, with a *dbmutex.TimeoutError that says whether it was lost, so that another run may have overlapped,
// or only ran out. gocron throws this error away, so the handle's GORM logger logs it as an error, too. A job from NewJob
// returns it.
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
	held, err := l.take(ctx, key)
	if err != nil {
		return nil, err
	}
	return lock{l, held}, nil
}

// holding is what a run has: a *dbmutex.Lease, or a *tick.
type holding interface {
	Do(fn func(ctx context.Context) error) error
	Release() error
}

func (l *Locker) take(ctx context.Context, key string) (holding, error) {
	if l.every > 0 {
		return l.begin(ctx, key)
	}
	return l.db.WithContext(ctx).Mutex(key, l.opts...).Acquire()
}

// do runs fn where gocron has not locked.
func (l *Locker) do(ctx context.Context, name string, fn func(ctx context.Context) error) error {
	db := l.db.WithContext(ctx)
	if l.every > 0 {
		return l.once(db, name).Do(fn)
	}
	return db.Mutex(name, l.opts...).Do(fn)
}

// checkName runs a SELECT to see that a job of the name can be locked.
func (l *Locker) checkName(name string) (err error) {
	if l.every > 0 {
		_, err = l.once(l.db, name).Done()
		return err
	}
	_, err = l.db.Mutex(name, l.opts...).Holder()
	return err
}

// lock is a gocron.Lock.
type lock struct {
	locker *Locker
	held   holding
}

// Unlock also logs the error, which gocron throws away.
func (l lock) Unlock(ctx context.Context) error {
	return l.locker.logged(ctx, l.held.Do(func(context.Context) error { return nil }))
}

func (l *Locker) logged(ctx context.Context, err error) error {
	if err != nil {
		l.db.Logger.Error(ctx, "%v", err)
	}
	return err
}
