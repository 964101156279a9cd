// Tasks shows that asynq's tasks of one type do not overlap. Two workers take six reports from one Redis at once. One report
// is built, and the others are dropped meanwhile.
//
//	go run ./examples/tasks
//	go run ./examples/tasks -dsn mysql://user:password@localhost/database
//
// It needs no server: Redis is miniredis, in this process, and the database is a temporary SQLite file without -dsn.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/hibiken/asynq"

	"github.com/gorm-dbmutex/dbmutex"
	asynqmutex "github.com/gorm-dbmutex/dbmutex/contrib/asynq"
	"github.com/gorm-dbmutex/dbmutex/examples/internal/database"
)

func main() {
	dsn := flag.String("dsn", "", database.Usage)
	flag.Parse()
	d, err := database.New(*dsn)
	check(err)
	defer func() { check(d.Remove(&dbmutex.DBMutex{}, &dbmutex.DBOnce{})) }()
	miniature, err := miniredis.Run()
	check(err)
	defer miniature.Close()
	redis := asynq.RedisClientOpt{Addr: miniature.Addr()}

	finish := make(chan struct{})
	for _, worker := range []string{"worker 1", "worker 2"} { // each as if on a machine of its own
		nonOverlapping, err := asynqmutex.NonOverlapping(open(d))
		check(err)
		mux := asynq.NewServeMux()
		mux.Use(nonOverlapping)
		mux.HandleFunc("report", func(context.Context, *asynq.Task) error {
			fmt.Println(worker, "builds the report")
			<-finish
			return nil
		})
		server := asynq.NewServer(redis, asynq.Config{Concurrency: 3, LogLevel: asynq.ErrorLevel})
		check(server.Start(mux))
		defer server.Shutdown()
	}

	client := asynq.NewClient(redis)
	defer func() { _ = client.Close() }()
	for range 6 {
		_, err := client.Enqueue(asynq.NewTask("report", nil), asynq.Retention(time.Hour)) // kept, to be counted
		check(err)
	}
	waitForDone(redis, 5)
	fmt.Println("meanwhile 5 tasks were dropped")
	close(finish)
	waitForDone(redis, 6)
	fmt.Println("the report is built")
}

func open(d *database.Database) *dbmutex.DB {
	gdb, err := d.Open()
	check(err)
	check(gdb.Use(dbmutex.New(dbmutex.DefaultSettings())))
	db := dbmutex.Wrap(gdb)
	check(db.Migrate())
	return db
}

// waitForDone waits until n tasks count as done.
func waitForDone(redis asynq.RedisClientOpt, n int) {
	inspector := asynq.NewInspector(redis)
	defer func() { _ = inspector.Close() }()
	for {
		queue, err := inspector.GetQueueInfo("default")
		check(err)
		if queue.Completed == n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
