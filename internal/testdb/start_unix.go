//go:build unix

package testdb

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// supervisor is the /bin/sh script which makes the server's folder, runs the
// server and removes both when file descriptor 3 comes to its end: a pipe only
// the test process writes to, so that it ends with that process even at SIGKILL.
//
// The first signals may come before the server heeds them, hence the loop.
// SIGQUIT is PostgreSQL's immediate shutdown. The log's end is for a server
// which stopped by itself; else nobody is left to read it, and so the shell,
// which a SIGPIPE would end too early, writes its own messages to the log.
const supervisor = `
bin=$1 folder=$2 port=$3
mkdir -m 700 "$folder" && cd "$folder" || exit 1
exec 2>>log
if "$bin/initdb" -D "$folder/data" -U postgres --auth=trust \
	--encoding=UTF8 --locale=C --no-sync >>log </dev/null 3<&-
then
	"$bin/postgres" -D "$folder/data" -p "$port" -k "$folder" \
		-c listen_addresses=127.0.0.1 -c max_connections=200 \
		>>log </dev/null 3<&- &
	server=$!
	{
		read -r _
		while kill -QUIT "$server"; do sleep 1; done
	} <&3 >/dev/null 2>&1 &
	keeper=$!
	wait "$server"
	kill "$keeper" 2>/dev/null
fi
tail -n 20 log
cd / && rm -rf "$folder"
`

// errPortTaken: another process took the port between its choice and its use.
var errPortTaken = errors.New("the port was taken")

// start starts a throw-away server which ends with this process, and returns
// its DSN once it answers.
func start(bin string) (string, error) {
	for try := 1; ; try++ {
		dsn, err := startOnce(bin)
		if err == nil {
			return dsn, nil
		}
		if try == 5 || !errors.Is(err, errPortTaken) {
			return "", fmt.Errorf("start PostgreSQL from %s: %w", bin, err)
		}
	}
}

func startOnce(bin string) (string, error) {
	parent, credential, err := asUser()
	if err != nil {
		return "", err
	}
	port, err := freePort()
	if err != nil {
		return "", err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer func() { _ = read.Close() }()

	folder := filepath.Join(parent, "dbmutex-test-"+strings.ToLower(rand.Text()))
	var output bytes.Buffer
	cmd := exec.Command("/bin/sh", "-c", supervisor, "sh", bin, folder, port)
	cmd.Dir = "/"
	cmd.Env = serverEnv()
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.ExtraFiles = []*os.File{read} // file descriptor 3
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: credential}
	if err := cmd.Start(); err != nil {
		_ = write.Close()
		return "", err
	}
	// This goroutine keeps the pipe open for as long as this process lives. No
	// child has it: os.Pipe's files are close-on-exec.
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the output says why
		_ = write.Close()
		close(ended)
	}()

	dsn := "host=127.0.0.1 port=" + port + " user=postgres dbname=postgres sslmode=disable"
	timeout := time.After(2 * time.Minute)
	for {
		lastErr := answers(dsn, filepath.Join(folder, "data"))
		if lastErr == nil {
			return dsn, nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ended:
			err := fmt.Errorf("it ended:\n%s", output.Bytes())
			if bytes.Contains(output.Bytes(), []byte("could not create any TCP/IP sockets")) {
				err = fmt.Errorf("%w: %w", errPortTaken, err)
			}
			return "", err
		case <-timeout:
			_ = write.Close() // and so the supervisor stops it
			return "", fmt.Errorf("it doesn't answer: %w", lastErr)
		}
	}
}

// answers checks that the server answers and is the one of this data folder,
// not another which took the port.
func answers(dsn, data string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	var got string
	if err := conn.QueryRow(ctx, "SHOW data_directory").Scan(&got); err != nil {
		return err
	}
	if got != data {
		return fmt.Errorf("the server on this port is of %s, not %s", got, data)
	}
	return nil
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
