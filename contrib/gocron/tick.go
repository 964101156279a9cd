package gocronmutex

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/go-co-op/gocron/v2"

	"github.com/gorm-dbmutex/dbmutex"
)

// ErrTickDone says that a tick has run already, on another machine or on this one. It is the error of Lock of a Locker from
// NewTickLocker, for the job's gocron.AfterLockError listener.
var ErrTickDone = errors.New("dbmutex: the tick has run already")

// keepAtLeast is how long a tick is remembered, also a frequent one.
const keepAtLeast = time.Hour

// NewTickLocker makes a Locker that runs each tick once over all schedulers, and records it. Ticks are dbmutex.Once, with
// the plugin's settings as opts change them, and so they need the table of dbmutex.DBOnce.
//
// A tick is a multiple of every in UTC: the one that is nearest when the run begins. So schedulers whose clocks are wrong by
// less than every/2 mean the same tick. Choose an every of which all ticks of the job are multiples, and not greater than
// the interval. For a daily job that is 24h at midnight UTC, 12h at noon, and a minute at 3:17. Jobs must have the same
// ticks on all schedulers:
//   - A gocron.DurationJob needs gocron.WithStartAt.
//   - A gocron.DurationRandomJob has no ticks in common, nor has one with gocron.WithIntervalFromCompletion. Use an Elector.
//   - A Job.RunNow is a run of the nearest tick, and skipped if that has run.
//
// A scheduler that finds the tick under way skips it. With dbmutex.WithWait it waits, and skips it when the run has
// succeeded, but runs it itself if the other run has failed, or its machine has crashed. Wait for longer than the run and
// the TTL take, or dbmutex.Forever: then no tick is lost with the machine that runs it.
//
// A tick that has run is remembered for 2*every, and an hour at least. A scheduler that is later than that runs it again. It
// also runs again if the machine crashes between the end of the run and the record.
//
// gocron does not tell a Locker how a run ended. The ticks of gocron's own jobs are recorded even if they have failed, those
// of NewJob's jobs only if they have succeeded.
//
// A tick is kept by a goroutine. A panic there, such as one of a GORM callback, is logged. It is an error of Lock or of the
// run then, which matches gocron.ErrPanicRecovered.
//
// Two ticks may overlap if the first takes longer than the interval. A DB.Mutex in the job keeps them apart.
//
// NewTickLocker runs one SELECT. The error is dbmutex.ErrInvalidSettings for an every that is not positive or for settings
// that are not allowed, such as a MinHold; what DB.Once says is wrong with the handle; or the database's, also if the table
// is missing.
func NewTickLocker(db *dbmutex.DB, every time.Duration, opts ...dbmutex.Option) (*Locker, error) {
	if every <= 0 {
		return nil, fmt.Errorf("%w: a gocron locker's ticks every %v: that must be positive", dbmutex.ErrInvalidSettings, every)
	}
	l := &Locker{db: db, opts: neverSkipHeld(opts), every: every, now: time.Now}
	if err := l.checkName("gocronmutex.NewTickLocker"); err != nil {
		return nil, err
	}
	return l, nil
}

// once is the tick of a job that is nearest now.
func (l *Locker) once(db *dbmutex.DB, name string) *dbmutex.Once {
	return db.Once(dbmutex.Tick(name, l.now(), l.every), max(2*l.every, keepAtLeast), l.opts...)
}

// tick is a run of a tick under way: a dbmutex.Once.Do on a goroutine of its own, whose function waits for the run's
// outcome.
type tick struct {
	ctx     context.Context // of the run
	outcome chan error      // of the run; closed without one if there is none
	close   sync.Once       // of outcome
	done    chan struct{}   // closed when Do has returned
	err     error           // what it returned
}

var errTickBroken = errors.New("dbmutex: an observer or a callback has ended the goroutine that keeps the tick")

// begin returns when the run may begin. Do or Release must end it.
func (l *Locker) begin(ctx context.Context, name string) (*tick, error) {
	once := l.once(l.db.WithContext(ctx), name)
	t := &tick{outcome: make(chan error, 1), done: make(chan struct{})}
	began := make(chan context.Context, 1)
	go func() {
		defer close(t.done)
		defer func() { // nobody else could
			if p := recover(); p != nil {
				t.err = fmt.Errorf("dbmutex: the tick of %q: %w: %v", name, gocron.ErrPanicRecovered, p)
				l.db.Logger.Error(ctx, "%v\n%s", t.err, debug.Stack())
			}
		}()
		t.err = errTickBroken
		t.err = once.Do(func(ctx context.Context) error {
			began <- ctx
			err, ended := <-t.outcome
			if !ended {
				t.err = nil
				runtime.Goexit() // Do releases the tick, and logs what goes wrong
			}
			return err
		})
	}()
	select {
	case t.ctx = <-began:
		return t, nil
	case <-t.done:
	}
	if t.err == nil {
		return nil, ErrTickDone
	}
	return nil, t.err
}

// Do runs fn, and records the tick if fn returns nil. Once the tick has ended it only says how.
func (t *tick) Do(fn func(ctx context.Context) error) error {
	select {
	case <-t.done:
		return t.err
	default:
	}
	defer func() { _ = t.Release() }() // also if fn panics
	t.outcome <- fn(t.ctx)
	<-t.done
	return t.err
}

// Release releases the tick without a record, unless Do has ended it.
func (t *tick) Release() error {
	t.close.Do(func() { close(t.outcome) })
	<-t.done
	return t.err
}
