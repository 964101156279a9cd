package cronmutex_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	cronmutex "github.com/gorm-dbmutex/dbmutex/contrib/cron"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

func schedule(t testing.TB, spec string) cron.Schedule {
	t.Helper()
	const fields = cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor
	s, err := cron.NewParser(fields).Parse(spec)
	require.NoError(t, err)
	return s
}

// noon is a tick of the tests' schedule.
var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

const daily = "CRON_TZ=UTC 0 12 * * *"

// machine is the job on a machine whose clock differs from noon, in a time zone of its own.
func machine(t *testing.T, db *dbmutex.DB, log recording, job cron.Job, off time.Duration, opts ...dbmutex.Option) cron.Job {
	t.Helper()
	now := func() time.Time { return noon.Add(off).In(time.FixedZone("", int(off.Seconds())/2)) }
	w, err := cronmutex.OncePerTickAt(db, "job", schedule(t, daily), log, now, opts)
	require.NoError(t, err)
	return w(job)
}

// requireDone wants that a tick, and nothing else, was skipped because it has run.
func (r recording) requireDone(t *testing.T) {
	t.Helper()
	require.Len(t, r, 1)
	e := <-r
	require.NoError(t, e.err)
	require.Equal(t, "skip", e.msg)
	require.Len(t, e.values, 2)
	require.NotErrorIs(t, e.values[1].(error), dbmutex.ErrNotAcquired)
	require.ErrorContains(t, e.values[1].(error), `"job@2030-01-01T12:00:00Z" has run already`)
}

// TestATickRunsOnceThoughClocksDiffer by up to half of the time between two ticks, on both sides of midnight and of the
// tick.
func TestATickRunsOnceThoughClocksDiffer(t *testing.T) {
	const nearlyHalf = 12*time.Hour - time.Nanosecond
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		ran := 0
		job := cron.FuncJob(func() { ran++ })
		log := newRecording()
		machine(t, open(), log, job, -nearlyHalf).Run()
		require.Equal(t, 1, ran)
		require.Empty(t, log)
		for _, off := range []time.Duration{-nearlyHalf, -time.Millisecond, 0, time.Millisecond, time.Minute, nearlyHalf} {
			machine(t, open(), log, job, off).Run()
			log.requireDone(t)
		}
		require.Equal(t, 1, ran)
		machine(t, open(), log, job, nearlyHalf+time.Hour).Run()
		machine(t, open(), log, job, -nearlyHalf-time.Hour).Run()
		require.Equal(t, 3, ran, "the ticks before and after")
		require.Empty(t, log)
	})
}

func TestATickThatFailsRunsAgain(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		log := newRecording()
		results := []error{errOwn, errOwn, nil}
		job := cronmutex.Job(func(ctx context.Context) error {
			lease, ok := dbmutex.LeaseFrom(ctx)
			require.True(t, ok)
			require.NoError(t, lease.Renew())
			result := results[0]
			results = results[1:]
			return result
		})
		for range 2 {
			machine(t, open(), log, job, time.Hour).Run()
			require.Equal(t, errOwn, log.requireError(t))
		}
		machine(t, open(), log, job, -time.Hour).Run()
		require.Empty(t, log)
		require.Empty(t, results)
		machine(t, open(), log, job, 0).Run()
		log.requireDone(t)
	})
}

func TestATickThatPanicsRunsAgain(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		log := newRecording()
		for _, job := range []cron.Job{
			cron.FuncJob(func() { panic(errOwn) }),
			cronmutex.Job(func(context.Context) error { panic(errOwn) }),
		} {
			cron.NewChain(cron.Recover(log)).Then(machine(t, open(), log, job, 0)).Run()
			require.Equal(t, errOwn, (<-log).err)
		}
		ran := 0
		machine(t, open(), log, cron.FuncJob(func() { ran++ }), 0).Run()
		require.Equal(t, 1, ran)
	})
}

