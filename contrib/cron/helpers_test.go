package cronmutex_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	cronmutex "github.com/gorm-dbmutex/dbmutex/contrib/cron"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// childTTL is that of the children's leases, with renewal.
const childTTL = 3 * time.Second

// tasks are what child processes do.
var tasks = map[string]testprocess.Task{
	"tick": tick,
	// schedule runs a scheduler whose job lasts until stdin ends. It prints "runs", "ends", "skip" and errors, a line each.
	"schedule": func(d *testdb.Database, stdin io.Reader) error {
		db, err := d.Connect()
		if err != nil {
			return err
		}
		nonOverlapping, err := cronmutex.NonOverlapping(db, "job", printing{},
			dbmutex.WithTTL(childTTL), dbmutex.WithRenewal(), dbmutex.WithMinHold(time.Millisecond))
		if err != nil {
			return err
		}
		stopped := make(chan bool)
		c := cron.New()
		_, err = c.AddJob("@every 1s", nonOverlapping(cronmutex.Job(func(context.Context) error {
			fmt.Println("runs")
			<-stopped
			fmt.Println("ends")
			return nil
		})))
		if err != nil {
			return err
		}
		c.Start()
		_, _ = io.Copy(io.Discard, stdin)
		released := c.Stop()
		close(stopped)
		<-released.Done()
		pool, _ := db.DB()
		return pool.Close()
	},
}

// TestMain also is the body of the child processes.
func TestMain(m *testing.M) {
	testprocess.Main(m, tasks)
}

// printing is a cron.Logger.
type printing struct{}

func (printing) Info(msg string, _ ...any)             { fmt.Println(msg) }
func (printing) Error(err error, msg string, _ ...any) { fmt.Println(msg+":", err) }

// entry is what a job logged: an Info has no error.
type entry struct {
	msg    string
	err    error
	values []any
}

// recording is a cron.Logger.
type recording chan entry

func newRecording() recording { return make(recording, 100) }

func (r recording) Info(msg string, values ...any)             { r <- entry{msg: msg, values: values} }
func (r recording) Error(err error, msg string, values ...any) { r <- entry{msg, err, values} }

// requireSkip wants that a skip, and nothing else, was logged.
func (r recording) requireSkip(t *testing.T) {
	t.Helper()
	require.Len(t, r, 1)
	e := <-r
	require.NoError(t, e.err)
	require.Equal(t, "skip", e.msg)
	require.Len(t, e.values, 2)
	require.ErrorIs(t, e.values[1].(error), dbmutex.ErrNotAcquired)
}

// requireError returns the one error that was logged.
func (r recording) requireError(t *testing.T) error {
	t.Helper()
	require.Len(t, r, 1)
	e := <-r
	require.Error(t, e.err, e.msg)
	require.Equal(t, entry{"run", e.err, []any{"mutex", "job"}}, e)
	return e.err
}

func requireTimeout(t *testing.T, err error, lost bool) *dbmutex.TimeoutError {
	t.Helper()
	return testdb.TimeoutOf(t, err, "job", lost)
}

// shortLease is the TTL of leases that run out.
const shortLease = 20 * time.Millisecond

// overlap takes the mutex over as soon as the lease has run out, and releases it.
func overlap(t *testing.T, db *dbmutex.DB) {
	next, err := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
	assert.NoError(t, err)
	assert.NoError(t, next.Release())
}

// each runs fn on every kind of database, with open for the handles of as many machines as it needs.
func each(t *testing.T, fn func(t *testing.T, d *testdb.Database, open func() *dbmutex.DB)) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		open := func() *dbmutex.DB { return d.Registered(t, dbmutex.DefaultSettings()) }
		require.NoError(t, open().Migrate())
		fn(t, d, open)
	})
}

// briefly is for tests whose runs do not come at the same tick: the mutex is free as soon as they end.
var briefly = dbmutex.WithMinHold(time.Microsecond)

func wrapper(t *testing.T, db *dbmutex.DB, logger cron.Logger, opts ...dbmutex.Option) cron.JobWrapper {
	t.Helper()
	w, err := cronmutex.NonOverlapping(db, "job", logger, opts...)
	require.NoError(t, err)
	return w
}

func requireFree(t *testing.T, db *dbmutex.DB) {
	t.Helper()
	row, err := db.Mutex("job").Holder()
	require.NoError(t, err)
	require.Nil(t, row)
}

// tried returns a channel that hears of the next try to acquire on the handle.
func tried(t *testing.T, db *dbmutex.DB) <-chan bool {
	t.Helper()
	tries := make(chan bool, 1)
	require.NoError(t, db.Callback().Row().After("gorm:row").Register("tried", func(*gorm.DB) {
		select {
		case tries <- true:
		default:
		}
	}))
	return tries
}

// holding is a job that runs until it is let go.
func holding() (job cronmutex.Job, runs chan bool, letGo chan error) {
	runs, letGo = make(chan bool), make(chan error)
	return func(context.Context) error {
		runs <- true
		return <-letGo
	}, runs, letGo
}

// async runs a job and closes done when it has returned.
func async(job cron.Job) (done chan bool) {
	done = make(chan bool)
	go func() {
		defer close(done)
		job.Run()
	}()
	return done
}

var errOwn = errors.New("the job's own")
