package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// state is a process's, such as T for one that is stopped; "" if there is none.
func state(pid int) string {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return rest[:1]
}

func TestTheEndOfDbmutexEndsTheCommand(t *testing.T) {
	d, _ := file(t)
	p := begin(t, program(t, d, shell("trap '' TERM HUP; echo $$; "+lasts)...))
	pid := number(t, p.line())
	require.NoError(t, p.Process.Kill())
	eventually(t, "the command ends", func() bool { s := state(pid); return s == "" || s == "Z" })
}

func TestAProgramThatIsStoppedStopsItsCommandAndGoesOnWithIt(t *testing.T) {
	d, _ := file(t)
	p := begin(t, program(t, d, shell("echo $$; read x; exit 3", "--ttl", "10m")...))
	pid := number(t, p.line())
	require.NoError(t, p.Process.Signal(syscall.SIGTSTP))
	eventually(t, "both stop", func() bool { return state(pid) == "T" && state(p.Process.Pid) == "T" })
	require.NoError(t, p.Process.Signal(syscall.SIGCONT))
	eventually(t, "both go on", func() bool { return state(pid) != "T" && state(p.Process.Pid) != "T" })
	require.NoError(t, p.stdin.Close())
	p.requireCode(3)
}

func TestACommandThatIsStoppedAloneKeepsItsLease(t *testing.T) {
	d, db := file(t)
	for _, sig := range []syscall.Signal{syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGSTOP} {
		p := begin(t, program(t, d, shell("echo $$; read x; exit 3", "--ttl", "6s")...))
		pid := number(t, p.line())
		require.NoError(t, syscall.Kill(pid, sig))
		eventually(t, "the command stops", func() bool { return state(pid) == "T" })
		until := *testdb.Row(t, db, "job").ExpiresAt
		eventually(t, "the lease is renewed", func() bool { return testdb.Row(t, db, "job").ExpiresAt.After(until) })
		require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
		require.NoError(t, p.stdin.Close())
		p.requireCode(3)
	}
}

func TestACommandThatIsStoppedEndsAllTheSame(t *testing.T) {
	d, db := file(t)
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM} {
		p := begin(t, program(t, d, shell("echo $$; exec sleep 60")...))
		pid := number(t, p.line())
		require.NoError(t, syscall.Kill(pid, syscall.SIGTTIN))
		eventually(t, "the command stops", func() bool { return state(pid) == "T" })
		require.NoError(t, p.Process.Signal(sig))
		p.requireCode(128 + int(sig))
		testdb.RequireFree(t, db, "job")
	}
}

func TestAProgramStopsIfItsCommandIsStoppedAlready(t *testing.T) {
	d, _ := file(t)
	p := begin(t, program(t, d, shell("echo $$; read x; exit 3", "--ttl", "10m")...))
	pid := number(t, p.line())
	require.NoError(t, syscall.Kill(pid, syscall.SIGTTIN))
	eventually(t, "the command stops", func() bool { return state(pid) == "T" })
	require.NoError(t, p.Process.Signal(syscall.SIGTSTP))
	eventually(t, "it stops", func() bool { return state(p.Process.Pid) == "T" })
	require.NoError(t, p.Process.Signal(syscall.SIGCONT))
	require.NoError(t, p.stdin.Close())
	p.requireCode(3)
}

func TestACommandThatWasStoppedDoesNotGoOnWithoutItsLease(t *testing.T) {
	d, db := file(t)
	p := begin(t, program(t, d, shell("echo $$; read x; echo went on", "--ttl", "6s")...))
	pid := number(t, p.line())
	require.NoError(t, p.Process.Signal(syscall.SIGTSTP))
	eventually(t, "both stop", func() bool { return state(pid) == "T" && state(p.Process.Pid) == "T" })
	eventually(t, "the lease ends", func() bool {
		row, err := db.Mutex("job").Holder()
		return err == nil && row == nil
	})
	require.NoError(t, p.stdin.Close())
	require.NoError(t, p.Process.Signal(syscall.SIGCONT))
	code, stdout := p.code()
	require.Equal(t, 124, code, p.stderr)
	require.Empty(t, stdout)
}

// inTerminal starts the program in a terminal of its own.
func inTerminal(t *testing.T, cmd *exec.Cmd) (terminal *os.File, screen *output) {
	terminal, err := pty.Start(cmd)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = terminal.Close()
	})
	screen = &output{}
	go func() { _, _ = io.Copy(screen, terminal) }()
	return terminal, screen
}

