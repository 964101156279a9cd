// Schedule has two gocron schedulers, as on two machines, with the same job every second. Each time one of them runs the
// job, and the other finds it locked. The program ends after four runs.
//
//	go run ./examples/schedule
//	go run ./examples/schedule -dsn mysql://user:password@localhost/database
//
// Without -dsn the mutexes are in a temporary SQLite file.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"

	"github.com/gorm-dbmutex/dbmutex"
	gocronmutex "github.com/gorm-dbmutex/dbmutex/contrib/gocron"
	"github.com/gorm-dbmutex/dbmutex/examples/internal/database"
)

func main() {
	dsn := flag.String("dsn", "", database.Usage)
	flag.Parse()
	d, err := database.New(*dsn)
	if err == nil {
		err = errors.Join(run(d), d.Remove(&dbmutex.DBMutex{}, &dbmutex.DBOnce{}))
	}
	if err != nil {
		log.Fatal(err)
	}
}

// run lets two machines work until there were four runs.
func run(d *database.Database) error {
	runs := make(chan bool, 100)
	for _, name := range []string{"machine 1", "machine 2"} {
		stop, err := machine(name, d, runs)
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
func machine(name string, d *database.Database, runs chan<- bool) (stop func(), err error) {
	gdb, err := d.Open()
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
