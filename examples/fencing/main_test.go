package main

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFencing(t *testing.T) {
	program := t.TempDir() + "/fencing"
	out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	out, err = exec.Command(program).CombinedOutput()
	require.NoError(t, err, "%s", out)
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	require.Empty(t, left)
	require.Equal(t, `The slow holder has token 1. It pauses, say for a suspended machine.
The next holder has token 2. Its write: done.
The slow holder wakes up. Its write: the store has seen token 2, and refuses 1.
Its release: dbmutex: the lease ended before the work did (mutex "report").
The next holder's release: done.
The store's value is "new".
`, string(out))
}
