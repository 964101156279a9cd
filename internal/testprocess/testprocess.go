// Package testprocess gives a test processes of its own: the test binary, started again for a task on the test's database.
package testprocess

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

const (
	taskVariable     = "DBMUTEX_TEST_CHILD_TASK"
	databaseVariable = "DBMUTEX_TEST_CHILD_DATABASE"
	dsnVariable      = "DBMUTEX_TEST_CHILD_DSN"
)

// Task is what a process does. It prints what happens, a line each; its stdin ends when it should.
type Task func(d *testdb.Database, stdin io.Reader) error

// WithMutexes is a Task on a handle that has mutexes.
func WithMutexes(task func(db *dbmutex.DB, stdin io.Reader) error) Task {
	return func(d *testdb.Database, stdin io.Reader) error {
		db, err := d.Connect()
		if err != nil {
			return err
		}
		err = task(db, stdin)
		pool, _ := db.DB()
		return errors.Join(err, pool.Close())
	}
}

// Goroutines counts those of this process that run a function whose name has a text.
func Goroutines(function string) (n int) {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for _, stack := range strings.Split(string(stacks), "\n\n") {
		if strings.Contains(stack, function) {
			n++
		}
	}
	return n
}

// Main is the body of a TestMain: it runs the tests, eight side by side as most of the time they wait, unless -parallel says
// otherwise; or, in a process that Start began, one of the tasks.
func Main(m *testing.M, tasks map[string]Task) {
	name, isChild := os.LookupEnv(taskVariable)
	if !isChild {
		flag.Parse()
		if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
			_ = parallel.Value.Set("8")
		}
		os.Exit(m.Run())
	}
	task, known := tasks[name]
	err := errors.New("no such task")
	if known {
		err = task(testdb.At(os.Getenv(databaseVariable), os.Getenv(dsnVariable)), os.Stdin)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Process is a test binary that was started again. It ends with its test, or after a minute, if not before.
type Process struct {
	*exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
}

// Start starts a task of Main's.
func Start(t testing.TB, d *testdb.Database, task string, env ...string) *Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	p := &Process{Cmd: exec.CommandContext(ctx, os.Args[0])}
	p.Env = append(os.Environ(), taskVariable+"="+task, databaseVariable+"="+d.Name, dsnVariable+"="+d.DSN)
	p.Env = append(p.Env, env...)
	p.Stderr = os.Stderr
	var err error
	if p.stdin, err = p.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewScanner(stdout)
	endWithParent(p.Cmd)
	if err := p.Cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() { // before that of the database
		cancel()
		_ = p.Wait()
	})
	return p
}

// Line is the next that the process prints.
func (p *Process) Line(t testing.TB) string {
	t.Helper()
	if !p.lines.Scan() {
		t.Fatalf("the process has ended: %v", p.lines.Err())
	}
	return p.lines.Text()
}

// CloseInput ends the process's stdin, which tells it to end.
func (p *Process) CloseInput(t testing.TB) {
	t.Helper()
	if err := p.stdin.Close(); err != nil {
		t.Fatal(err)
	}
}

// End lets the process end, and waits until it has.
func (p *Process) End(t testing.TB) {
	t.Helper()
	p.CloseInput(t)
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
}

// Kill ends the process as a crash does.
func (p *Process) Kill(t testing.TB) {
	t.Helper()
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.Wait()
}
