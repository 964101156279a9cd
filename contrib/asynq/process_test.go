package asynqmutex_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	asynqmutex "github.com/gorm-dbmutex/dbmutex/contrib/asynq"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

const (
	networkVariable = "DBMUTEX_TEST_REDIS_NETWORK"
	addressVariable = "DBMUTEX_TEST_REDIS_ADDRESS"
)

// TestMain also is the body of the worker processes.
func TestMain(m *testing.M) {
	testprocess.Main(m, map[string]testprocess.Task{"worker": worker, "once": workerOfOnce})
}

// worker is a process that runs one task at a time. It prints what it does; a task lasts until stdin ends.
func worker(d *testdb.Database, stdin io.Reader) error {
	return work(d, stdin, func(db *dbmutex.DB, opts ...dbmutex.Option) (asynq.MiddlewareFunc, error) {
		return asynqmutex.Policy{Held: asynqmutex.Retry}.NonOverlapping(db, opts...)
	})
}

// workerOfOnce is a worker with OncePerTask.
func workerOfOnce(d *testdb.Database, stdin io.Reader) error {
	return work(d, stdin, func(db *dbmutex.DB, opts ...dbmutex.Option) (asynq.MiddlewareFunc, error) {
		return asynqmutex.OncePerTask(db, time.Hour, opts...)
	})
}

func work(
	d *testdb.Database, stdin io.Reader, middleware func(*dbmutex.DB, ...dbmutex.Option) (asynq.MiddlewareFunc, error),
) error {
	db, err := d.Connect()
	if err != nil {
		return err
	}
	m, err := middleware(db, dbmutex.WithTTL(5*time.Second), dbmutex.WithRenewal())
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		close(ended)
	}()
	mux := asynq.NewServeMux()
	mux.Use(m)
	mux.HandleFunc("report", func(ctx context.Context, _ *asynq.Task) error {
		id, _ := asynq.GetTaskID(ctx)
		fmt.Println("runs", id)
		<-ended
		return nil
	})
	server := asynq.NewServer(
		asynq.RedisClientOpt{Network: os.Getenv(networkVariable), Addr: os.Getenv(addressVariable)},
		asynq.Config{
			Concurrency:              1,
			TaskCheckInterval:        20 * time.Millisecond,
			DelayedTaskCheckInterval: 20 * time.Millisecond,
			LogLevel:                 asynq.FatalLevel,
			IsFailure:                asynqmutex.IsFailure,
			RetryDelayFunc:           func(int, error, *asynq.Task) time.Duration { return time.Second },
			ErrorHandler: asynq.ErrorHandlerFunc(func(ctx context.Context, _ *asynq.Task, err error) {
				id, _ := asynq.GetTaskID(ctx)
				fmt.Println("does not run", id, errors.Is(err, dbmutex.ErrNotAcquired))
			}),
		},
	)
	if err := server.Start(mux); err != nil {
		return err
	}
	<-ended
	server.Shutdown()
	pool, _ := db.DB()
	return pool.Close()
}

func TestAWorkerThatIsKilled(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		env := []string{networkVariable + "=" + p.redis.Network, addressVariable + "=" + p.redis.Addr}
		first := testprocess.Start(t, p.database, "worker", env...)
		one := p.enqueue(t, "report")
		require.Equal(t, "runs "+one.ID, first.Line(t))

		two := p.enqueue(t, "report", asynq.MaxRetry(1))
		second := testprocess.Start(t, p.database, "worker", env...)
		for range 2 {
			require.Equal(t, "does not run "+two.ID+" true", second.Line(t))
		}
		first.Kill(t)
		for {
			line := second.Line(t)
			if line == "runs "+two.ID {
				break
			}
			require.Equal(t, "does not run "+two.ID+" true", line)
		}
		second.End(t)
		p.requireBecomes(t, two, asynq.TaskStateCompleted)
		p.requireBecomesFree(t, "report")
	})
}
