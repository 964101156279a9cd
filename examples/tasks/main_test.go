package main

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTasks(t *testing.T) {
	program := t.TempDir() + "/tasks"
	out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	run := exec.CommandContext(ctx, program)
	run.Stderr = os.Stderr
	out, err = run.Output()
	require.NoError(t, err)
	lines := strings.Split(string(out), "\n")
	require.Contains(t, []string{"worker 1 builds the report", "worker 2 builds the report"}, lines[0])
	require.Equal(t, []string{"meanwhile 5 tasks were dropped", "the report is built", ""}, lines[1:])
}
