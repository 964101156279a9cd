package main

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// TestDashboard looks at the page, as who has logged in and as who has not.
func TestDashboard(t *testing.T) {
	file := filepath.Join(t.TempDir(), "program")
	out, err := exec.Command("go", "build", "-o", file, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Run("without -dsn", func(t *testing.T) { look(t, file) })
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		look(t, file, "-dsn", d.DSN)
		tables, err := d.Open(t).Migrator().GetTables()
		require.NoError(t, err)
		require.NotContains(t, strings.Join(tables, " "), "example_")
	})
}

func look(t *testing.T, file string, args ...string) {
	temp := t.TempDir()
	run := exec.Command(file, append(args, "-listen", "127.0.0.1:0")...)
	run.Env = append(os.Environ(), "TMPDIR="+temp)
	run.Stderr = os.Stderr
	stdout, err := run.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, run.Start())
	defer func() { _ = run.Process.Kill() }()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	address := regexp.MustCompile(`^(http://127\.0\.0\.1:\d+/ops/mutexes/)  user admin, password (\S+)\n$`)
	says := address.FindStringSubmatch(line)
	require.NotNil(t, says, line)

	get := func(path, password string) (status int, body string) {
		r, err := http.NewRequest(http.MethodGet, says[1]+path, nil)
		require.NoError(t, err)
		if password != "" {
			r.SetBasicAuth("admin", password)
		}
		w, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		defer func() { require.NoError(t, w.Body.Close()) }()
		page, err := io.ReadAll(w.Body)
		require.NoError(t, err)
		return w.StatusCode, string(page)
	}
	for _, password := range []string{"", "wrong"} {
		for _, path := range []string{"", "api/leases", "release?id=x&lease=x"} {
			status, page := get(path, password)
			require.Equal(t, http.StatusUnauthorized, status)
			require.NotContains(t, page, "export")
		}
	}
	for path, ids := range map[string][]string{
		"":               {"leader/scheduler", "export/customer/80131", "nightly-report", "Releases allowed", "mutexes"},
		"?state=expired": {"import/catalogue", "ran out"},
	} {
		for _, id := range ids {
			require.Eventually(t, func() bool {
				status, page := get(path, says[2])
				return status == http.StatusOK && strings.Contains(page, id)
			}, time.Minute, 10*time.Millisecond, id)
		}
	}
	require.NoError(t, run.Process.Signal(os.Interrupt))
	require.NoError(t, run.Wait())
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	require.Empty(t, left)
}
