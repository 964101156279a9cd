package dbmutex_test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// childProcess is this test binary, started again for a task.
type childProcess struct {
	*exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
}

// startChild starts a task of tasks.
func startChild(t *testing.T, d *testdb.Database, task string, env ...string) *childProcess {
	t.Helper()
	p := &childProcess{Cmd: exec.CommandContext(limited(t), os.Args[0])}
	p.Env = append(os.Environ(), "DBMUTEX_TEST_CHILD="+d.Name, "DBMUTEX_TEST_CHILD_DSN="+d.DSN, "DBMUTEX_TEST_CHILD_TASK="+task)
	p.Env = append(p.Env, env...)
	p.Stderr = os.Stderr
	var err error
	p.stdin, err = p.StdinPipe()
	require.NoError(t, err)
	stdout, err := p.StdoutPipe()
	require.NoError(t, err)
	p.lines = bufio.NewScanner(stdout)
	endWithParent(p.Cmd)
	require.NoError(t, p.Start())
	return p
}

// line is the next that the process prints.
func (p *childProcess) line(t *testing.T) string {
	t.Helper()
	require.True(t, p.lines.Scan(), "the process has ended: %v", p.lines.Err())
	return p.lines.Text()
}

// end lets the process end.
func (p *childProcess) end(t *testing.T) {
	t.Helper()
	require.NoError(t, p.stdin.Close())
	require.NoError(t, p.Wait())
}

// kill ends the process as a crash does.
func (p *childProcess) kill(t *testing.T) {
	t.Helper()
	require.NoError(t, p.Process.Kill())
	_ = p.Wait()
}

// shortTTL is that of the children's leases, with renewal.
const shortTTL = time.Second

// tasks are what child processes do. They print what happens, a line each.
var tasks = map[string]func(db *dbmutex.DB, stdin io.Reader) error{
	"compete": func(db *dbmutex.DB, stdin io.Reader) error {
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			_, _ = io.Copy(io.Discard, stdin)
			cancel()
		}()
		return compete(db.WithContext(ctx), "child")
	},
	"try": func(db *dbmutex.DB, _ io.Reader) error {
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
	},
	"hold": func(db *dbmutex.DB, stdin io.Reader) error {
		err := db.Mutex("job", dbmutex.WithTTL(shortTTL), dbmutex.WithRenewal()).Do(func(ctx context.Context) error {
			fmt.Println("holds")
			_, _ = io.Copy(io.Discard, stdin)
			fmt.Println("ended:", context.Cause(ctx))
			return nil
		})
		fmt.Println("Do:", err)
		return nil
	},
	"pay": func(db *dbmutex.DB, stdin io.Reader) error {
		err := db.Mutex("job", dbmutex.WithTTL(shortTTL), dbmutex.WithRenewal()).Transaction(func(tx *gorm.DB) error {
			err := tx.Exec(`INSERT INTO made VALUES (1)`).Error
			fmt.Println("holds")
			_, _ = io.Copy(io.Discard, stdin)
			return err
		})
		fmt.Println("Transaction:", err)
		return nil
	},
}

// TestMain also is the body of the child processes.
func TestMain(m *testing.M) {
	name := os.Getenv("DBMUTEX_TEST_CHILD")
	if name == "" {
		flag.Parse()
		_ = flag.Set("test.parallel", "8") // most of the time they wait
		os.Exit(m.Run())
	}
	if err := child(testdb.At(name, os.Getenv("DBMUTEX_TEST_CHILD_DSN")), os.Getenv("DBMUTEX_TEST_CHILD_TASK")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func child(d *testdb.Database, task string) error {
	gdb, err := gorm.Open(d.Dialector(), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		return err
	}
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil {
		return err
	}
	err = tasks[task](dbmutex.Wrap(gdb), os.Stdin)
	pool, _ := gdb.DB()
	return errors.Join(err, pool.Close())
}
