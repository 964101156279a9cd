package dbmutex_test

import (
	"context"
	"io"
	"testing"

	"github.com/gorm-dbmutex/dbmutex"
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
	"wait": testprocess.WithMutexes(func(db *dbmutex.DB, _ io.Reader) error {
		return db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing)
	}),
}

// TestMain also is the body of the child processes.
func TestMain(m *testing.M) {
	testprocess.Main(m, tasks)
}
