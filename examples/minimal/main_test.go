package main

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMinimal(t *testing.T) {
	program := t.TempDir() + "/minimal"
	out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	folder := t.TempDir()
	for range 2 { // the second time on the same file
		run := exec.Command(program)
		run.Dir = folder
		run.Stderr = os.Stderr
		out, err := run.Output()
		require.NoError(t, err)
		require.Equal(t, "building the report\n", string(out))
	}
}
