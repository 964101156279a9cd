package dbmutex_test

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// tasks are what child processes do. They print what happens, a line each.
var tasks = map[string]testprocess.Task{
	"compete": testprocess.WithMutexes(func(db *dbmutex.DB, stdin io.Reader) error {
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			_, _ = io.Copy(io.Discard, stdin)
			cancel()
		}()
		return compete(db.WithContext(ctx), "child")
	}),
	"crowd": testprocess.WithMutexes(crowd),
	"tick": func(*testdb.Database, io.Reader) error {
		fmt.Println(dbmutex.Tick("job", noon, time.Minute))
		return nil
	},
	"wait": testprocess.WithMutexes(func(db *dbmutex.DB, _ io.Reader) error {
		return db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing)
	}),
}

// TestMain also is the body of the child processes.
func TestMain(m *testing.M) {
	testprocess.Main(m, tasks)
}
