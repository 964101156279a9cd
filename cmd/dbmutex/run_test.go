//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestTheExitCodeIsTheCommandsOwn(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		for script, want := range map[string]int{
			"exit 0": 0, "exit 1": 1, "exit 75": 75, "exit 127": 127, "exit 255": 255, "kill -9 $$": 137, "kill -TERM $$": 143,
		} {
			code, _, stderr := run(t, d, shell(script)...)
			require.Equal(t, want, code, script)
			require.Empty(t, stderr, script)
			testdb.RequireFree(t, db, "job")
		}
	})
}

func TestTheCommandHoldsTheMutex(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		args := shell(`echo $DBMUTEX_ID; echo $DBMUTEX_TOKEN; echo $DBMUTEX_HOLDER; env; echo; read x`, "--holder", "anna")
		p := begin(t, program(t, d, args...))
		require.Equal(t, "job", p.line())
		require.NotEqual(t, "0", p.line())
		require.Equal(t, "anna", p.line())
		row := testdb.Row(t, db, "job")
		require.Equal(t, "anna", row.Holder)
		for line := p.line(); line != ""; line = p.line() {
			require.NotContains(t, line, row.LeaseID)
		}
		require.NoError(t, p.stdin.Close())
		p.requireCode(1) // read's, at the end of stdin
		testdb.RequireFree(t, db, "job")
	})
}

func TestAnInnerRunTellsItsOwnID(t *testing.T) {
	d, _ := file(t)
	cmd := program(t, d, "run", "outer", "--", "env")
	cmd.Env = append(cmd.Env, "DBMUTEX_ID=other", "DBMUTEX_TOKEN=other")
	p := begin(t, cmd)
	_, stdout := p.code()
	require.Equal(t, 1, strings.Count(stdout, "DBMUTEX_ID="))
	require.Contains(t, stdout, "DBMUTEX_ID=outer\n")
	require.Equal(t, 1, strings.Count(stdout, "DBMUTEX_TOKEN="))
}

func TestTheHolderIsTheProcess(t *testing.T) {
	d, db := file(t)
	p := begin(t, program(t, d, shell(`echo $DBMUTEX_HOLDER; read x`)...))
	holder := p.line()
	require.Equal(t, holder, testdb.Row(t, db, "job").Holder)
	require.True(t, strings.HasSuffix(holder, "/"+strconv.Itoa(p.Process.Pid)), holder)
}

func TestAMutexThatIsHeld(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		lease := held(t, db)
		for name, tc := range map[string]struct {
			flags  []string
			code   int
			stderr string
		}{
			"at once":      {nil, 75, `"job" is held by `},
			"after a wait": {[]string{"--wait", "100ms"}, 75, `"job" is held by `},
			"own code":     {[]string{"-E", "9"}, 9, `"job" is held by `},
			"skipped":      {[]string{"--skip-held"}, 0, `skipped: "job" is held by `},
		} {
			code, stdout, stderr := run(t, d, shell("echo ran", tc.flags...)...)
			require.Equal(t, tc.code, code, name)
			require.Empty(t, stdout, name)
			require.True(t, strings.HasPrefix(stderr, "dbmutex: "+tc.stderr), stderr)
			require.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
		}
		_, _, stderr := run(t, d, shell("echo ran", "-q")...)
		require.Empty(t, stderr)
		p := begin(t, program(t, d, shell("echo ran", "-w", "forever")...))
		require.NoError(t, lease.Release())
		require.Equal(t, "ran", p.line())
		p.requireCode(0)
	})
}

func TestLogsAreJSON(t *testing.T) {
	d, db := file(t)
	held(t, db)
	_, _, stderr := run(t, d, shell("true", "--log-format", "json")...)
	var line map[string]any
	require.NoError(t, json.Unmarshal([]byte(stderr), &line))
	require.Equal(t, "job", line["lock_id"])
}

func TestMinHoldKeepsTheMutexTaken(t *testing.T) {
	d, _ := file(t)
	code, _, _ := run(t, d, shell("true", "--min-hold", "29s")...)
	require.Zero(t, code)
	code, _, _ = run(t, d, shell("true")...)
	require.Equal(t, 75, code)
}

func TestACommandThatCannotRunIsSeenBeforeTheMutexIsAcquired(t *testing.T) {
	d, db := file(t)
	held(t, db)
	script := inFolder(t, "script", "#!/bin/sh\n", 0o644)
	for command, want := range map[string]int{"/nowhere/command": 127, "no-such-command": 127, script: 126, t.TempDir(): 126} {
		code, _, stderr := run(t, d, "run", "job", "--", command)
		require.Equal(t, want, code, stderr)
		require.Contains(t, stderr, command)
	}
}

