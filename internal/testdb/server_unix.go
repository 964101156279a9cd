//go:build unix

package testdb

import (
	"bufio"
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
)

// supervisor is the /bin/sh script which makes a folder for servers and runs the
// commands that it is sent. When file descriptor 3 comes to its end it stops the
// servers and removes the folder. That is a pipe only the test process writes to,
// so that it ends with that process even at SIGKILL. Temporary files are in the folder,
// too: MariaDB names them by its process id, which is not unique among containers.
const supervisor = `
trap '' PIPE
bin=$1 folder=$2
mkdir -m 700 "$folder" && cd "$folder" || exit 1
export TMPDIR="$folder"
exec 2>>log
while IFS= read -r command <&3; do
	eval "$command" >>log </dev/null 3<&-
	echo $?
done
for pid in *.pid; do
	[ ! -e "$pid" ] || kill -s KILL "$(cat "$pid")"
done
for data in */postmaster.pid; do
	[ ! -e "$data" ] || "$bin/pg_ctl" stop -D "${data%/*}" -m immediate >>log
done
wait
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
func supervise(bin, account string) (*supervised, error) {
	parent, credential, err := asUser(account)
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

// run runs a line of shell, which may be broken between words, in the folder and as the servers' user.
func (s *supervised) run(command string) error {
	if _, err := fmt.Fprintln(s.commands, strings.ReplaceAll(command, "\n", " ")); err != nil {
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

// Server is a database server of a test's own, to start, stop and crash.
type Server struct {
	*supervised
	engine     *engine
	data, port string
	env        string // assignments before a command
}

// newServer makes a server that is not yet started, in a folder of its own.
func (e *engine) newServer(bin string, settings []string) (*Server, error) {
	folder, err := supervise(bin, e.account)
	if err != nil {
		return nil, err
	}
	s := &Server{supervised: folder, engine: e, data: "data"}
	if err = s.run(e.install); err == nil {
		err = s.configure(append(e.settings, settings...))
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// launch makes and starts a server.
func (e *engine) launch(settings []string) (*Server, error) {
	bin, err := e.find()
	if err != nil {
		return nil, err
	}
	s, err := e.newServer(bin, settings)
	if err != nil {
		return nil, err
	}
	if err := s.start(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// throwAway starts a server which ends with this process, and returns its DSN.
func (e *engine) throwAway() (string, error) {
	s, err := e.launch(nil)
	if err != nil {
		return "", err
	}
	return s.DSN(), nil
}

// NewServer starts a server for one test, with lines for its configuration. Where
// the machine has no programs for a server the test is skipped, or fails, as by
// Each, also where the environment has the DSN of a server.
func (k *Kind) NewServer(t testing.TB, settings ...string) *Server {
	t.Helper()
	k.engine.skipUnwanted(t)
	s, err := k.engine.launch(settings)
	if err != nil {
		k.engine.missing(t, err)
	}
	t.Cleanup(s.close)
	return s
}

// configure appends settings to the server's configuration, for its next start.
func (s *Server) configure(settings []string) error {
	return s.run(fmt.Sprintf(`printf '%%s\n' %s >>%s/%s`, quoted(settings), s.data, s.engine.config))
}

// start starts the server, on its port of before if it had one, and returns when
// it answers.
func (s *Server) start() error {
	for try := 1; ; try++ {
		port := s.port
		if port == "" {
			var err error
			if port, err = freePort(); err != nil {
				return err
			}
		}
		err := s.run(s.engine.start(s.env, s.data, port))
		if err == nil {
			s.port = port
			return s.engine.started(port)
		}
		// Another process may have taken the port between its choice and its use.
		if try == 5 || !strings.Contains(err.Error(), s.engine.taken) {
			return fmt.Errorf("start %s from %s: %w", s.engine.name, s.bin, err)
		}
	}
}

// DSN is that of a database on the server.
func (s *Server) DSN() string { return s.engine.dsn(s.port) }

// Database is that of DSN.
func (s *Server) Database() *Database { return &Database{s.engine.kind, s.DSN()} }

// Start starts the server again, under env, assignments such as "A=b", which it
// keeps from then on.
func (s *Server) Start(t testing.TB, env ...string) {
	t.Helper()
	if len(env) > 0 {
		s.env = strings.Join(env, " ")
	}
	if err := s.start(); err != nil {
		t.Fatalf("testdb: %v", err)
	}
}

// Stop stops the server and returns when it has ended. The mode "fast" disconnects
// everybody and ends cleanly, "immediate" is a crash.
func (s *Server) Stop(t testing.TB, mode string) {
	t.Helper()
	if err := s.run(s.engine.stop(s.data, mode)); err != nil {
		t.Fatalf("testdb: %v", err)
	}
}

// Set appends lines to the server's configuration and makes it heed them.
func (s *Server) Set(t testing.TB, settings ...string) {
	t.Helper()
	err := s.configure(settings)
	if err == nil {
		err = s.engine.run(s.DSN(), s.engine.apply(settings))
	}
	if err != nil {
		t.Fatalf("testdb: %v", err)
	}
}

// Move makes a folder, and moves the empty table of the lock into it. It makes a table there that is named filler, and has
// an id and a text.
func (s *Server) Move(t testing.TB, folder string) {
	t.Helper()
	err := s.run("mkdir -m 700" + quoted([]string{folder}))
	if err == nil && s.engine.folders != "" {
		err = s.configure([]string{s.engine.folders + " = " + folder})
		s.Stop(t, "fast")
		s.Start(t)
	}
	if err == nil {
		err = s.engine.move(s.DSN(), folder)
	}
	if err != nil {
		t.Fatalf("testdb: %v", err)
	}
}

// Clock makes the server's clock one to set, and restarts it. It needs the Debian
// package faketime; if there is none the test is skipped, or fails, as by
// Environment.
func (s *Server) Clock(t testing.TB) *Clock {
	t.Helper()
	clock := NewClock(t)
	s.Stop(t, "fast")
	s.Start(t, clock.Environment(t)...)
	return clock
}

// quoted are words for a shell.
func quoted(words []string) string {
	var b strings.Builder
	for _, word := range words {
		b.WriteString(" '" + strings.ReplaceAll(word, "'", `'\''`) + "'")
	}
	return b.String()
}

// asUser returns the folder to make the server's in, and the user to run it
// as: nil for this process's own. Servers refuse to run as root.
func asUser(name string) (string, *syscall.Credential, error) {
	if os.Geteuid() != 0 {
		folder, err := filepath.EvalSymlinks(os.TempDir())
		return folder, nil, err
	}
	// The other user can't be sure to reach and write root's TMPDIR.
	folder, err := filepath.EvalSymlinks("/tmp")
	if err != nil {
		return "", nil, err
	}
	account, err := user.Lookup(name)
	if err != nil {
		account, err = user.Lookup("nobody")
	}
	if err != nil {
		return "", nil, fmt.Errorf("a server can't run as root, and there is no user %s: %w", name, err)
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
// settings meant for other servers.
func serverEnv() []string {
	env := []string{}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "PG") && !strings.HasPrefix(v, "MYSQL_") && !strings.HasPrefix(v, "LC_") {
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
