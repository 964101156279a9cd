//go:build unix

package testdb_test

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// server is what these tests must know of a kind of server.
type server struct {
	fresh func(testing.TB) *testdb.Database
	dsn   func(testing.TB) string

	envDSN, envBin, envWanted string

	pidFile    string                                  // a query for the server's
	forms      func(t *testing.T, dsn string) []string // that a DSN may have
	nowhere    string                                  // a DSN of no server, whose password is "secret"
	setting    [2]string                               // a line of the configuration, and a query that says 77 if it is heeded
	noPrograms string                                  // what is said of a folder that has none
}

// servers has every kind.
var servers = map[string]server{}

func eachServer(t *testing.T, test func(t *testing.T, name string, s server)) {
	for name, s := range servers {
		t.Run(name, func(t *testing.T) { test(t, name, s) })
	}
}

// The environment of a child process says what it is to do, and with which kind of server.
const (
	envChild  = "DBMUTEX_TESTDB_CHILD"
	envServer = "DBMUTEX_TESTDB_SERVER"
)

// TestChild is the body of the child processes.
func TestChild(t *testing.T) {
	s := servers[os.Getenv(envServer)]
	switch os.Getenv(envChild) {
	case "":
		t.Skip("only for child processes")
	case "hold": // a server and a connection to it, until killed
		var pidFile string
		require.NoError(t, s.fresh(t).Open(t).Raw(s.pidFile).Scan(&pidFile).Error)
		fmt.Printf("pid file=%s\n", pidFile)
		time.Sleep(time.Hour)
	case "use":
		require.NoError(t, s.fresh(t).Open(t).AutoMigrate(&row{}))
		fmt.Printf("dsn=%s\n", s.dsn(t))
	}
}

// child makes the command of a child process; env overrides this process's.
func child(t *testing.T, name, task string, env ...string) *exec.Cmd {
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, "-test.run=^TestChild$", "-test.v")
	cmd.Env = append(os.Environ(), envServer+"="+name, envChild+"="+task)
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// output runs a child process to its end.
func output(t *testing.T, name string, env ...string) (string, error) {
	out, err := child(t, name, "use", env...).CombinedOutput()
	return string(out), err
}

func TestServerEndsWithAKilledProcess(t *testing.T) {
	eachServer(t, func(t *testing.T, name string, s server) {
		if os.Getenv(s.envDSN) == "" {
			s.dsn(t)
		} else if out, _ := output(t, name, s.envDSN+"="); strings.Contains(out, " found: set ") {
			t.Skip("no programs")
		}
		cmd := child(t, name, "hold", s.envDSN+"=")
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })

		path := ""
		for lines := bufio.NewScanner(stdout); path == "" && lines.Scan(); {
			if value, ok := strings.CutPrefix(lines.Text(), "pid file="); ok {
				path = value
			}
		}
		folder := regexp.MustCompile(`^.*/dbmutex-test-\w+/`).FindString(path)
		require.NotEmpty(t, folder, "the child has no server")
		pidFile, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrPermission) {
			t.Skip(err)
		}
		require.NoError(t, err)
		var pid int
		_, err = fmt.Sscan(string(pidFile), &pid)
		require.NoError(t, err)
		require.NoError(t, syscall.Kill(pid, 0), "the server runs")

		require.NoError(t, cmd.Process.Signal(syscall.SIGKILL))
		_ = cmd.Wait()

		assert.Eventually(t, func() bool {
			return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
		}, 30*time.Second, 20*time.Millisecond, "the server has ended")
		assert.Eventually(t, func() bool {
			_, err := os.Stat(folder)
			return errors.Is(err, fs.ErrNotExist)
		}, 30*time.Second, 20*time.Millisecond, "its folder is gone")
	})
}

func TestServerOfDSN(t *testing.T) {
	eachServer(t, func(t *testing.T, name string, s server) {
		for _, dsn := range s.forms(t, s.dsn(t)) {
			out, err := output(t, name, s.envDSN+"="+dsn)
			require.NoError(t, err, out)
			assert.Contains(t, out, "dsn="+dsn)
		}
	})
}

func TestServerIsSkippedWhereNobodyWantsIt(t *testing.T) {
	eachServer(t, func(t *testing.T, name string, s server) {
		out, err := output(t, name, s.envWanted+"=none")
		require.NoError(t, err, out)
		assert.Contains(t, out, "--- SKIP: TestChild")
		assert.NotContains(t, out, "dsn=")
	})
}

func TestServerOfDSNDoesNotAnswer(t *testing.T) {
	eachServer(t, func(t *testing.T, name string, s server) {
		out, err := output(t, name, s.envWanted+"=", s.envDSN+"="+s.nowhere)
		assert.Error(t, err)
		assert.Contains(t, out, "the server of "+s.envDSN+" doesn't answer")
		assert.NotContains(t, out, "secret")
	})
}

func TestFolderOfProgramsIsWrong(t *testing.T) {
	eachServer(t, func(t *testing.T, name string, s server) {
		out, err := output(t, name, s.envWanted+"=", s.envDSN+"=", s.envBin+"="+t.TempDir())
		assert.Error(t, err)
		assert.Contains(t, out, s.noPrograms)
	})
}

// ownServer runs a test on a server of its own.
func ownServer(t *testing.T, test func(t *testing.T, s *testdb.Server)) {
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) { test(t, d.NewServer(t)) })
}

// reopened is a new pool: an old one may keep connections that the server's end has broken.
func reopened(t *testing.T, s *testdb.Server) *gorm.DB { return s.Database().Open(t) }

func TestACrashKeepsWhatWasCommitted(t *testing.T) {
	ownServer(t, func(t *testing.T, s *testdb.Server) {
		db := reopened(t, s)
		require.NoError(t, db.AutoMigrate(&row{}))
		require.NoError(t, db.Create(&row{ID: 1}).Error)
		uncommitted := db.Begin()
		require.NoError(t, uncommitted.Create(&row{ID: 2}).Error)
		for _, mode := range []string{"immediate", "fast"} {
			before := s.DSN()
			s.Stop(t, mode)
			require.Error(t, db.Exec(`SELECT 1`).Error, "nobody answers")
			s.Start(t)
			require.Equal(t, before, s.DSN())
			var rows []row
			require.NoError(t, reopened(t, s).Find(&rows).Error)
			require.Equal(t, []row{{ID: 1}}, rows, mode)
		}
	})
}

func TestASettingIsHeededAndKept(t *testing.T) {
	ownServer(t, func(t *testing.T, s *testdb.Server) {
		setting := servers[s.Database().Name].setting
		requireHeeded := func() {
			require.Eventually(t, func() bool {
				var is string
				require.NoError(t, reopened(t, s).Raw(setting[1]).Scan(&is).Error)
				return is == "77"
			}, time.Minute, 10*time.Millisecond)
		}
		s.Set(t, setting[0])
		requireHeeded()
		s.Stop(t, "fast")
		s.Start(t)
		requireHeeded()
	})
}

func TestAClockIsSet(t *testing.T) {
	ownServer(t, func(t *testing.T, s *testdb.Server) {
		clock := s.Clock(t)
		offset := func() (hours float64) {
			var now time.Time
			require.NoError(t, reopened(t, s).Raw(`SELECT CURRENT_TIMESTAMP`).Scan(&now).Error)
			return time.Until(now).Hours()
		}
		for _, hours := range []float64{0, 100, -100} {
			clock.Set(t, time.Duration(hours)*time.Hour)
			require.InDelta(t, hours, offset(), 24, "whatever the zone")
		}
	})
}
