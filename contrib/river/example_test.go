package rivermutex_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/rivertype"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	rivermutex "github.com/gorm-dbmutex/dbmutex/contrib/river"
)

// payment is a row of the application.
type payment struct {
	ID   int64
	Paid bool
}

// pay is a kind of job: it pays what is open.
type pay struct{}

func (pay) Kind() string { return "pay" }

// payer does the work. The middleware holds the mutex.
type payer struct {
	river.WorkerDefaults[pay]
	db *dbmutex.DB
}

// Work makes the payments, the job's completion and the end of the lease one commit: all of them happen, or none. If the
// lease is no longer held, none happen. So nothing is paid twice, even if the lease runs out and River runs a job again.
func (p *payer) Work(ctx context.Context, job *river.Job[pay]) error {
	lease, _ := dbmutex.LeaseFrom(ctx)
	return p.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		if err := tx.Model(&payment{}).Where("paid = ?", false).Update("paid", true).Error; err != nil {
			return err
		}
		// GORM's transaction is an *sql.Tx, unless gorm.Config.PrepareStmt is set.
		if _, err := river.JobCompleteTx[*riverdatabasesql.Driver](ctx, tx.Statement.ConnPool.(*sql.Tx), job); err != nil {
			return err
		}
		return lease.ReleaseIn(tx)
	})
}

// River, the mutexes and the data share a PostgreSQL database, and GORM's pool: a job's effect, its completion and the
// release of its mutex are one commit.
func Example() {
	gdb, err := gorm.Open(postgres.Open(os.Getenv("DATABASE_URL")), &gorm.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil {
		fmt.Println(err)
		return
	}
	db := dbmutex.Wrap(gdb)
	if err := db.Migrate(&payment{}); err != nil { // River's own tables come from rivermigrate
		fmt.Println(err)
		return
	}
	pool, err := gdb.DB()
	if err != nil {
		fmt.Println(err)
		return
	}

	nonOverlapping, err := rivermutex.NonOverlapping(db, dbmutex.WithTTL(30*time.Second), dbmutex.WithRenewal())
	if err != nil {
		fmt.Println(err)
		return
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &payer{db: db})
	client, err := river.NewClient(riverdatabasesql.New(pool), &river.Config{
		Middleware: []rivertype.Middleware{nonOverlapping},
		Queues:     map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 10}},
		Workers:    workers,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	if err := client.Start(ctx); err != nil {
		fmt.Println(err)
		return
	}
	if _, err := client.Insert(ctx, pay{}, nil); err != nil {
		fmt.Println(err)
	}
	if err := client.Stop(ctx); err != nil {
		fmt.Println(err)
	}
}

// Each customer's reports have a mutex of their own. A report that finds it held is cancelled. If a report's lease was lost,
// another may have overlapped: the report is cancelled, too. If the lease only ran out, the report was alone: its attempt
// has failed, as any other failed attempt.
func ExamplePolicy() {
	var db *dbmutex.DB // the application's

	nonOverlapping, err := rivermutex.Policy{
		Key: func(job *rivertype.JobRow) string {
			var args struct{ Customer int }
			_ = json.Unmarshal(job.EncodedArgs, &args) // the job's worker will find the same error
			return fmt.Sprint(job.Kind, " of customer ", args.Customer)
		},
		Held: rivermutex.Cancel,
		OnTimeout: func(ctx context.Context, job *rivertype.JobRow, err error) error {
			var timeout *dbmutex.TimeoutError
			if errors.As(err, &timeout) && timeout.Lost {
				return river.JobCancel(err) // for a person to look at, not to run again
			}
			return err
		},
	}.NonOverlapping(db, dbmutex.WithRenewal())
	fmt.Println(nonOverlapping, err) // for river.Config.Middleware
}