func TestACommandOnPathThatCannotBeExecutedExits126(t *testing.T) {
	d, _ := file(t)
	cmd := program(t, d, "run", "job", "--", "no-such-command")
	cmd.Env = append(cmd.Env, "PATH="+os.Getenv("PATH")+":"+filepath.Dir(inFolder(t, "no-such-command", "#!/bin/sh\n", 0o644)))
	p := begin(t, cmd)
	p.requireCode(126)
	require.Contains(t, p.stderr.String(), "no-such-command: permission denied")
}

func TestACommandThatTheSystemRefusesLeavesTheMutexFree(t *testing.T) {
	d, db := file(t)
	binary := inFolder(t, "binary", "\x7fnothing", 0o755)
	script := inFolder(t, "script", "#!/nowhere/interpreter\n", 0o755)
	for command, want := range map[string]int{binary: 126, script: 127} {
		code, _, stderr := run(t, d, "run", "job", "--", command)
		require.Equal(t, want, code, stderr)
		testdb.RequireFree(t, db, "job")
	}
}

func TestWrongUseExits125(t *testing.T) {
	d, _ := file(t)
	for _, args := range []string{
		"run", "run job", "run job true", "run -- true", "run a b -- true", "run --bogus job -- true",
		"--bogus run job -- true",
		"run --wait soon job -- true", "run --wait -1s job -- true", "run --ttl 0 job -- true", "run --ttl x job -- true",
		"run --ttl 3s --kill-after 2s job -- true", "run --kill-after -1s job -- true", "run --min-hold 1m job -- true",
		"run --slots 0 job -- true", "run --slots -1 job -- true", "run --slots 257 job -- true", "run --once-per 0 job -- true",
		"run --once-per -1h job -- true", "run --once-per 999ms job -- true", "run --once-per 1h --slots 2 job -- true",
		"run --once-per 1h --min-hold 1s job -- true", "run --once-per day job -- true",
		"run --process-group none job -- true", "run -E 256 job -- true", "run --lost-exit-code -1 job -- true",
		"run --timeout 0 job -- true", "run -q -v job -- true", "run --log-format xml job -- true",
		"run --dsn oracle://x job -- true", "run --dsn sqlite:/nowhere/file job -- true",
		"run --table nothing job -- true", "run --dsn postgres://u@127.0.0.1:1/x job -- true",
		"run --dsn mysql://u@127.0.0.1:1/x job -- true",
	} {
		code, _, stderr := run(t, d, strings.Fields(args)...)
		require.Equal(t, 125, code, args)
		require.True(t, strings.HasPrefix(stderr, "dbmutex: "), stderr)
		require.Equal(t, 1, strings.Count(stderr, "\n"), stderr)
	}
	code, _, _ := run(t, d, "run", "", "--", "true")
	require.Equal(t, 125, code)
}

// onSignal is a script that tells of a signal, then of another in its child, and ends with 3.
const onSignal = `
trap 'echo command; wait; exit 3' %[1]s
sh -c 'trap "echo child; exit" %[1]s; echo ready; ` + lasts + `' &
` + lasts

func TestSignalsGoOnToTheWholeProcessGroup(t *testing.T) {
	d, db := file(t)
	for name, sig := range map[string]syscall.Signal{
		"TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
	} {
		p := begin(t, program(t, d, shell(fmt.Sprintf(onSignal, name))...))
		require.Equal(t, "ready", p.line())
		require.NoError(t, p.Process.Signal(sig))
		code, stdout := p.code()
		require.Equal(t, 3, code, name)
		require.Contains(t, stdout, "command\n", name)
		require.Contains(t, stdout, "child\n", name)
		testdb.RequireFree(t, db, "job")
	}
}

func TestASharedProcessGroupGetsSignalsInItsCommandAlone(t *testing.T) {
	d, _ := file(t)
	script := `trap 'echo command; kill -9 $!; exit 3' INT; sleep 60 & echo ready; ` + lasts
	p := begin(t, program(t, d, shell(script, "--process-group", "shared")...))
	require.Equal(t, "ready", p.line())
	require.NoError(t, p.Process.Signal(syscall.SIGINT))
	require.Equal(t, "command", p.line())
	p.requireCode(3)
}

