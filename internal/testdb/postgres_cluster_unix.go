//go:build unix

package testdb

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// supervisor is the /bin/sh script which makes a cluster's folder and runs the
// commands that it is sent. When file descriptor 3 comes to its end it stops the
// servers and removes the folder. That is a pipe only the test process writes to,
// so that it ends with that process even at SIGKILL.
const supervisor = `
trap '' PIPE
bin=$1 folder=$2
mkdir -m 700 "$folder" && cd "$folder" || exit 1
exec 2>>log
while IFS= read -r command <&3; do
	eval "$command" >>log </dev/null 3<&-
	echo $?
done
[ ! -e pgbouncer.pid ] || kill "$(cat pgbouncer.pid)"
for data in */postmaster.pid; do
	[ ! -e "$data" ] || "$bin/pg_ctl" stop -D "${data%/*}" -m immediate >>log
done
cd / && rm -rf "$folder"
`

// supervised is the folder of one or more servers, and what runs them.
type supervised struct {
	bin, folder string
	commands    io.WriteCloser
	statuses    *bufio.Scanner
	ended       chan struct{}
}

// supervise makes a folder. It is gone, with the servers in it, once the test
// process has ended, or close was called.
func supervise(bin string) (*supervised, error) {
	parent, credential, err := asUser()
	if err != nil {
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = read.Close() }()
	s := &supervised{
		bin:      bin,
		folder:   filepath.Join(parent, "dbmutex-test-"+strings.ToLower(rand.Text())),
		commands: write,
		ended:    make(chan struct{}),
	}
	cmd := exec.Command("/bin/sh", "-c", supervisor, "sh", bin, s.folder)
	cmd.Dir = "/"
	cmd.Env = serverEnv()
	cmd.ExtraFiles = []*os.File{read} // file descriptor 3
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: credential}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		_ = write.Close()
		return nil, err
	}
	s.statuses = bufio.NewScanner(stdout)
	go func() { // it lives as long as the pipe, which no child has: os.Pipe's files are close-on-exec
		_ = cmd.Wait()
		close(s.ended)
	}()
	return s, s.run("true")
}

// run runs a line of shell in the folder, as the servers' user.
func (s *supervised) run(command string) error {
	if _, err := fmt.Fprintln(s.commands, command); err != nil {
		return err
	}
	if s.statuses.Scan() && s.statuses.Text() == "0" {
		return nil
	}
	log, _ := os.ReadFile(filepath.Join(s.folder, "log"))
	return fmt.Errorf("%s\nends with %q:\n%s", command, s.statuses.Text(), log[max(0, len(log)-3000):])
}

func (s *supervised) close() {
	_ = s.commands.Close()
	<-s.ended
}

// Cluster is a PostgreSQL server, to start, stop, crash and copy.
type Cluster struct {
	*supervised
	data, port string
	env        string // of the server, as assignments before a command
}

