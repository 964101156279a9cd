// Payments moves money exactly once, though leases run out all the time. Its workers check an invoice, for longer than
// their lease lasts, and then pay it in a transaction that also releases the lease. If somebody else has taken the mutex
// over meanwhile, the lease was lost: ReleaseIn returns ErrTimeout, and nothing of the transaction stays. If the lease only
// ran out, the transaction would commit, as nobody else could have paid.
//
//	go run ./examples/payments
//	go run ./examples/payments -dsn mysql://user:password@localhost/database
//
// Without -dsn the workers' database is a temporary SQLite file. SQLite lets nobody else write during a transaction, so the
// check comes before the transaction. If all of the work belongs into it, Mutex.Transaction does the same in one call.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/examples/internal/database"
)

// Invoice is to be paid once.
type Invoice struct {
	ID, Amount int64
	Paid       bool
}

// Transfer is money that was moved.
type Transfer struct{ ID, InvoiceID, Amount int64 }

func main() {
	dsn := flag.String("dsn", "", database.Usage)
	flag.Parse()
	if err := run(*dsn); err != nil {
		log.Fatal(err)
	}
}

func run(dsn string) (err error) {
	d, err := database.New(dsn)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, d.Remove(&Invoice{}, &Transfer{}, &dbmutex.DBMutex{}, &dbmutex.DBOnce{}))
	}()
	db, err := open(d)
	if err != nil {
		return err
	}
	if err := db.Create(&[]Invoice{{Amount: 100}, {Amount: 250}, {Amount: 400}}).Error; err != nil {
		return err
	}
	ended := make(chan error)
	for _, name := range []string{"Anna", "Bert", "Cora"} {
		go func() { ended <- work(d, name) }()
	}
	if err := errors.Join(<-ended, <-ended, <-ended); err != nil {
		return err
	}

	var transfers []Transfer
	if err := db.Find(&transfers).Error; err != nil {
		return err
	}
	sum := int64(0)
	for _, t := range transfers {
		fmt.Printf("%d was moved for invoice %d\n", t.Amount, t.InvoiceID)
		sum += t.Amount
	}
	fmt.Printf("%d was moved in all, for invoices of 750\n", sum)
	return nil
}

func open(d *database.Database) (*dbmutex.DB, error) {
	gdb, err := d.Open()
	if err != nil {
		return nil, err
	}
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil {
		return nil, err
	}
	db := dbmutex.Wrap(gdb)
	return db, db.Migrate(&Invoice{}, &Transfer{})
}

// work pays invoices until none is open. It has a handle of its own, as another process would.
func work(d *database.Database, me string) error {
	db, err := open(d)
	if err != nil {
		return err
	}
	checked := map[int64]bool{}
	for ttl := 50 * time.Millisecond; ; {
		var invoice Invoice
		mutex := db.Mutex("payments", dbmutex.WithTTL(ttl), dbmutex.WithWait(dbmutex.Forever), dbmutex.WithHolder(me))
		err := mutex.Do(func(ctx context.Context) error {
			if err := db.First(&invoice, "paid = ?", false).Error; err != nil {
				return err
			}
			if !checked[invoice.ID] {
				checked[invoice.ID] = true
				if err := check(db, me); err != nil {
					return err
				}
			}
			lease, _ := dbmutex.LeaseFrom(ctx)
			return db.Gorm.Transaction(func(tx *gorm.DB) error { // somebody else may have paid the invoice by now
				if err := tx.Model(&invoice).Update("paid", true).Error; err != nil {
					return err
				}
				if err := tx.Create(&Transfer{InvoiceID: invoice.ID, Amount: invoice.Amount}).Error; err != nil {
					return err
				}
				return lease.ReleaseIn(tx)
			})
		})
		switch {
		case errors.Is(err, gorm.ErrRecordNotFound):
			return nil
		case errors.Is(err, dbmutex.ErrTimeout):
			fmt.Printf("%s was late to pay invoice %d, and rolled back\n", me, invoice.ID)
			ttl *= 2 // so that it gets done in the end
		case err != nil:
			return err
		default:
			fmt.Printf("%s paid invoice %d\n", me, invoice.ID)
		}
	}
}

// check is the slow part. It is always too slow: it ignores the end of its context, and goes on until somebody else has
// taken the mutex over.
func check(db *dbmutex.DB, me string) error {
	for {
		var mine int64
		err := db.Model(&dbmutex.DBMutex{}).Where("lock_id = ? AND holder = ?", "payments", me).Count(&mine).Error
		if err != nil || mine == 0 {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}
