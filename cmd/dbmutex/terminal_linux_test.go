package main

import (
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestInATerminalReleaseByForceWantsTheIDTyped(t *testing.T) {
	d, db := file(t)
	testdb.Acquire(t, db, "job", dbmutex.WithHolder("anna"))
	for name, tc := range map[string]struct {
		typed string
		code  int
		says  string
	}{
		"another":    {"JOB\n", 2, "that is not the id: nothing was released"},
		"nothing":    {"\n", 2, "that is not the id: nothing was released"},
		"^D":         {"\x04", 2, "that is not the id: nothing was released"},
		"^D after":   {"job\x04\x04", 2, "that is not the id: nothing was released"},
		"^C":         {"job\x03", 2, "nothing was released"},
		"a longer":   {"jobs\n", 2, "that is not the id: nothing was released"},
		"with a gap": {" job\n", 2, "that is not the id: nothing was released"},
	} {
		cmd := program(t, d, "release", "job", "--force", "--yes")
		terminal, screen := inTerminal(t, cmd)
		eventually(t, "it asks", func() bool { return strings.Contains(screen.String(), "Type the mutex's id to release it: ") })
		require.Contains(t, screen.String(), "holder    anna")
		require.Contains(t, screen.String(), "Its work is not stopped.")
		_, err := terminal.WriteString(tc.typed)
		require.NoError(t, err)
		require.Equal(t, tc.code, exitCode(t, cmd.Wait()), name)
		eventually(t, tc.says, func() bool { return strings.Contains(screen.String(), tc.says) })
		testdb.RequireHeld(t, db, "job")
	}
	cmd := program(t, d, "release", "job", "--force")
	terminal, screen := inTerminal(t, cmd)
	eventually(t, "it asks", func() bool { return strings.Contains(screen.String(), "release it: ") })
	_, err := terminal.WriteString("job\n")
	require.NoError(t, err)
	require.Zero(t, exitCode(t, cmd.Wait()))
	testdb.RequireFree(t, db, "job")
	cmd = program(t, d, "release", "job", "--force")
	_, screen = inTerminal(t, cmd)
	require.Equal(t, 1, exitCode(t, cmd.Wait()))
	eventually(t, "it says so", func() bool { return strings.Contains(screen.String(), "nothing was released") })
}

func TestInATerminalReleaseByForceSparesASuccessor(t *testing.T) {
	d, db := file(t)
	seen := testdb.Acquire(t, db, "job")
	cmd := program(t, d, "release", "job", "--force")
	terminal, screen := inTerminal(t, cmd)
	eventually(t, "it asks", func() bool { return strings.Contains(screen.String(), "release it: ") })
	require.NoError(t, seen.Release())
	testdb.Acquire(t, db, "job")
	_, err := terminal.WriteString("job\n")
	require.NoError(t, err)
	require.Equal(t, 1, exitCode(t, cmd.Wait()))
	testdb.RequireHeld(t, db, "job")
}

func TestInATerminalAForcedReleaseOfARunOrOfSlots(t *testing.T) {
	d, db := file(t)
	p := begin(t, program(t, d, oncePer("echo ready; exec sleep 60", "--ttl", "15s", "--holder", "anna")...))
	require.Equal(t, "ready", p.line())
	cmd := program(t, d, "release", "--once", "--force", tickOfJob(t))
	terminal, screen := inTerminal(t, cmd)
	eventually(t, "it asks", func() bool { return strings.Contains(screen.String(), "release it: ") })
	require.Contains(t, screen.String(), "holder    anna")
	_, err := terminal.WriteString(tickOfJob(t) + "\n")
	require.NoError(t, err)
	require.Zero(t, exitCode(t, cmd.Wait()))
	p.requireCode(124)

	_, err = db.Semaphore("job", 2).Acquire()
	require.NoError(t, err)
	cmd = program(t, d, "release", "--force", "job")
	_, screen = inTerminal(t, cmd)
	require.Equal(t, 2, exitCode(t, cmd.Wait()))
	eventually(t, "it says which", func() bool { return strings.Contains(screen.String(), "in slot ") })
	holders, err := db.Semaphore("job", 2).Holders()
	require.NoError(t, err)
	require.Len(t, holders, 1)
}

func TestInATerminalWatchDrawsTheTableAnew(t *testing.T) {
	d, db := file(t)
	cmd := program(t, d, "watch", "--interval", "10ms")
	_, screen := inTerminal(t, cmd)
	shows := func(text string) {
		t.Helper()
		eventually(t, text, func() bool {
			drawn := strings.Split(screen.String(), "\x1b[H\x1b[2J")
			return strings.Contains(drawn[len(drawn)-1], text)
		})
	}
	shows("Nothing is held")
	lease := testdb.Acquire(t, db, "job", dbmutex.WithHolder("anna\x1b"))
	shows(`job    "anna\x1b"  `)
	require.NoError(t, lease.Release())
	shows("Nothing is held")
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	require.Zero(t, exitCode(t, cmd.Wait()))
}
