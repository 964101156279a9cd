//go:build unix

package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

const (
	asWitness = "DBMUTEX_TEST_AS_WITNESS"
	limit     = time.Minute // of what is waited for
)

// binary is the program, built as the tests are: with -race or without.
var binary string

// TestMain also is the command of the test of overlaps.
func TestMain(m *testing.M) {
	if file := os.Getenv(asWitness); file != "" {
		os.Exit(witness(file))
	}
	os.Exit(runTests(m))
}

// runTests builds the program, and runs the tests side by side, as most of the time they wait.
func runTests(m *testing.M) int {
	folder, err := os.MkdirTemp("", "dbmutex-command-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(folder) }()
	binary = filepath.Join(folder, "dbmutex")
	build := exec.Command("go", "build", race, "-o", binary, ".")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	listenToIgnored()
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		_ = parallel.Value.Set("8")
	}
	return m.Run()
}

// listenToIgnored lets the programs that the tests start have all signals. Under nohup, or in the background of a shell,
// some are ignored, and would stay so.
func listenToIgnored() {
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT} {
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
}

// each runs fn on every kind of database, where the table is made.
func each(t *testing.T, fn func(t *testing.T, d *testdb.Database, db *dbmutex.DB)) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		fn(t, d, d.Mutexes(t, dbmutex.DefaultSettings()))
	})
}

// file is a SQLite database, for what is the same on all.
func file(t *testing.T) (*testdb.Database, *dbmutex.DB) {
	t.Parallel()
	d := testdb.SQLite(t)
	return d, d.Mutexes(t, dbmutex.DefaultSettings())
}

// dsnOf is what --dsn says of a test's database.
func dsnOf(t *testing.T, d *testdb.Database) string {
	switch {
	case !d.Remote:
		return "sqlite:" + d.DSN
	case strings.Contains(d.DSN, "@tcp("):
		config, err := driver.ParseDSN(d.DSN)
		require.NoError(t, err)
		return "mysql://" + config.User + "@" + config.Addr + "/" + config.DBName
	}
	return d.DSN
}

// process is the program, started by a test.
type process struct {
	*exec.Cmd
	t      *testing.T
	stdin  io.WriteCloser
	out    *bufio.Scanner
	stderr *output
}

// output is what a process has written so far.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer // not embedded: io.Copy would find its ReadFrom, which knows no lock
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// program is the program with arguments, not started.
func program(t *testing.T, d *testdb.Database, args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "DBMUTEX_DSN="+dsnOf(t, d), "DBMUTEX_TABLE=", "DATABASE_URL=",
		"GORACE=atexit_sleep_ms=0") // else the end of each takes a second under -race
	return cmd
}

// begin starts a program.
func begin(t *testing.T, cmd *exec.Cmd) *process {
	p := &process{Cmd: cmd, t: t, stderr: &output{}}
	p.Stderr = p.stderr
	var err error
	p.stdin, err = p.StdinPipe()
	require.NoError(t, err)
	stdout, err := p.StdoutPipe()
	require.NoError(t, err)
	p.out = bufio.NewScanner(stdout)
	require.NoError(t, p.Start())
	timer := time.AfterFunc(limit, func() { _ = p.Process.Kill() })
	t.Cleanup(func() {
		timer.Stop()
		_ = p.Process.Kill()
		_ = p.Wait()
	})
	return p
}

// line is the next one of stdout.
func (p *process) line() string {
	p.t.Helper()
	require.True(p.t, p.out.Scan(), "it has ended: %s", p.stderr)
	return p.out.Text()
}

// code waits for the end. It returns the exit code, and what stdout had in addition.
func (p *process) code() (int, string) {
	var rest strings.Builder
	for p.out.Scan() {
		rest.WriteString(p.out.Text() + "\n")
	}
	return exitCode(p.t, p.Wait()), rest.String()
}

func (p *process) requireCode(want int) {
	p.t.Helper()
	code, _ := p.code()
	require.Equal(p.t, want, code, p.stderr)
}

func exitCode(t *testing.T, err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	require.NoError(t, err)
	return 0
}

// run runs the program to its end.
func run(t *testing.T, d *testdb.Database, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	p := begin(t, program(t, d, args...))
	require.NoError(t, p.stdin.Close())
	code, stdout = p.code()
	return code, stdout, p.stderr.String()
}

// shell runs a script under the mutex.
func shell(script string, flags ...string) []string {
	return append(append([]string{"run"}, flags...), "job", "--", "sh", "-c", script)
}

// lasts is a script that goes on for a minute, and hears of signals. It ends by itself, and says so, should nobody end it.
const lasts = `for i in $(seq 1200); do sleep 0.05; done; echo went on`

// held takes the mutex for the time of the test.
func held(t *testing.T, db *dbmutex.DB) *dbmutex.Lease {
	lease := testdb.Acquire(t, db, "job")
	t.Cleanup(func() { _ = lease.Release() })
	return lease
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func eventually(t *testing.T, why string, condition func() bool) {
	t.Helper()
	require.Eventually(t, condition, limit, 10*time.Millisecond, why)
}

func number(t *testing.T, text string) (n int) {
	t.Helper()
	_, err := fmt.Sscan(text, &n)
	require.NoError(t, err, text)
	return n
}

func inFolder(t *testing.T, name, content string, mode os.FileMode) string {
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(content), mode))
	return path
}
