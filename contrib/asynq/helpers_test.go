package asynqmutex_test

import (
	"bytes"
	"context"
	"log"
	"sync"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	asynqmutex "github.com/gorm-dbmutex/dbmutex/contrib/asynq"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// place is a Redis and a database of a test's own.
type place struct {
	start     func(t *testing.T) asynq.RedisClientOpt
	redis     asynq.RedisClientOpt
	client    *asynq.Client
	inspector *asynq.Inspector
	database  *testdb.Database
	db        *dbmutex.DB
	log       *logs // of GORM
}

// each runs a test on every Redis with every database. The plugin's settings have SkipHeld, which must not matter.
func each(t *testing.T, test func(t *testing.T, p *place)) {
	for name, start := range redisServers {
		t.Run(name, func(t *testing.T) {
			testdb.Each(t, func(t *testing.T, d *testdb.Database) {
				t.Parallel()
				p := &place{start: start, database: d, log: &logs{}}
				p.connect(t)
				gdb := d.Open(t, &gorm.Config{Logger: logger.New(log.New(p.log, "", 0), logger.Config{LogLevel: logger.Warn})})
				settings := dbmutex.DefaultSettings()
				settings.SkipHeld = true
				require.NoError(t, gdb.Use(dbmutex.New(settings)))
				p.db = dbmutex.Wrap(gdb)
				require.NoError(t, p.db.Migrate())
				test(t, p)
			})
		})
	}
}

// connect starts the Redis.
func (p *place) connect(t *testing.T) {
	p.redis = p.start(t)
	p.client, p.inspector = asynq.NewClient(p.redis), asynq.NewInspector(p.redis)
	t.Cleanup(func() {
		require.NoError(t, p.client.Close())
		require.NoError(t, p.inspector.Close())
	})
}

// elsewhere is the place with another Redis.
func (p *place) elsewhere(t *testing.T) *place {
	other := *p
	other.connect(t)
	return &other
}

// serve starts a worker that runs every task through the middleware, until the test ends. What its ErrorHandler gets is
// sent on the channel.
func (p *place) serve(
	t *testing.T, m asynq.MiddlewareFunc, work asynq.HandlerFunc, change ...func(*asynq.Config),
) (*asynq.Server, <-chan error) {
	t.Helper()
	errs := make(chan error, 1000)
	config := asynq.Config{
		Concurrency:              4,
		TaskCheckInterval:        20 * time.Millisecond,
		DelayedTaskCheckInterval: 20 * time.Millisecond,
		LogLevel:                 asynq.FatalLevel,
		IsFailure:                asynqmutex.IsFailure,
		RetryDelayFunc:           func(int, error, *asynq.Task) time.Duration { return time.Hour },
		ErrorHandler:             asynq.ErrorHandlerFunc(func(_ context.Context, _ *asynq.Task, err error) { errs <- err }),
	}
	for _, c := range change {
		c(&config)
	}
	server := asynq.NewServer(p.redis, config)
	require.NoError(t, server.Start(m(work)))
	t.Cleanup(server.Shutdown)
	return server, errs
}

// retryAtOnce is a change of a worker's Config.
func retryAtOnce(c *asynq.Config) {
	c.RetryDelayFunc = func(int, error, *asynq.Task) time.Duration { return 0 }
}

// middleware must be made.
func (p *place) middleware(t *testing.T, policy asynqmutex.Policy, opts ...dbmutex.Option) asynq.MiddlewareFunc {
	t.Helper()
	m, err := policy.NonOverlapping(p.db, opts...)
	require.NoError(t, err)
	return m
}

// enqueue puts a task into the queue "default" unless opts say otherwise. It is kept when it is done.
func (p *place) enqueue(t *testing.T, taskType string, opts ...asynq.Option) *asynq.TaskInfo {
	t.Helper()
	info, err := p.client.Enqueue(asynq.NewTask(taskType, nil), append([]asynq.Option{asynq.Retention(time.Hour)}, opts...)...)
	require.NoError(t, err)
	return info
}

// requireBecomes waits until asynq has a task in a state.
func (p *place) requireBecomes(t *testing.T, task *asynq.TaskInfo, state asynq.TaskState) *asynq.TaskInfo {
	t.Helper()
	var now *asynq.TaskInfo
	require.Eventually(t, func() (is bool) {
		var err error
		now, err = p.inspector.GetTaskInfo(task.Queue, task.ID)
		return err == nil && now.State == state
	}, time.Minute, 10*time.Millisecond, "the task does not become %v", state)
	return now
}

// hold takes a mutex, as another worker would.
func (p *place) hold(t *testing.T, id string) *dbmutex.Lease {
	t.Helper()
	lease, err := p.mutex(id).Acquire()
	require.NoError(t, err)
	t.Cleanup(func() { _ = lease.Release() })
	return lease
}

// requireBecomesFree waits until nobody has a mutex.
func (p *place) requireBecomesFree(t *testing.T, id string) {
	t.Helper()
	require.Eventually(t, func() bool {
		holder, err := p.mutex(id).Holder()
		return err == nil && holder == nil
	}, time.Minute, 10*time.Millisecond)
}

// mutex is the mutex as the test itself uses it, beside the middleware: GORM's log is not told of that.
func (p *place) mutex(id string) *dbmutex.Mutex {
	return p.silent().Mutex(id, func(s *dbmutex.Settings) { s.SkipHeld = false })
}

// silent is the handle without GORM's log.
func (p *place) silent() *dbmutex.DB { return p.db.Session(&gorm.Session{Logger: logger.Discard}) }

var requireTimeout = testdb.RequireTimeout

// receive waits for what a channel gets.
func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(time.Minute):
		require.Fail(t, "nothing came")
		panic("not reached")
	}
}

// logs can be written and read at the same time.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
