package faults_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// shortTTL is that of the children's leases, with renewal.
const shortTTL = time.Second

// tasks are what child processes do. They print what happens, a line each.
var tasks = map[string]testprocess.Task{
	"try": testprocess.WithMutexes(func(db *dbmutex.DB, _ io.Reader) error {
		err := db.Mutex("job").Do(nothing)
		switch {
		case err == nil:
			fmt.Println("acquired and released")
		case errors.Is(err, dbmutex.ErrNotAcquired):
			fmt.Println("held")
		default:
			return err
		}
		return nil
	}),
	"hold": testprocess.WithMutexes(func(db *dbmutex.DB, stdin io.Reader) error {
		err := db.Mutex("job", dbmutex.WithTTL(shortTTL), dbmutex.WithRenewal()).Do(func(ctx context.Context) error {
			fmt.Println("holds")
			_, _ = io.Copy(io.Discard, stdin)
			fmt.Println("ended:", context.Cause(ctx))
			return nil
		})
		fmt.Println("Do:", err)
		return nil
	}),
	"pay": testprocess.WithMutexes(func(db *dbmutex.DB, stdin io.Reader) error {
		err := db.Mutex("job", dbmutex.WithTTL(shortTTL), dbmutex.WithRenewal()).Transaction(func(tx *gorm.DB) error {
			err := tx.Exec(`INSERT INTO made VALUES (1)`).Error
			fmt.Println("holds")
			_, _ = io.Copy(io.Discard, stdin)
			return err
		})
		fmt.Println("Transaction:", err)
		return nil
	}),
}

// TestMain also is the body of the child processes.
func TestMain(m *testing.M) {
	testprocess.Main(m, tasks)
}
