// Minimal is the README's first program.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"

	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
)

func main() {
	gdb, err := gorm.Open(sqlite.Open("app.db"), &gorm.Config{})
	if err != nil {
		log.Fatal(err)
	}
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil { // leases of 30 minutes
		log.Fatal(err)
	}
	if err := gdb.AutoMigrate(&dbmutex.DBMutex{}); err != nil {
		log.Fatal(err)
	}
	db := dbmutex.Wrap(gdb)

	err = db.Mutex("nightly-report").Do(func(ctx context.Context) error {
		return buildReport(ctx)
	})
	switch {
	case errors.Is(err, dbmutex.ErrNotAcquired): // somebody else is running it
		fmt.Println(err)
	case errors.Is(err, dbmutex.ErrTimeout): // it ran, but its lease ended first: err says if it was lost, or only ran out
		log.Print(err)
	case err != nil: // buildReport's own error, or the database's
		log.Fatal(err)
	}
}

func buildReport(context.Context) error {
	fmt.Println("building the report")
	return nil
}
