// Schedule has two gocron schedulers, as on two machines, with the same job every second. Each time one of them runs the
// job, and the other finds it locked. The program ends after four runs.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/glebarez/sqlite"
	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	gocronmutex "github.com/gorm-dbmutex/dbmutex/contrib/gocron"
)

func main() {
	folder, err := os.MkdirTemp("", "dbmutex-schedule-")
	if err != nil {
		log.Fatal(err)
	}
	err = run(filepath.Join(folder, "app.db"))
	if err := errors.Join(err, os.RemoveAll(folder)); err != nil {
		log.Fatal(err)
	}
}

// run lets two machines work until there were four runs.
func run(file string) error {
	runs := make(chan bool, 100)
	for _, name := range []string{"machine 1", "machine 2"} {
		stop, err := machine(name, file, runs)
		if err != nil {
			return err
		}
		defer stop()
	}
	for range 4 {
		<-runs
	}
	return nil
}

// machine starts a scheduler with a database handle of its own.
func machine(name, file string, runs chan<- bool) (stop func(), err error) {
	gdb, err := gorm.Open(sqlite.Open(file+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)"), &gorm.Config{})
	if err != nil {
		return nil, err
	}
	pool, err := gdb.DB()
	if err != nil {
		return nil, err
	}
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil {
		return nil, err
	}
	db := dbmutex.Wrap(gdb)
	if err := db.Migrate(); err != nil {
		return nil, err
	}

	// Half a second is more than the machines' clocks differ, and less than a second.
	locker, err := gocronmutex.NewLocker(db, dbmutex.WithMinHold(time.Second/2), dbmutex.WithHolder(name))
	if err != nil {
		return nil, err
	}
	scheduler, err := gocron.NewScheduler()
	if err != nil {
		return nil, err
	}
	everySecond := gocron.CronJob("* * * * * *", true)
	_, err = locker.NewJob(scheduler, everySecond, "report", func(ctx context.Context) error {
		lease, err := db.WithContext(ctx).Mutex("report").Holder()
		if err != nil || lease == nil {
			return err
		}
		fmt.Printf("%s  %s runs it\n", lease.CreationTime.Format("15:04:05.000"), lease.Holder)
		runs <- true
		return nil
	}, gocron.WithEventListeners(
		gocron.AfterLockError(func(_ uuid.UUID, _ string, err error) { fmt.Printf("              %s does not: %v\n", name, err) }),
		gocron.AfterJobRunsWithError(func(_ uuid.UUID, _ string, err error) { log.Print(err) }),
	))
	if err != nil {
		return nil, err
	}
	scheduler.Start()
	return func() {
		if err := errors.Join(scheduler.Shutdown(), pool.Close()); err != nil {
			log.Print(err)
		}
	}, nil
}