// newCluster makes a cluster that is not yet started, in a folder of its own.
func newCluster(bin string, settings []string) (*Cluster, error) {
	s, err := supervise(bin)
	if err != nil {
		return nil, err
	}
	c := &Cluster{supervised: s, data: "data"}
	err = s.run(`"$bin/initdb" -D data -U postgres --auth=trust --encoding=UTF8 --locale=C --no-sync`)
	if err == nil {
		err = c.set(append(settings, "listen_addresses = '127.0.0.1'", "max_connections = 200",
			"unix_socket_directories = '"+s.folder+"'"))
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return c, nil
}

// set appends settings to the server's configuration, for its next start.
func (c *Cluster) set(settings []string) error {
	return c.run(fmt.Sprintf(`printf '%%s\n' %s >>%s/postgresql.conf`, quoted(settings), c.data))
}

// quoted are words for a shell.
func quoted(words []string) string {
	var b strings.Builder
	for _, word := range words {
		b.WriteString(" '" + strings.ReplaceAll(word, "'", `'\''`) + "'")
	}
	return b.String()
}

// start starts the server, on its port of before if it had one, and returns when
// it answers.
func (c *Cluster) start() error {
	for try := 1; ; try++ {
		port := c.port
		if port == "" {
			var err error
			if port, err = freePort(); err != nil {
				return err
			}
		}
		err := c.run(fmt.Sprintf(`%s "$bin/pg_ctl" start -w -t 120 -D %s -l log -o "-p %s"`, c.env, c.data, port))
		if err == nil {
			c.port = port
			return nil
		}
		// Another process may have taken the port between its choice and its use.
		if try == 5 || !bytes.Contains([]byte(err.Error()), []byte("could not create any TCP/IP sockets")) {
			return fmt.Errorf("start PostgreSQL from %s: %w", c.bin, err)
		}
	}
}

// DSN is that of the server itself.
func (c *Cluster) DSN() string {
	return "host=127.0.0.1 port=" + c.port + " user=postgres dbname=postgres sslmode=disable"
}

// NewCluster starts a server for one test, with lines for its configuration. Where
// the machine has no programs for a server the test is skipped, or fails, as by
// Server, also where DBMUTEX_TEST_DSN names one.
func NewCluster(t testing.TB, settings ...string) *Cluster {
	t.Helper()
	skipUnwanted(t)
	bin, err := findBin()
	if err != nil {
		noServer(t, err)
	}
	c, err := newCluster(bin, settings)
	if err != nil {
		t.Fatalf("testdb: %v", err)
	}
	t.Cleanup(c.close)
	c.Start(t)
	return c
}

// Start starts the server again, under env, assignments such as "A=b", which it
// keeps from then on.
func (c *Cluster) Start(t testing.TB, env ...string) {
	t.Helper()
	if len(env) > 0 {
		c.env = strings.Join(env, " ")
	}
	if err := c.start(); err != nil {
		t.Fatalf("testdb: %v", err)
	}
}

// Stop stops the server and returns when it has ended. The mode "fast" disconnects
// everybody and ends cleanly, "immediate" is a crash.
// https://www.postgresql.org/docs/current/app-pg-ctl.html
func (c *Cluster) Stop(t testing.TB, mode string) {
	t.Helper()
	if err := c.run(fmt.Sprintf(`"$bin/pg_ctl" stop -D %s -m %s`, c.data, mode)); err != nil {
		t.Fatalf("testdb: %v", err)
	}
}

// Set appends lines to the server's configuration and makes it read them.
func (c *Cluster) Set(t testing.TB, settings ...string) {
	t.Helper()
	err := c.set(settings)
	if err == nil {
		err = c.run(fmt.Sprintf(`"$bin/pg_ctl" reload -D %s`, c.data))
	}
	if err != nil {
		t.Fatalf("testdb: %v", err)
	}
}

// Standby makes and starts a hot standby of the server, under an application
// name, and restarts the server for it. It ends with the server's test.
func (c *Cluster) Standby(t testing.TB, name string) *Cluster {
	t.Helper()
	c.Stop(t, "fast")
	s := &Cluster{supervised: c.supervised, data: name, env: c.env}
	err := c.run(fmt.Sprintf(`cp -R %s %s && rm -f %s/postmaster.* && touch %s/standby.signal`, c.data, name, name, name))
	if err == nil {
		err = s.set(
			[]string{
				"wal_retrieve_retry_interval = 100ms",
				fmt.Sprintf("primary_conninfo = 'host=127.0.0.1 port=%s user=postgres application_name=%s'", c.port, name),
			},
		)
	}
	if err != nil {
		t.Fatalf("testdb: %v", err)
	}
	c.Start(t)
	s.Start(t)
	return s
}

// Promote makes a standby a primary.
func (c *Cluster) Promote(t testing.TB) {
	t.Helper()
	if err := c.run(fmt.Sprintf(`"$bin/pg_ctl" promote -w -D %s`, c.data)); err != nil {
		t.Fatalf("testdb: %v", err)
	}
}

// OwnFolder makes a folder that belongs to the server's user.
func (c *Cluster) OwnFolder(t testing.TB, path string) {
	t.Helper()
	if err := c.run("mkdir -m 700" + quoted([]string{path})); err != nil {
		t.Fatalf("testdb: %v", err)
	}
}

// PgBouncer starts PgBouncer in transaction mode before the server, and returns
// its DSN. It ends with the server's test, which is skipped, or fails, as by
// Server if the machine has none.
func (c *Cluster) PgBouncer(t testing.TB) string {
	t.Helper()
	bouncer := need(t, "pgbouncer", append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin"), "pgbouncer")
	port, err := freePort()
	if err == nil {
		err = c.run(
			fmt.Sprintf(`printf '%%s\n' %s >pgbouncer.ini && echo '"postgres" ""' >users.txt && %s -d pgbouncer.ini`, quoted([]string{
				"[databases]", "* = host=127.0.0.1 port=" + c.port, "[pgbouncer]", "listen_addr = 127.0.0.1", "listen_port = " + port,
				"auth_type = trust", "auth_file = users.txt", "pool_mode = transaction", "default_pool_size = 2",
				"logfile = pgbouncer.log", "pidfile = pgbouncer.pid", "unix_socket_dir =",
			}), bouncer),
		)
	}
	if err != nil {
		t.Fatalf("testdb: %v", err)
	}
	dsn := strings.Replace(c.DSN(), "port="+c.port, "port="+port, 1)
	for giveUp := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := run(dsn)
		if err == nil {
			return dsn
		}
		if time.Now().After(giveUp) {
			t.Fatalf("testdb: PgBouncer doesn't answer: %v", err)
		}
	}
}

// Clock is a server's clock, or a process's, that a test sets.
type Clock struct{ file string }

// Clock makes the server's clock one to set, and restarts it. It needs the Debian
// package faketime; if there is none the test is skipped, or fails, as by
// Server.
func (c *Cluster) Clock(t testing.TB) *Clock {
	t.Helper()
	clock := NewClock(t)
	c.Stop(t, "fast")
	c.Start(t, clock.Environment(t)...)
	return clock
}

// NewClock makes a clock for processes that have its Environment.
func NewClock(t testing.TB) *Clock {
	t.Helper()
	folder, err := os.MkdirTemp("", "dbmutex-clock-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	if err := os.Chmod(folder, 0o755); err != nil { // the server is another user's
		t.Fatal(err)
	}
	clock := &Clock{filepath.Join(folder, "offset")}
	clock.Set(t, 0)
	return clock
}

// Environment is what the processes that have the clock need in their
// environment. Their monotonic clock stays as it is.
// https://github.com/wolfcw/libfaketime
func (c *Clock) Environment(t testing.TB) []string {
	t.Helper()
	library := need(
		t, "faketime", []string{"/usr/lib/*/faketime", "/usr/lib/faketime", "/usr/lib64/faketime"}, "libfaketime.so.1",
	)
	return []string{"LD_PRELOAD=" + library, "FAKETIME_TIMESTAMP_FILE=" + c.file, "FAKETIME_NO_CACHE=1",
		"FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_DONT_RESET=1"}
}

// Set makes the clock differ from the machine's.
func (c *Clock) Set(t testing.TB, offset time.Duration) {
	t.Helper()
	// Written aside, so that nobody reads half of it.
	err := os.WriteFile(c.file+".new", fmt.Appendf(nil, "%+d\n", int64(offset/time.Second)), 0o644)
	if err == nil {
		err = os.Rename(c.file+".new", c.file)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// need returns a file of a program, in one of these folders. If it is missing
// the test is skipped, or fails, as by Server.
func need(t testing.TB, name string, folders []string, file string) string {
	t.Helper()
	for _, folder := range folders {
		if files, _ := filepath.Glob(filepath.Join(folder, file)); len(files) > 0 {
			return files[0]
		}
	}
	if os.Getenv(envPostgres) == "required" {
		t.Fatalf("testdb: no %s, and %s=required: install it (Debian: apt-get install %s)", name, envPostgres, name)
	}
	fmt.Fprintf(
		os.Stderr, "dbmutex tests: no %s, %s is skipped: install it (Debian: apt-get install %s)\n", name, t.Name(), name,
	)
	t.Skipf("no %s", name)
	return ""
}

// start starts a throw-away server which ends with this process, and returns its
// DSN.
func start(bin string) (string, error) {
	c, err := newCluster(bin, nil)
	if err != nil {
		return "", err
	}
	if err := c.start(); err != nil {
		c.close()
		return "", err
	}
	return c.DSN(), nil
}

// asUser returns the folder to make the server's in, and the user to run it
// as: nil for this process's own. PostgreSQL refuses to run as root.
func asUser() (string, *syscall.Credential, error) {
	if os.Geteuid() != 0 {
		folder, err := filepath.EvalSymlinks(os.TempDir())
		return folder, nil, err
	}
	// The other user can't be sure to reach and write root's TMPDIR.
	folder, err := filepath.EvalSymlinks("/tmp")
	if err != nil {
		return "", nil, err
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		account, err = user.Lookup("nobody")
	}
	if err != nil {
		return "", nil, fmt.Errorf("PostgreSQL can't run as root, and there is no user postgres: %w", err)
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return "", nil, fmt.Errorf("user id of %s: %w", account.Username, err)
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return "", nil, fmt.Errorf("group id of %s: %w", account.Username, err)
	}
	return folder, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// serverEnv is this process's environment with English messages and without
// settings meant for other PostgreSQL servers.
func serverEnv() []string {
	env := []string{}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "PG") && !strings.HasPrefix(v, "LC_") {
			env = append(env, v)
		}
	}
	return append(env, "LC_ALL=C")
}

// freePort returns a port free at this moment.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if closeErr := l.Close(); err == nil {
		err = closeErr
	}
	return port, err
}
