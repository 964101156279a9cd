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
	if err := gdb.AutoMigrate(&dbmutex.DBMutex{}); err != nil {
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
