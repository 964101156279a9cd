package cronmutex

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/gorm-dbmutex/dbmutex"
)

const (
	// keepAtLeast is how long a tick is remembered, also a frequent one.
	keepAtLeast = time.Hour

	// farthest is how far back a tick is looked for. cron looks five years ahead.
	farthest = 5 * 366 * 24 * time.Hour
)

// OncePerTick makes a wrapper whose job runs once at each tick of the schedule over all machines, and records it. Ticks are
// dbmutex.Once, with the plugin's settings as opts change them, and so they need the table of dbmutex.DBOnce. Give each job
// an id, and so a wrapper, of its own, and give cron the same schedule:
//
//	schedule, err := cron.ParseStandard("CRON_TZ=UTC 0 3 * * *")
//	c.Schedule(schedule, cron.NewChain(cron.Recover(logger), oncePerTick).Then(report))
//
// A run belongs to the time of the schedule that is nearest when it begins, before or after. So machines mean the same tick
// if their clocks are wrong by less than half of the time between two ticks. The schedule has to say its time zone, as
// CRON_TZ=UTC does, so that all machines have the same. Ticks of "@every 1h" count from the start of each scheduler, and
// cannot be used.
//
// A tick is recorded if the job has returned nil, or is no Job and has not panicked. Otherwise another machine that comes to
// the tick runs it again. It also runs again if the machine crashes between the end of the job and the record. A tick is
// remembered for twice the time between two ticks, and an hour at least: a machine that is later than that runs it again.
//
// A machine that finds the tick under way skips it. With dbmutex.WithWait it waits, and skips it when the run has succeeded,
// but runs it itself if the other run has failed, or its machine has crashed. Wait for longer than the job and the TTL take,
// or dbmutex.Forever: then no tick is lost with the machine that runs it.
//
// Two ticks may overlap if the first takes longer than until the second. A DB.Mutex in the job keeps them apart.
//
// What is skipped goes to logger.Info, and failures go to logger.Error. This, the job's context and panics are as for
// NonOverlapping.
//
// The error comes before any job runs. It is dbmutex.ErrInvalidSettings for a schedule that cannot be used, a nil logger, or
// settings that are not allowed, such as a MinHold; what DB.Once says is wrong with the handle or the id; or the database's,
// also if the table is missing.
func OncePerTick(db *dbmutex.DB, id string, schedule cron.Schedule, logger cron.Logger, opts ...dbmutex.Option,
) (cron.JobWrapper, error) {
	return oncePerTick(db, id, schedule, logger, time.Now, opts)
}

func oncePerTick(db *dbmutex.DB, id string, schedule cron.Schedule, logger cron.Logger, now func() time.Time,
	opts []dbmutex.Option) (cron.JobWrapper, error) {
	if logger == nil {
		return nil, fmt.Errorf("%w: cron jobs that run once per tick need a logger", dbmutex.ErrInvalidSettings)
	}
	if err := checkSchedule(schedule, now()); err != nil {
		return nil, fmt.Errorf("%w: the schedule of %q %w", dbmutex.ErrInvalidSettings, id, err)
	}
	opts = append(slices.Clone(opts), func(s *dbmutex.Settings) { s.SkipHeld = false })
	once := func() (*dbmutex.Once, string) {
		at, period := nearest(schedule, now())
		tick := dbmutex.Tick(id, at, 0)
		return db.Once(tick, max(2*period, keepAtLeast), opts...), tick
	}
	tick, _ := once()
	if _, err := tick.Done(); err != nil {
		return nil, err
	}
	return wrapper(id, logger, func(work func(ctx context.Context) error) (skip, err error) {
		tick, name := once()
		ran := false
		err = tick.Do(func(ctx context.Context) error {
			ran = true
			return work(ctx)
		})
		switch {
		case !ran && err == nil:
			return fmt.Errorf("dbmutex: %q has run already", name), nil
		case !ran && errors.Is(err, dbmutex.ErrNotAcquired):
			return err, nil
		}
		return nil, err
	}), nil
}

// checkSchedule says what is wrong with a schedule.
func checkSchedule(schedule cron.Schedule, now time.Time) error {
	switch s := schedule.(type) {
	case nil:
		return errors.New("is nil")
	case cron.ConstantDelaySchedule:
		return errors.New("counts from the start of each scheduler: use one such as CRON_TZ=UTC 0 * * * *")
	case *cron.SpecSchedule:
		if s.Location == time.Local {
			return errors.New("has no time zone: let it begin with CRON_TZ=UTC, for example")
		}
	}
	if schedule.Next(now).IsZero() {
		return errors.New("has no tick within five years")
	}
	return nil
}

// nearest is the time of a schedule that is nearest now, the later of two, and the time between the two around now.
func nearest(schedule cron.Schedule, now time.Time) (at time.Time, period time.Duration) {
	last, next := last(schedule, now), schedule.Next(now)
	switch {
	case last.IsZero():
		return next, 0
	case next.IsZero():
		return last, 0
	case now.Sub(last) < next.Sub(now):
		return last, next.Sub(last)
	}
	return next, next.Sub(last)
}

// last is the last time of a schedule up to now, or zero if there is none. A schedule can only be asked for what comes next.
func last(schedule cron.Schedule, now time.Time) time.Time {
	isLast := func(t time.Time) bool {
		next := schedule.Next(t)
		return !next.After(t) || next.After(now)
	}
	for back := time.Second; back < 2*farthest; back *= 2 {
		at := schedule.Next(now.Add(-back))
		if at.IsZero() || at.After(now) {
			continue
		}
		for end := now; !isLast(at); { // the last one is from at to before end
			middle := schedule.Next(at.Add(end.Sub(at) / 2))
			if middle.IsZero() || middle.After(now) {
				end = at.Add(end.Sub(at) / 2)
				at = schedule.Next(at)
			} else {
				at = middle
			}
		}
		return at
	}
	return time.Time{}
}
