package gocronmutex_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/google/uuid"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	gocronmutex "github.com/gorm-dbmutex/dbmutex/contrib/gocron"
)

// openExample opens a new SQLite file; done closes and removes it.
func openExample() (db *dbmutex.DB, done func()) {
	folder, err := os.MkdirTemp("", "gocronmutex")
	if err != nil {
		panic(err)
	}
	gdb, err := gorm.Open(sqlite.Open(filepath.Join(folder, "app.db")), &gorm.Config{})
	if err != nil {
		panic(err)
	}
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil {
		panic(err)
	}
	if err := gdb.AutoMigrate(&dbmutex.DBMutex{}, &dbmutex.DBOnce{}); err != nil {
		panic(err)
	}
	return dbmutex.Wrap(gdb), func() {
		pool, _ := gdb.DB()
		_ = pool.Close()
		_ = os.RemoveAll(folder)
	}
}

// Each run of a job is locked by the job's name.
func ExampleNewLocker() {
	db, done := openExample()
	defer done()

	locker, err := gocronmutex.NewLocker(db,
		dbmutex.WithMinHold(30*time.Second), dbmutex.WithTTL(time.Minute), dbmutex.WithRenewal())
	if err != nil {
		fmt.Println(err)
		return
	}
	scheduler, err := gocron.NewScheduler(gocron.WithDistributedLocker(locker))
	if err != nil {
		fmt.Println(err)
		return
	}
	ran := make(chan bool)
	_, err = scheduler.NewJob(gocron.CronJob("* * * * *", false), gocron.NewTask(func() {
		fmt.Println("the report is built")
		close(ran)
	}), gocron.WithName("report"), gocron.WithStartAt(gocron.WithStartImmediately()))
	if err != nil {
		fmt.Println(err)
		return
	}
	scheduler.Start()
	<-ran
	fmt.Println(scheduler.Shutdown())
	// Output:
	// the report is built
	// <nil>
}

// The job's context is its lease's, and its error says whether the lease was lost, or only ran out.
func ExampleLocker_NewJob() {
	db, done := openExample()
	defer done()

	locker, err := gocronmutex.NewLocker(db,
		dbmutex.WithMinHold(30*time.Second), dbmutex.WithTTL(time.Minute), dbmutex.WithRenewal())
	if err != nil {
		fmt.Println(err)
		return
	}
	scheduler, err := gocron.NewScheduler()
	if err != nil {
		fmt.Println(err)
		return
	}
	outcome := make(chan error)
	job, err := locker.NewJob(scheduler, gocron.CronJob("0 3 * * *", false), "report", func(ctx context.Context) error {
		lease, _ := dbmutex.LeaseFrom(ctx)
		fmt.Println("building the report, token", lease.Token())
		return nil
	}, gocron.WithEventListeners(
		gocron.AfterLockError(func(_ uuid.UUID, _ string, err error) { outcome <- err }), // somebody else is building it
		gocron.AfterJobRunsWithError(func(_ uuid.UUID, _ string, err error) { outcome <- err }),
		gocron.AfterJobRuns(func(uuid.UUID, string) { outcome <- nil }),
	))
	if err != nil {
		fmt.Println(err)
		return
	}
	scheduler.Start()
	fmt.Println(job.RunNow(), <-outcome)
	fmt.Println(scheduler.Shutdown())
	// Output:
	// building the report, token 1
	// <nil> <nil>
	// <nil>
}

// Two schedulers come to the same tick. One runs it. The other waits until it has succeeded, and skips it.
func ExampleNewTickLocker() {
	db, done := openExample()
	defer done()

	locker, err := gocronmutex.NewTickLocker(db, time.Hour, // all ticks are full hours: 0 3 * * * is one
		dbmutex.WithTTL(30*time.Second), dbmutex.WithRenewal(), dbmutex.WithWait(dbmutex.Forever))
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 2 {
		scheduler, err := gocron.NewScheduler(gocron.WithLocation(time.UTC))
		if err != nil {
			fmt.Println(err)
			return
		}
		outcome := make(chan string)
		job, err := locker.NewJob(scheduler, gocron.CronJob("0 0 * * *", false), "report", func(context.Context) error {
			fmt.Println("building the report")
			return nil
		}, gocron.WithEventListeners(
			gocron.AfterJobRunsWithError(func(_ uuid.UUID, _ string, err error) { outcome <- err.Error() }), // it will run again
			gocron.AfterJobRuns(func(uuid.UUID, string) { outcome <- "it has run" }),
			gocron.AfterLockError(func(_ uuid.UUID, _ string, err error) { outcome <- err.Error() }),
		))
		if err != nil {
			fmt.Println(err)
			return
		}
		scheduler.Start()
		fmt.Println(job.RunNow(), <-outcome) // the nearest midnight
		fmt.Println(scheduler.Shutdown())
	}
	// Output:
	// building the report
	// <nil> it has run
	// <nil>
	// <nil> dbmutex: the tick has run already
	// <nil>
}

// One scheduler at a time runs all the jobs.
func ExampleNewElector() {
	db, done := openExample()
	defer done()

	elector, err := gocronmutex.NewElector(db, "scheduler", dbmutex.WithTTL(30*time.Second))
	if err != nil {
		fmt.Println(err)
		return
	}
	scheduler, err := gocron.NewScheduler(gocron.WithDistributedElector(elector))
	if err != nil {
		fmt.Println(err)
		return
	}
	ran := make(chan bool, 1)
	_, err = scheduler.NewJob(gocron.DurationJob(100*time.Millisecond), gocron.NewTask(func() {
		select {
		case ran <- true:
		default:
		}
	}))
	if err != nil {
		fmt.Println(err)
		return
	}
	scheduler.Start()
	fmt.Println("the leader has run its job:", <-ran)
	fmt.Println(scheduler.Shutdown(), elector.Close()) // in this order
	// Output:
	// the leader has run its job: true
	// <nil> <nil>
}
