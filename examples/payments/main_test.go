package main

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestPayments counts: at least one worker was late for each invoice, and yet each was paid once.
func TestPayments(t *testing.T) {
	program := t.TempDir() + "/payments"
	out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	out, err = exec.CommandContext(ctx, program).CombinedOutput()
	require.NoError(t, err, "%s", out)
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	require.Empty(t, left)
	for invoice, amount := range map[string]string{"1": "100", "2": "250", "3": "400"} {
		require.Regexp(t, `(?m)^\w+ was late to pay invoice `+invoice+`, and rolled back$`, string(out))
		require.Len(t, regexp.MustCompile(`(?m)^\w+ paid invoice `+invoice+`$`).FindAllString(string(out), -1), 1, "%s", out)
		require.Equal(t, 1, strings.Count(string(out), "\n"+amount+" was moved for invoice "+invoice+"\n"), "%s", out)
	}
	require.Contains(t, string(out), "\n750 was moved in all, for invoices of 750\n")
}
