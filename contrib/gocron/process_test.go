package gocronmutex_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	gormlock "github.com/go-co-op/gocron-gorm-lock/v2"
	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	gocronmutex "github.com/gorm-dbmutex/dbmutex/contrib/gocron"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// tasks are what child processes do. They print what happens, a line each.
var tasks = map[string]testprocess.Task{
	// share runs a scheduler with a Locker, whose job lasts until stdin ends.
	"share": func(d *testdb.Database, stdin io.Reader) error {
		locker, err := childLocker(d)
		if err != nil {
			return err
		}
		scheduler, err := gocron.NewScheduler()
		if err != nil {
			return err
		}
		_, err = locker.NewJob(scheduler, gocron.DurationJob(100*time.Millisecond), "job", func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			fmt.Println("runs", lease.Token())
			<-ctx.Done()
			fmt.Println("ends", context.Cause(ctx))
			return nil
		}, gocron.WithEventListeners(
			gocron.AfterLockError(func(_ uuid.UUID, _ string, err error) { fmt.Println(err) }),
			gocron.AfterJobRuns(func(uuid.UUID, string) { fmt.Println("no error") }),
			gocron.AfterJobRunsWithError(func(_ uuid.UUID, _ string, err error) { fmt.Println(err) })),
			gocron.WithSingletonMode(gocron.LimitModeReschedule))
		if err != nil {
			return err
		}
		return schedule(scheduler, stdin)
	},
	// lead runs a scheduler with an Elector, whose jobs last no time.
	"lead": func(d *testdb.Database, stdin io.Reader) error {
		db, err := d.Connect()
		if err != nil {
			return err
		}
		elector, err := gocronmutex.NewElector(db, "leader", dbmutex.WithTTL(childTTL))
		if err != nil {
			return err
		}
		scheduler, err := gocron.NewScheduler(gocron.WithDistributedElector(printingElector{elector}))
		if err != nil {
			return err
		}
		_, err = scheduler.NewJob(gocron.DurationJob(200*time.Millisecond), gocron.NewTask(func() { fmt.Println("runs") }))
		if err != nil {
			return err
		}
		if err := schedule(scheduler, stdin); err != nil {
			return err
		}
		fmt.Println("closed", elector.Close())
		return nil
	},
	"tick": tick,
	"lock": func(d *testdb.Database, stdin io.Reader) error {
		locker, err := childLocker(d)
		if err != nil {
			return err
		}
		return lockAndStay(locker, stdin)
	},
	"lock as a rival": func(d *testdb.Database, stdin io.Reader) error {
		db, err := d.Connect()
		if err != nil {
			return err
		}
		locker, err := gormlock.NewGormLocker(db.Gorm, "child", always, gormlock.WithTTL(childTTL))
		if err != nil {
			return err
		}
		return lockAndStay(locker, stdin)
	},
}

// childTTL is that of the children's leases, with renewal.
const childTTL = 5 * time.Second

func childLocker(d *testdb.Database) (*gocronmutex.Locker, error) {
	db, err := d.Connect()
	if err != nil {
		return nil, err
	}
	return gocronmutex.NewLocker(db, dbmutex.WithTTL(childTTL), dbmutex.WithRenewal(), briefly)
}

// schedule runs a scheduler until stdin ends.
func schedule(scheduler gocron.Scheduler, stdin io.Reader) error {
	scheduler.Start()
	_, _ = io.Copy(io.Discard, stdin)
	return scheduler.Shutdown()
}

type printingElector struct{ gocron.Elector }

func (p printingElector) IsLeader(ctx context.Context) error {
	err := p.Elector.IsLeader(ctx)
	if err != nil {
		fmt.Println(err)
	}
	return err
}

// lineWith skips a process's lines up to one with a text.
func lineWith(t *testing.T, p *testprocess.Process, text string) string {
	t.Helper()
	for {
		if line := p.Line(t); strings.Contains(line, text) {
			return line
		}
	}
}

func TestProcessesShareAJob(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, _ func() *dbmutex.DB) {
		runs := func(p *testprocess.Process) (token int64) {
			_, err := fmt.Sscanf(lineWith(t, p, "runs "), "runs %d", &token)
			require.NoError(t, err)
			return token
		}
		killed := testprocess.Start(t, d, "share")
		first := runs(killed)
		ended := testprocess.Start(t, d, "share")
		require.Contains(t, ended.Line(t), `"job" is held by`)
		killed.Kill(t)
		second := runs(ended)
		require.Greater(t, second, first)
		last := testprocess.Start(t, d, "share")
		require.Contains(t, last.Line(t), `"job" is held by`)
		ended.CloseInput(t)
		require.Equal(t, "ends context canceled", ended.Line(t))
		require.Equal(t, "no error", ended.Line(t))
		require.Greater(t, runs(last), second)
		require.NoError(t, ended.Wait())
		last.End(t)
	})
}

func TestProcessesElectALeader(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, _ func() *dbmutex.DB) {
		killed := testprocess.Start(t, d, "lead")
		lineWith(t, killed, "runs")
		closed := testprocess.Start(t, d, "lead")
		for range 3 {
			require.Contains(t, closed.Line(t), gocronmutex.ErrNotLeader.Error())
		}
		lineWith(t, killed, "runs")
		killed.Kill(t)
		lineWith(t, closed, "runs")
		last := testprocess.Start(t, d, "lead")
		require.Contains(t, last.Line(t), gocronmutex.ErrNotLeader.Error())
		closed.CloseInput(t)
		lineWith(t, closed, "closed <nil>")
		require.NoError(t, closed.Wait())
		lineWith(t, last, "runs")
		last.End(t)
	})
}
