//go:build unix

package testdb

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Clock is a server's clock, or a process's, that a test sets.
type Clock struct{ file string }

// NewClock makes a clock for processes that have its Environment.
func NewClock(t testing.TB) *Clock {
	t.Helper()
	folder, err := os.MkdirTemp("", "dbmutex-clock-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	if err := os.Chmod(folder, 0o755); err != nil { // the server is another user's
		t.Fatal(err)
	}
	clock := &Clock{filepath.Join(folder, "offset")}
	clock.Set(t, 0)
	return clock
}

// Environment is what the processes that have the clock need in their
// environment. Their monotonic clock stays as it is.
// https://github.com/wolfcw/libfaketime
func (c *Clock) Environment(t testing.TB) []string {
	t.Helper()
	library := postgresKind.engine.need(
		t, "faketime", []string{"/usr/lib/*/faketime", "/usr/lib/faketime", "/usr/lib64/faketime"}, "libfaketime.so.1",
	)
	return []string{"LD_PRELOAD=" + library, "FAKETIME_TIMESTAMP_FILE=" + c.file, "FAKETIME_NO_CACHE=1",
		"FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_DONT_RESET=1"}
}

// Set makes the clock differ from the machine's.
func (c *Clock) Set(t testing.TB, offset time.Duration) {
	t.Helper()
	// Written aside, so that nobody reads half of it.
	err := os.WriteFile(c.file+".new", fmt.Appendf(nil, "%+d\n", int64(offset/time.Second)), 0o644)
	if err == nil {
		err = os.Rename(c.file+".new", c.file)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// need returns a file of a Debian package, in one of these folders. If it is
// missing the test is skipped, or fails if the server is required.
func (e *engine) need(t testing.TB, name string, folders []string, file string) string {
	t.Helper()
	for _, folder := range folders {
		if files, _ := filepath.Glob(filepath.Join(folder, file)); len(files) > 0 {
			return files[0]
		}
	}
	install := fmt.Sprintf("install it (Debian: apt-get install %s)", name)
	if e.required() {
		t.Fatalf("testdb: no %s, and %s=required: %s", name, e.envWanted, install)
	}
	fmt.Fprintf(os.Stderr, "dbmutex tests: no %s, %s is skipped: %s\n", name, t.Name(), install)
	t.Skipf("no %s", name)
	return ""
}
