//go:build unix

package testdb_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// envChild says what a child process of these tests is to do.
const envChild = "DBMUTEX_TESTDB_CHILD"

// TestChild is the body of the child processes.
func TestChild(t *testing.T) {
	switch os.Getenv(envChild) {
	case "":
		t.Skip("only for child processes")
	case "hold": // a server and a connection to it, until killed
		testdb.Postgres(t).Open(t)
		conn := connect(t, testdb.PostgresServer(t))
		fmt.Printf("data=%s\n", show(t, conn, "data_directory"))
		time.Sleep(time.Hour)
	case "use":
		db := testdb.Postgres(t).Open(t)
		require.NoError(t, db.AutoMigrate(&row{}))
		fmt.Printf("dsn=%s\n", testdb.PostgresServer(t))
	}
}

// child makes the command of a child process; env overrides this process's.
func child(t *testing.T, task string, env ...string) *exec.Cmd {
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, "-test.run=^TestChild$", "-test.v")
	cmd.Env = append(os.Environ(), envChild+"="+task)
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// output runs a child process to its end.
func output(t *testing.T, env ...string) (string, error) {
	out, err := child(t, "use", env...).CombinedOutput()
	return string(out), err
}

func connect(t *testing.T, dsn string) *pgx.Conn {
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func show(t *testing.T, conn *pgx.Conn, setting string) (value string) {
	require.NoError(t, conn.QueryRow(t.Context(), "SHOW "+setting).Scan(&value))
	return value
}

// needPrograms skips a test which starts a server if it can't.
func needPrograms(t *testing.T) {
	if os.Getenv("DBMUTEX_TEST_DSN") == "" {
		testdb.PostgresServer(t)
	} else if out, _ := output(t, "DBMUTEX_TEST_DSN="); strings.Contains(out, "no PostgreSQL found") {
		t.Skip("no PostgreSQL programs")
	}
}

func TestServerOfItsOwn(t *testing.T) {
	if os.Getenv("DBMUTEX_TEST_DSN") != "" {
		t.Skip("DBMUTEX_TEST_DSN is set")
	}
	conn := connect(t, testdb.PostgresServer(t))
	assert.Equal(t, "127.0.0.1", show(t, conn, "listen_addresses"))
	assert.Equal(t, "200", show(t, conn, "max_connections"))
	assert.Equal(t, "on", show(t, conn, "fsync"))
	assert.Equal(t, "on", show(t, conn, "synchronous_commit"))
	assert.Equal(t, "UTF8", show(t, conn, "server_encoding"))
}

func TestServerEndsWithAKilledProcess(t *testing.T) {
	needPrograms(t)
	cmd := child(t, "hold", "DBMUTEX_TEST_DSN=")
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })

	var data string
	for lines := bufio.NewScanner(stdout); data == "" && lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "data="); ok {
			data = value
		}
	}
	require.NotEmpty(t, data, "the child has no server")
	pidFile, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if errors.Is(err, fs.ErrPermission) {
		t.Skip(err)
	}
	require.NoError(t, err)
	var postmaster int
	_, err = fmt.Sscan(string(pidFile), &postmaster)
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(postmaster, 0), "the server runs")

	require.NoError(t, cmd.Process.Signal(syscall.SIGKILL))
	_ = cmd.Wait()

	assert.Eventually(t, func() bool {
		return errors.Is(syscall.Kill(postmaster, 0), syscall.ESRCH)
	}, 30*time.Second, 20*time.Millisecond, "the server has ended")
	assert.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Dir(data))
		return errors.Is(err, fs.ErrNotExist)
	}, 30*time.Second, 20*time.Millisecond, "its folder is gone")
}

func TestServerOfDSN(t *testing.T) {
	base := testdb.PostgresServer(t)
	config, err := pgx.ParseConfig(base)
	require.NoError(t, err)
	if config.Password != "" || config.TLSConfig != nil {
		t.Skip("only for a server without password and TLS")
	}
	for _, dsn := range []string{
		fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable",
			config.Host, config.Port, config.User, config.Database),
		fmt.Sprintf("postgres://%s@%s:%d/%s?sslmode=disable",
			config.User, config.Host, config.Port, config.Database),
	} {
		out, err := output(t, "DBMUTEX_TEST_DSN="+dsn)
		require.NoError(t, err, out)
		assert.Contains(t, out, "dsn="+dsn)
	}
}

func TestPostgresIsSkippedWhereNobodyWantsIt(t *testing.T) {
	out, err := output(t, "DBMUTEX_TEST_POSTGRES=none")
	require.NoError(t, err, out)
	assert.Contains(t, out, "--- SKIP: TestChild")
	assert.NotContains(t, out, "dsn=")
}

func TestServerOfDSNDoesNotAnswer(t *testing.T) {
	out, err := output(t, "DBMUTEX_TEST_DSN=postgres://u:secret@127.0.0.1:1/d")
	assert.Error(t, err)
	assert.Contains(t, out, "the server of DBMUTEX_TEST_DSN doesn't answer")
	assert.NotContains(t, out, "secret")
}

func TestFolderOfProgramsIsWrong(t *testing.T) {
	out, err := output(t, "DBMUTEX_TEST_DSN=", "DBMUTEX_TEST_PGBIN="+t.TempDir())
	assert.Error(t, err)
	assert.Contains(t, out, "initdb, pg_ctl and postgres aren't all there")
}
