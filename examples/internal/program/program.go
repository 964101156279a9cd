// Package program runs examples for their tests.
package program

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Output builds and runs the program in this folder, and returns what it prints. The program has a folder of its own for
// temporary files, and must leave nothing there.
func Output(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	file := filepath.Join(t.TempDir(), "program")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", file, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	temp := t.TempDir()
	run := exec.CommandContext(ctx, file)
	run.Env = append(os.Environ(), "TMPDIR="+temp, "TMP="+temp, "TEMP="+temp)
	run.Stderr = os.Stderr
	out, err = run.Output()
	require.NoError(t, err, "%s", out)
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	require.Empty(t, left)
	return string(out)
}