// TestAMachineThatWaitsForATick gets the record, or makes up for a failure.
func TestAMachineThatWaitsForATick(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		job, runs, letGo := holding()
		mine, others := newRecording(), newRecording()
		first := machine(t, open(), mine, job, 0)
		second := machine(t, open(), others, job, 0, dbmutex.WithWait(dbmutex.Forever))
		done := async(first)
		<-runs
		machine(t, open(), others, job, 0, dbmutex.WithSkipHeld()).Run()
		others.requireSkip(t)
		waited := async(second)
		letGo <- errOwn
		<-done
		require.Equal(t, errOwn, mine.requireError(t))
		<-runs
		again := async(machine(t, open(), mine, job, 0, dbmutex.WithWait(dbmutex.Forever)))
		letGo <- nil
		<-waited
		<-again
		require.Empty(t, others)
		mine.requireDone(t)
	})
}

// TestARunOfATickThatFindsAnotherMutexHeld is no skip.
func TestARunOfATickThatFindsAnotherMutexHeld(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		log := newRecording()
		held := &dbmutex.HeldError{LockID: "another"}
		machine(t, open(), log, cronmutex.Job(func(context.Context) error { return held }), 0).Run()
		require.Equal(t, held, log.requireError(t))
	})
}

func TestATickWhoseLeaseIsLostIsLoggedAndRunsAgain(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		log := newRecording()
		db := open()
		lose := true
		job := cronmutex.Job(func(ctx context.Context) error {
			if lease, _ := dbmutex.LeaseFrom(ctx); lose {
				return db.Where("lock_id = ?", lease.LockID()).Delete(&dbmutex.DBOnce{}).Error
			}
			return nil
		})
		machine(t, open(), log, job, 0).Run()
		testdb.RequireTimeout(t, log.requireError(t), "job@2030-01-01T12:00:00Z", true)
		lose = false
		machine(t, open(), log, job, 0).Run()
		require.Empty(t, log)
		machine(t, open(), log, job, 0).Run()
		log.requireDone(t)
	})
}

func TestATickIsTheNearestTimeOfTheSchedule(t *testing.T) {
	at := func(text string) time.Time {
		at, err := time.Parse("2006-01-02T15:04:05.999Z07:00", text)
		require.NoError(t, err)
		return at
	}
	for _, c := range []struct {
		spec, now, tick string
		period          time.Duration // from the tick before now to the tick after
	}{
		{"CRON_TZ=UTC * * * * *", "2030-01-01T00:00:29.999Z", "2030-01-01T00:00:00Z", time.Minute},
		{"CRON_TZ=UTC * * * * *", "2030-01-01T00:00:30Z", "2030-01-01T00:01:00Z", time.Minute},
		{"CRON_TZ=UTC * * * * *", "2029-12-31T23:59:59.999Z", "2030-01-01T00:00:00Z", time.Minute},
		{"CRON_TZ=UTC * * * * *", "2030-01-01T00:00:00Z", "2030-01-01T00:00:00Z", time.Minute},
		{"CRON_TZ=UTC * * * * * *", "2030-01-01T00:00:00.4Z", "2030-01-01T00:00:00Z", time.Second},
		{"CRON_TZ=UTC * * * * * *", "2030-01-01T00:00:00.6Z", "2030-01-01T00:00:01Z", time.Second},
		{"CRON_TZ=UTC 0 9,17 * * *", "2030-01-01T12:59:59Z", "2030-01-01T09:00:00Z", 8 * time.Hour},
		{"CRON_TZ=UTC 0 9,17 * * *", "2030-01-01T13:00:01Z", "2030-01-01T17:00:00Z", 8 * time.Hour},
		{"CRON_TZ=UTC 0 9,17 * * *", "2030-01-02T00:59:59Z", "2030-01-01T17:00:00Z", 16 * time.Hour},
		{"CRON_TZ=UTC 0 9,17 * * *", "2030-01-02T01:00:01Z", "2030-01-02T09:00:00Z", 16 * time.Hour},
		{"CRON_TZ=UTC 0 3 * * 1", "2030-01-10T00:00:00Z", "2030-01-07T03:00:00Z", 7 * 24 * time.Hour},
		{"CRON_TZ=UTC * * * 1 1 *", "2030-03-01T00:00:00Z", "2030-01-01T23:59:59Z", (364*24)*time.Hour + time.Second},
		{"CRON_TZ=UTC 0 0 29 2 *", "2031-01-01T00:00:00Z", "2032-02-29T00:00:00Z", 1461 * 24 * time.Hour},
		{"CRON_TZ=UTC 0 0 29 2 *", "2029-01-01T00:00:00Z", "2028-02-29T00:00:00Z", 1461 * 24 * time.Hour},
		{"CRON_TZ=Europe/Berlin 30 2 * * *", "2030-03-30T12:00:00Z", "2030-03-30T01:30:00Z", 47 * time.Hour}, // 2:30 is skipped
		{"CRON_TZ=Asia/Kolkata 0 3 * * *", "2030-01-01T09:29:00Z", "2029-12-31T21:30:00Z", 24 * time.Hour},
		{"CRON_TZ=UTC @daily", "2030-01-01T11:59:59Z", "2030-01-01T00:00:00Z", 24 * time.Hour},
	} {
		for _, zone := range []*time.Location{time.UTC, time.FixedZone("", 5*3600+1800)} {
			tick, period := cronmutex.Nearest(schedule(t, c.spec), at(c.now).In(zone))
			require.True(t, tick.Equal(at(c.tick)), "%s at %s: %v", c.spec, c.now, tick)
			require.Equal(t, c.period, period, "%s at %s", c.spec, c.now)
		}
	}
}

