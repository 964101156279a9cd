package rivermutex_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	rivermutex "github.com/gorm-dbmutex/dbmutex/contrib/river"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// childTTL is that of the children's leases, with renewal.
const childTTL = 3 * time.Second

// tasks are what child processes do.
var tasks = map[string]testprocess.Task{
	// work works one job at a time, each until stdin ends. It prints "runs", "snoozed" and "completed" with the job's id, a
	// line each.
	"work": func(d *testdb.Database, stdin io.Reader) error {
		db, err := d.Connect()
		if err != nil {
			return err
		}
		nonOverlapping, err := rivermutex.Policy{Snooze: 100 * time.Millisecond}.
			NonOverlapping(db, dbmutex.WithTTL(childTTL), dbmutex.WithRenewal())
		if err != nil {
			return err
		}
		stopped := make(chan bool)
		workers := river.NewWorkers()
		river.AddWorker(workers, river.WorkFunc(func(_ context.Context, job *river.Job[report]) error {
			fmt.Println("runs", job.ID)
			<-stopped
			return nil
		}))
		config := config(workers, nonOverlapping)
		config.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 1}}
		pool, err := db.DB()
		if err != nil {
			return err
		}
		client, err := river.NewClient(riverdatabasesql.New(pool), config)
		if err != nil {
			return err
		}
		events, _ := client.Subscribe(river.EventKindJobSnoozed, river.EventKindJobCompleted)
		printed := make(chan bool)
		go func() {
			defer close(printed)
			for event := range events {
				fmt.Println(map[river.EventKind]string{
					river.EventKindJobSnoozed:   "snoozed",
					river.EventKindJobCompleted: "completed",
				}[event.Kind], event.Job.ID)
			}
		}()
		if err := client.Start(context.Background()); err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, stdin)
		close(stopped)
		err = client.Stop(context.Background())
		<-printed
		return errors.Join(err, pool.Close())
	},
}

// TestMain also is the body of the child processes.
func TestMain(m *testing.M) {
	testprocess.Main(m, tasks)
}

// report and mail are kinds of jobs. What they do is each test's own matter.
type report struct {
	Name string `json:"name"`
}

func (report) Kind() string { return "report" }

type mail struct{}

func (mail) Kind() string { return "mail" }

var errOwn = errors.New("the job's own")

func config(workers *river.Workers, middleware ...rivertype.Middleware) *river.Config {
	return &river.Config{
		FetchCooldown:     10 * time.Millisecond,
		FetchPollInterval: 50 * time.Millisecond,
		Logger:            slog.New(slog.DiscardHandler),
		MaxAttempts:       1, // a job that has failed does not come again
		Middleware:        middleware,
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 4}},
		TestOnly:          true, // its services start at once
		Workers:           workers,
	}
}

// world is a database with the tables of dbmutex and River.
type world struct {
	d    *testdb.Database
	db   *dbmutex.DB
	pool *sql.DB
}

func newWorld(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	w := &world{d: testdb.Postgres(t)}
	w.db, w.pool = w.open(t, dbmutex.DefaultSettings())
	require.NoError(t, w.db.Migrate())
	migrator, err := rivermigrate.New(riverdatabasesql.New(w.pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	_, err = migrator.Migrate(t.Context(), rivermigrate.DirectionUp, nil)
	require.NoError(t, err)
	return w
}

func (w *world) open(t *testing.T, settings dbmutex.Settings) (*dbmutex.DB, *sql.DB) {
	t.Helper()
	db := w.d.Registered(t, settings)
	pool, err := db.DB()
	require.NoError(t, err)
	return db, pool
}

var requireTimeout = testdb.RequireTimeout

func (w *world) requireFree(t *testing.T, id string) {
	t.Helper()
	row, err := w.db.Mutex(id).Holder()
	require.NoError(t, err)
	require.Nil(t, row)
}

// client is a client that works jobs, and what has become of them.
type client struct {
	*river.Client[*sql.Tx]
	events <-chan *river.Event
}

// start starts a client for reports, which stops with the test.
func (w *world) start(
	t *testing.T, p rivermutex.Policy, work func(context.Context, *river.Job[report]) error, opts ...dbmutex.Option,
) *client {
	t.Helper()
	nonOverlapping, err := p.NonOverlapping(w.db, opts...)
	require.NoError(t, err)
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(work))
	return w.run(t, config(workers, nonOverlapping))
}

func (w *world) run(t *testing.T, config *river.Config) *client {
	t.Helper()
	c, err := river.NewClient(riverdatabasesql.New(w.pool), config)
	require.NoError(t, err)
	events, _ := c.Subscribe(river.EventKindJobCompleted, river.EventKindJobFailed, river.EventKindJobCancelled,
		river.EventKindJobSnoozed)
	require.NoError(t, c.Start(context.Background()))
	t.Cleanup(func() {
		if err := c.StopAndCancel(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return &client{c, events}
}

func (c *client) insert(t *testing.T, args river.JobArgs) *rivertype.JobRow {
	t.Helper()
	inserted, err := c.Insert(t.Context(), args, nil)
	require.NoError(t, err)
	return inserted.Job
}

// become waits for what becomes of a job; the client works no other.
func (c *client) become(t *testing.T, want river.EventKind, job *rivertype.JobRow) *rivertype.JobRow {
	t.Helper()
	event := <-c.events
	require.Equal(t, want, event.Kind)
	require.Equal(t, job.ID, event.Job.ID)
	return event.Job
}

// afterWork is a middleware that sees how the work ended, before those in front of it do.
type afterWork func(err error)

func (afterWork) IsMiddleware() bool { return true }

func (see afterWork) Work(ctx context.Context, _ *rivertype.JobRow, work func(context.Context) error) error {
	err := work(ctx)
	see(err)
	return err
}

// holding is the work of jobs that say that they run, and do so until they are let go.
func holding() (work func(context.Context, *river.Job[report]) error, runs chan int64, letGo chan error) {
	runs, letGo = make(chan int64), make(chan error)
	return func(ctx context.Context, job *river.Job[report]) error {
		select {
		case runs <- job.ID:
		case <-ctx.Done(): // the test has failed
			return ctx.Err()
		}
		select {
		case err := <-letGo:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}, runs, letGo
}
