// Tasks shows that asynq's tasks of one type do not overlap. Two workers take six reports from one Redis at once. One report
// is built, and the others are dropped meanwhile.
//
// It needs no server: Redis is miniredis, in this process, and the database is a SQLite file in a temporary folder.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/glebarez/sqlite"
	"github.com/hibiken/asynq"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	asynqmutex "github.com/gorm-dbmutex/dbmutex/contrib/asynq"
)

func main() {
	folder, err := os.MkdirTemp("", "dbmutex-tasks-")
	check(err)
	defer func() { _ = os.RemoveAll(folder) }()
	miniature, err := miniredis.Run()
	check(err)
	defer miniature.Close()
	redis := asynq.RedisClientOpt{Addr: miniature.Addr()}

	finish := make(chan struct{})
	for _, worker := range []string{"worker 1", "worker 2"} { // each as if on a machine of its own
		nonOverlapping, err := asynqmutex.NonOverlapping(open(filepath.Join(folder, "app.db")))
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

func open(file string) *dbmutex.DB {
	gdb, err := gorm.Open(sqlite.Open(file), &gorm.Config{Logger: logger.Discard}) // else it warns of each dropped task
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