// until is a schedule of every hour that ends, or begins.
type until struct{ begin, end time.Time }

func (u until) Next(t time.Time) time.Time {
	next := t.Truncate(time.Hour).Add(time.Hour)
	switch {
	case next.Before(u.begin):
		return u.begin
	case next.After(u.end):
		return time.Time{}
	}
	return next
}

func TestAScheduleThatBeginsAndEnds(t *testing.T) {
	s := until{noon, noon.Add(2 * time.Hour)}
	for _, c := range []struct{ now, tick, period time.Duration }{
		{-24 * time.Hour, 0, 0}, {-time.Minute, 0, 0}, {0, 0, time.Hour}, {29 * time.Minute, 0, time.Hour},
		{31 * time.Minute, time.Hour, time.Hour}, {119 * time.Minute, 2 * time.Hour, time.Hour},
		{120 * time.Minute, 2 * time.Hour, 0}, {48 * time.Hour, 2 * time.Hour, 0},
	} {
		at, period := cronmutex.Nearest(s, noon.Add(c.now))
		require.Equal(t, noon.Add(c.tick), at, c.now)
		require.Equal(t, c.period, period, c.now)
	}
}

func TestATickThatCannotWork(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		db, log := open(), newRecording()
		good := schedule(t, daily)
		refused := func(db *dbmutex.DB, id string, s cron.Schedule, logger cron.Logger, opts ...dbmutex.Option) error {
			w, err := cronmutex.OncePerTick(db, id, s, logger, opts...)
			require.Nil(t, w)
			require.ErrorContains(t, err, "dbmutex: ")
			return err
		}
		for spec, says := range map[string]string{
			"@every 1h": "each scheduler", "0 12 * * *": "time zone", "@daily": "time zone", "CRON_TZ=UTC 0 0 30 2 *": "no tick",
		} {
			err := refused(db, "job", schedule(t, spec), log)
			require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
			require.ErrorContains(t, err, says)
		}
		require.ErrorIs(t, refused(db, "job", nil, log), dbmutex.ErrInvalidSettings)
		require.ErrorIs(t, refused(db, "job", good, nil), dbmutex.ErrInvalidSettings)
		require.ErrorIs(t, refused(db, "job", good, log, briefly), dbmutex.ErrInvalidSettings, "a MinHold")
		require.ErrorIs(t, refused(nil, "job", good, log), dbmutex.ErrNotRegistered)
		require.ErrorIs(t, refused(db, strings.Repeat("j", 250), good, log), dbmutex.ErrInvalidLockID)

		job := machine(t, db, log, cron.FuncJob(func() { t.Error("it ran without the table") }), 0)
		w, err := cronmutex.OncePerTick(db, "job", good, log)
		require.NoError(t, err)
		w(nil).Run()
		require.ErrorIs(t, (<-log).err, dbmutex.ErrInvalidSettings)
		require.NoError(t, db.Migrator().DropTable(&dbmutex.DBOnce{}))
		job.Run()
		require.ErrorContains(t, log.requireError(t), "DBOnce")
		require.ErrorContains(t, refused(open(), "job", good, log), "DBOnce")
	})
}

