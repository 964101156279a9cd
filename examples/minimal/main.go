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
	var timeout *dbmutex.TimeoutError
	switch {
	case errors.Is(err, dbmutex.ErrNotAcquired): // somebody else is running it
		fmt.Println(err)
	case errors.As(err, &timeout): // it ran, but outlasted its lease
		log.Printf("it may have overlapped with another: %t: %v", timeout.Lost, err)
	case err != nil: // buildReport's own error, or the database's
		log.Fatal(err)
	}
}

func buildReport(context.Context) error {
	fmt.Println("building the report")
	return nil
}
