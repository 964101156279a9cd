package main

import (
	"os"
	"os/exec"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestSchedule checks that no tick was run twice: the leases are as far apart as MinHold, by the database's clock.
func TestSchedule(t *testing.T) {
	program := t.TempDir() + "/schedule"
	out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	temp := t.TempDir()
	run := exec.Command(program)
	run.Env = append(os.Environ(), "TMPDIR="+temp, "TMP="+temp, "TEMP="+temp)
	run.Stderr = os.Stderr
	out, err = run.Output()
	require.NoError(t, err)

	runs := regexp.MustCompile(`(?m)^(\d\d:\d\d:\d\d\.\d{3})  machine [12] runs it$`).FindAllSubmatch(out, -1)
	require.GreaterOrEqual(t, len(runs), 4, "%s", out)
	var last time.Time
	for i, run := range runs {
		at, err := time.Parse("15:04:05.000", string(run[1]))
		require.NoError(t, err)
		if at.Before(last) { // midnight has passed
			at = at.AddDate(0, 0, 1)
		}
		if i > 0 {
			require.GreaterOrEqual(t, at.Sub(last), time.Second/2, "%s", out)
		}
		last = at
	}
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	require.Empty(t, left)
}