func TestInATerminalTheCommandReadsAndGetsControlCOnce(t *testing.T) {
	d, _ := file(t)
	script := `n=0; trap 'n=$((n+1)); echo INT' INT; test -t 0 && echo terminal; read x; echo got $x; read x; sleep 0.3; ` +
		`echo count $n; exit 7`
	cmd := program(t, d, shell(script)...)
	terminal, screen := inTerminal(t, cmd)
	seen := func(text string) {
		t.Helper()
		eventually(t, text, func() bool { return strings.Contains(screen.String(), text) })
	}
	seen("terminal")
	_, err := terminal.WriteString("hey\n")
	require.NoError(t, err)
	seen("got hey")
	_, err = terminal.WriteString("\x03")
	require.NoError(t, err)
	seen("INT")
	_, err = terminal.WriteString("\n")
	require.NoError(t, err)
	seen("count 1")
	require.Equal(t, 7, exitCode(t, cmd.Wait()))
}

func TestControlCInATerminalEndsTheWaitWith130(t *testing.T) {
	d, db := file(t)
	held(t, db)
	cmd := program(t, d, shell("echo ran", "-v", "--wait", "forever")...)
	terminal, screen := inTerminal(t, cmd)
	eventually(t, "it waits", func() bool { return strings.Contains(screen.String(), "waiting") })
	_, err := terminal.WriteString("\x03")
	require.NoError(t, err)
	require.Equal(t, 130, exitCode(t, cmd.Wait()))
}

func TestAsProcess1OfANamespaceItReapsAll(t *testing.T) {
	d, _ := file(t)
	namespace := []string{"unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"}
	if os.Getuid() == 0 {
		namespace = []string{"unshare", "--pid", "--fork", "--mount-proc"}
	}
	script := `test $PPID = 1 && echo first; for i in 1 2 3; do (sleep 0.1 &); done; sleep 1; cat /proc/[0-9]*/stat; exit 3`
	cmd := program(t, d)
	unshare, err := exec.LookPath(namespace[0])
	require.NoError(t, err)
	cmd.Path, cmd.Args = unshare, append(append(namespace, binary), shell(script)...)
	p := begin(t, cmd)
	require.Equal(t, "first", p.line(), p.stderr)
	code, stdout := p.code()
	require.Equal(t, 3, code, p.stderr)
	require.NotContains(t, stdout, ") Z ")
	require.NotContains(t, stdout, "(sleep)")
}

// rounds is how many runs TestTwoRunsNeverOverlap makes on each database.
func rounds() int {
	n, err := strconv.Atoi(os.Getenv("DBMUTEX_TEST_ROUNDS"))
	if err != nil {
		return 6 // each fault once
	}
	return n
}

func TestTwoRunsNeverOverlap(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		name := filepath.Join(t.TempDir(), "witness")
		var waiting []*process
		add := func(stays bool) {
			cmd := program(t, d, "run", "--ttl", "5s", "--wait", "forever", "job", "--", os.Args[0])
			cmd.Env = append(cmd.Env, asWitness+"="+name)
			if stays {
				cmd.Env = append(cmd.Env, asWitness+"_STAYS=1")
			}
			waiting = append(waiting, begin(t, cmd))
		}
		for round := range rounds() {
			fault := round % 6
			add(fault != 0 && fault != 5)
			add(false)
			first := waiting[0]
			switch fault {
			case 0: // none
			case 1: // dbmutex is killed
				first.line()
				require.NoError(t, first.Process.Kill())
			case 2: // dbmutex is ended
				first.line()
				require.NoError(t, first.Process.Signal(syscall.SIGTERM))
			case 3: // the command is killed
				require.NoError(t, syscall.Kill(number(t, first.line()), syscall.SIGKILL))
			case 4: // the database hangs until the command has been ended
				first.line()
				letGo := d.Hang(t)
				first.requireCode(124)
				letGo()
				waiting = waiting[1:]
			case 5: // a waiter is killed
				require.NoError(t, waiting[1].Process.Kill())
			}
			for _, p := range waiting {
				_, _ = p.code()
			}
			waiting = nil
			require.NoFileExists(t, name+".overlap", "round %d", round)
		}
	})
}
