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

// A worker. However many there are, one report at a time is built; a task that comes meanwhile is dropped.
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

// A task that overlaps runs later, and finding the mutex held counts as no failure of it. Tasks of different queues may
// overlap. A run that may have overlapped, because its lease was lost, is not retried but put into asynq's archive. One
// whose lease only ran out was alone, and is retried as after any failure.
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
