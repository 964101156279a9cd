package cronmutex_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/robfig/cron/v3"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/cron"
)

// openExample opens a new SQLite file; done closes and removes it.
func openExample() (db *dbmutex.DB, done func()) {
	folder, err := os.MkdirTemp("", "dbmutex")
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

// The schedulers of two machines have the same job, which runs on one of them.
func ExampleNonOverlapping() {
	db, done := openExample()
	defer done()

	logger := cron.DefaultLogger
	nonOverlapping, err := cronmutex.NonOverlapping(db, "nightly-report", logger, dbmutex.WithMinHold(30*time.Second))
	if err != nil {
		fmt.Println(err)
		return
	}
	built := make(chan bool)
	report := cronmutex.Job(func(ctx context.Context) error {
		lease, _ := dbmutex.LeaseFrom(ctx)
		fmt.Println("building the report, with fencing token", lease.Token())
		close(built)
		return nil
	})

	options := []cron.Option{cron.WithSeconds(), cron.WithLocation(time.UTC)}
	machineA, machineB := cron.New(options...), cron.New(options...)
	for _, machine := range []*cron.Cron{machineA, machineB} {
		// cron.Recover first; NonOverlapping last, next to the job.
		_, err := machine.AddJob("* * * * * *", cron.NewChain(cron.Recover(logger), nonOverlapping).Then(report))
		if err != nil {
			fmt.Println(err)
			return
		}
		machine.Start()
	}
	<-built
	<-machineA.Stop().Done() // the mutex is released
	<-machineB.Stop().Done()
	// Output: building the report, with fencing token 1
}

// The schedulers of three machines have the same job. Each tick runs on one of them.
func ExampleOncePerTick() {
	db, done := openExample()
	defer done()

	logger := cron.DefaultLogger
	schedule, err := cron.ParseStandard("CRON_TZ=UTC 0 3 * * *")
	if err != nil {
		fmt.Println(err)
		return
	}
	oncePerTick, err := cronmutex.OncePerTick(db, "nightly-report", schedule, logger,
		dbmutex.WithTTL(30*time.Second), dbmutex.WithRenewal(), dbmutex.WithWait(dbmutex.Forever))
	if err != nil {
		fmt.Println(err)
		return
	}
	report := cronmutex.Job(func(context.Context) error {
		fmt.Println("building the report")
		return nil
	})
	for range 3 {
		machine := cron.New()
		id := machine.Schedule(schedule, cron.NewChain(cron.Recover(logger), oncePerTick).Then(report))
		machine.Start()
		machine.Entry(id).WrappedJob.Run() // as at the nearest 3:00
		<-machine.Stop().Done()
	}
	// Output: building the report
}