func TestASignalThatEndsTheCommandIsItsExitCode(t *testing.T) {
	d, _ := file(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		p := begin(t, program(t, d, shell("echo ready; exec sleep 60")...))
		require.Equal(t, "ready", p.line())
		require.NoError(t, p.Process.Signal(sig))
		p.requireCode(128 + int(sig))
	}
}

func TestASignalEndsTheWait(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		held(t, db)
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1} {
			p := begin(t, program(t, d, shell("echo ran", "-v", "--wait", "forever")...))
			eventually(t, "it waits", func() bool { return strings.Contains(p.stderr.String(), "waiting") })
			require.NoError(t, p.Process.Signal(sig))
			code, stdout := p.code()
			require.Equal(t, 128+int(sig), code, p.stderr)
			require.Empty(t, stdout)
		}
	})
}

func TestASignalThatIsIgnoredStaysSo(t *testing.T) {
	d, _ := file(t)
	cmd := program(t, d)
	cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", `trap '' HUP; exec "$0" "$@"`, binary},
		shell(`echo ready; kill -HUP $$; echo alive; read x`)...)
	p := begin(t, cmd)
	require.Equal(t, "ready", p.line())
	require.Equal(t, "alive", p.line())
	require.NoError(t, p.Process.Signal(syscall.SIGHUP))
	require.NoError(t, p.stdin.Close())
	p.requireCode(1)
}

func TestALeaseThatIsTakenAwayEndsTheCommand(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		for name, script := range map[string]string{
			"it obeys":          `trap 'echo TERM; exit 0' TERM; echo ready; ` + lasts,
			"it ignores TERM":   `trap 'echo TERM' TERM; echo ready; ` + lasts,
			"its child ignores": `sh -c 'trap "echo TERM" TERM; echo ready; ` + lasts + `' & wait`,
			"it is stopped":     `trap 'echo TERM; exit 0' TERM; echo ready; kill -STOP $$; sleep 60`,
		} {
			p := begin(t, program(t, d, shell(script, "--ttl", "9s")...))
			require.Equal(t, "ready", p.line())
			require.NoError(t, db.Mutex("job").ForceRelease())
			code, stdout := p.code() // also when nobody has stdout any more
			require.Equal(t, 124, code, "%s: %s", name, p.stderr)
			require.Equal(t, "TERM\n", stdout, name)
			require.Contains(t, p.stderr.String(), "may have overlapped")
		}
	})
}

func TestALossThatOnlyTheReleaseFindsExits124(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		for _, flags := range [][]string{nil, {"--lost-exit-code", "9"}} {
			p := begin(t, program(t, d, shell("echo ready; read x; exit 0", append(flags, "--ttl", "10m")...)...))
			require.Equal(t, "ready", p.line())
			require.NoError(t, db.Mutex("job").ForceRelease())
			require.NoError(t, p.stdin.Close())
			p.requireCode(map[bool]int{true: 124, false: 9}[flags == nil])
		}
	})
}

func TestStdinAndStdoutAreTheCommandsOwn(t *testing.T) {
	d, _ := file(t)
	code, stdout, _ := run(t, d, "run", "job", "--", "cat")
	require.Zero(t, code)
	require.Empty(t, stdout)
	p := begin(t, program(t, d, shell("head -c 10000000 /dev/zero | tr '\\0' x")...))
	p.out.Buffer(nil, 20_000_000)
	require.Len(t, p.line(), 10_000_000)
	p.requireCode(0)
}

func TestWhatRunsOnInTheBackgroundRunsWithoutTheMutex(t *testing.T) {
	d, db := file(t)
	p := begin(t, program(t, d, shell("sleep 60 >/dev/null 2>&1 & echo $!")...))
	pid := number(t, p.line())
	p.requireCode(0)
	testdb.RequireFree(t, db, "job")
	require.True(t, alive(pid))
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
}

func TestTheTableIsMadeByMigrateAlone(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		if !d.Remote {
			d = testdb.At(d.Name, filepath.Join(t.TempDir(), "a b%?#.db"))
		}
		code, _, _ := run(t, d, "run", "--table", "others", "job", "--", "true")
		require.Equal(t, 125, code)
		if !d.Remote {
			require.NoFileExists(t, d.DSN)
		}
		code, _, stderr := run(t, d, "migrate", "--table", "others")
		require.Zero(t, code, stderr)
		code, _, stderr = run(t, d, "run", "--table", "others", "job", "--", "true")
		require.Zero(t, code, stderr)
	})
}
