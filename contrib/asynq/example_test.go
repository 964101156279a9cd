package asynqmutex_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/hibiken/asynq"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	asynqmutex "github.com/gorm-dbmutex/dbmutex/contrib/asynq"
)

func buildReport(context.Context, *asynq.Task) error {
	fmt.Println("building the report")
	return nil
}

// This is a worker. However many workers there are, they build one report at a time. A task that comes meanwhile is dropped.
func Example() {
	gdb, err := gorm.Open(sqlite.Open("app.db"), &gorm.Config{})
	if err != nil {
		log.Fatal(err)
	}
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil {
		log.Fatal(err)
	}
	db := dbmutex.Wrap(gdb)
	if err := db.Migrate(); err != nil {
		log.Fatal(err)
	}

	nonOverlapping, err := asynqmutex.NonOverlapping(db, dbmutex.WithTTL(30*time.Second), dbmutex.WithRenewal())
	if err != nil {
		log.Fatal(err)
	}
	mux := asynq.NewServeMux()
	mux.Use(nonOverlapping)
	mux.HandleFunc("report", buildReport)
	server := asynq.NewServer(asynq.RedisClientOpt{Addr: "127.0.0.1:6379"}, asynq.Config{})
	if err := server.Run(mux); err != nil {
		log.Fatal(err)
	}
}

// A task that finds the mutex held runs later, and this counts as no failure of it. Tasks of different queues may overlap.
// If a run's lease was lost, another run may have overlapped: the task is not retried, but put into asynq's archive. If the
// lease only ran out, the run was alone: the task is retried as after any failure.
func ExamplePolicy() {
	var db *dbmutex.DB // as above

	nonOverlapping, err := asynqmutex.Policy{
		Held: asynqmutex.Retry,
		Key: func(ctx context.Context, task *asynq.Task) string {
			queue, _ := asynq.GetQueueName(ctx)
			return queue + "/" + task.Type()
		},
		OnTimeout: func(_ context.Context, _ *asynq.Task, err error) error {
			var timeout *dbmutex.TimeoutError
			if errors.As(err, &timeout) && timeout.Lost {
				return fmt.Errorf("%w: %w", asynq.SkipRetry, err)
			}
			return err
		},
	}.NonOverlapping(db, dbmutex.WithTTL(30*time.Second), dbmutex.WithRenewal())
	if err != nil {
		log.Fatal(err)
	}
	mux := asynq.NewServeMux()
	mux.Handle("report", nonOverlapping(asynq.HandlerFunc(buildReport))) // this type of task alone
	mux.HandleFunc("mail", func(context.Context, *asynq.Task) error { return nil })

	server := asynq.NewServer(asynq.RedisClientOpt{Addr: "127.0.0.1:6379"}, asynq.Config{
		IsFailure: asynqmutex.IsFailure,
		RetryDelayFunc: func(n int, err error, task *asynq.Task) time.Duration {
			if !asynqmutex.IsFailure(err) {
				return 10 * time.Second
			}
			return asynq.DefaultRetryDelayFunc(n, err, task)
		},
	})
	if err := server.Run(mux); err != nil {
		log.Fatal(err)
	}
}

// asynq delivers a task again if the worker dies before it can say that the task is done. With OncePerTask the task does not
// run again after its success. Tasks of one type do not overlap either.
func ExampleOncePerTask() {
	var db *dbmutex.DB // as above

	oncePerTask, err := asynqmutex.OncePerTask(db, 7*24*time.Hour, dbmutex.WithTTL(30*time.Second), dbmutex.WithRenewal())
	if err != nil {
		log.Fatal(err)
	}
	nonOverlapping, err := asynqmutex.Policy{Held: asynqmutex.Retry}.NonOverlapping(db,
		dbmutex.WithTTL(30*time.Second), dbmutex.WithRenewal())
	if err != nil {
		log.Fatal(err)
	}
	mux := asynq.NewServeMux()
	mux.Use(oncePerTask, nonOverlapping) // in this order
	mux.HandleFunc("report", buildReport)
	server := asynq.NewServer(asynq.RedisClientOpt{Addr: "127.0.0.1:6379"}, asynq.Config{IsFailure: asynqmutex.IsFailure})
	if err := server.Run(mux); err != nil {
		log.Fatal(err)
	}
}
