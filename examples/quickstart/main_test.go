package main_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// quickstart runs the program as a user does, and returns its output and its exit status.
func quickstart(t *testing.T, env []string, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"run", "."}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// checkStory checks that the output tells each part's facts, as often as they happened.
func checkStory(t *testing.T, out string, status int) {
	t.Helper()
	if status != 0 {
		t.Errorf("the exit status is %d", status)
	}
	for pattern, times := range map[string]int{
		`(?m)^Process \d+ runs nightly-report`:                                                            1,
		`(?m)^Process \d+ does not: \S+/\d+ holds it since \d+:\d+`:                                       3,
		`(?m)^1 of 4 ran it.*free: true`:                                                                  1,
		`context ended after .*s\. The work went on all the same, and was .*s late\.`:                     1,
		`only ran out\. Do returned ErrTimeout, with Lost: false\. It says: dbmutex: .* ran out.* nobody`: 1,
		`the next worker got the mutex while the work went on: token \d+, after \d+`:                      1,
		`was lost\. Do returned ErrTimeout, with Lost: true\. It says: dbmutex: .* was lost`:              1,
		`\S+/\d+ holds reindex since .*expires: false`:                                                    1,
		`by force\. It is free: true`:                                                                     1,
		`from Release that the lease was lost: true`:                                                      1,
		`total is 100\. A transaction made it 75; then its lease`:                                         1,
		`Transaction returned ErrTimeout: true\. It was rolled back: true, the total is 100\.`:            1,
		`undisturbed, committed: true\. The total is 75\.`:                                                1,
	} {
		if got := len(regexp.MustCompile(pattern).FindAllString(out, -1)); got != times {
			t.Errorf("%q is there %d times, not %d", pattern, got, times)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

// TestWithoutArguments needs no C compiler, and leaves nothing behind.
func TestWithoutArguments(t *testing.T) {
	temp := t.TempDir()
	out, status := quickstart(t, []string{"CGO_ENABLED=0", "TMPDIR=" + temp, "TMP=" + temp, "TEMP=" + temp})
	checkStory(t, out, status)
	left, err := filepath.Glob(filepath.Join(temp, "dbmutex-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestEachDatabase leaves no table behind.
func TestEachDatabase(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out, status := quickstart(t, nil, "-dsn", d.DSN)
		checkStory(t, out, status)
		left, err := d.Open(t).Migrator().GetTables()
		if err != nil || strings.Contains(strings.Join(left, " "), "example_") {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
}

// TestNoServer says what is wrong.
func TestNoServer(t *testing.T) {
	for _, scheme := range []string{"postgres", "mysql"} {
		out, status := quickstart(t, nil, "-dsn", scheme+"://user:secret@127.0.0.1:1/database")
		if status != 1 || !regexp.MustCompile(`(?m)^quickstart failed: .*connect`).MatchString(out) {
			t.Errorf("status %d: %s", status, out)
		}
		if strings.Contains(out, "secret") {
			t.Errorf("the password is in the output: %s", out)
		}
	}
}