// tick is a process that runs the tick of noon until stdin ends.
func tick(d *testdb.Database, stdin io.Reader) error {
	db, err := d.Connect()
	if err != nil {
		return err
	}
	s, err := cron.ParseStandard(daily)
	if err != nil {
		return err
	}
	oncePerTick, err := cronmutex.OncePerTickAt(db, "job", s, printing{}, func() time.Time { return noon }, []dbmutex.Option{
		dbmutex.WithTTL(childTTL), dbmutex.WithRenewal(), dbmutex.WithWait(dbmutex.Forever),
	})
	if err != nil {
		return err
	}
	oncePerTick(cronmutex.Job(func(context.Context) error {
		fmt.Println("runs")
		_, err := io.Copy(io.Discard, stdin)
		return err
	})).Run()
	pool, _ := db.DB()
	return pool.Close()
}

// TestAMachineIsKilledInTheMiddleOfATick: another one that waits runs it, and nobody after that.
func TestAMachineIsKilledInTheMiddleOfATick(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, open func() *dbmutex.DB) {
		killed := testprocess.Start(t, d, "tick")
		require.Equal(t, "runs", killed.Line(t))
		waits := testprocess.Start(t, d, "tick")
		killed.Kill(t)
		require.Equal(t, "runs", waits.Line(t))
		third := testprocess.Start(t, d, "tick")
		waits.End(t)
		require.Equal(t, "skip", third.Line(t))
		require.NoError(t, third.Wait())
		log := newRecording()
		machine(t, open(), log, cron.FuncJob(func() { t.Error("it ran again") }), time.Hour).Run()
		log.requireDone(t)
	})
}

// TestSchedulersShareTicks have the same job, every second. The test ends after some ticks.
func TestSchedulersShareTicks(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		ticks := make(chan string, 1000)
		log := newRecording()
		everySecond := schedule(t, "CRON_TZ=UTC * * * * * *")
		var stopped []func() context.Context
		for range 3 {
			c := cron.New()
			w, err := cronmutex.OncePerTick(open(), "job", everySecond, log)
			require.NoError(t, err)
			c.Schedule(everySecond, w(cronmutex.Job(func(ctx context.Context) error {
				lease, _ := dbmutex.LeaseFrom(ctx)
				ticks <- lease.LockID()
				return nil
			})))
			c.Start()
			stopped = append(stopped, c.Stop)
		}
		seen := map[string]bool{}
		for range 3 {
			tick := <-ticks
			require.False(t, seen[tick], tick)
			seen[tick] = true
		}
		for _, stop := range stopped {
			<-stop().Done()
		}
		for len(log) > 0 {
			require.Equal(t, "skip", (<-log).msg)
		}
		for len(ticks) > 0 {
			tick := <-ticks
			require.False(t, seen[tick], tick)
			seen[tick] = true
		}
	})
}
