//go:build unix

package main

import (
	"bufio"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// website is a dbmutex serve.
type website struct {
	*process
	url string
}

// serving starts the program, which tells its address.
func serving(t *testing.T, cmd *exec.Cmd) *website {
	t.Helper()
	w := &website{process: begin(t, cmd)}
	address := regexp.MustCompile(`serving (http://\S+)`)
	eventually(t, "it serves", func() bool { return address.MatchString(w.stderr.String()) })
	w.url = address.FindStringSubmatch(w.stderr.String())[1]
	return w
}

// get asks for a page, with what change makes of the request.
func (w *website) get(path string, change ...func(r *http.Request)) (status int, body string) {
	w.t.Helper()
	r, err := http.NewRequest(http.MethodGet, w.url+path, nil)
	require.NoError(w.t, err)
	for _, c := range change {
		c(r)
	}
	answer, err := http.DefaultTransport.RoundTrip(r)
	require.NoError(w.t, err)
	content, err := io.ReadAll(bufio.NewReader(answer.Body))
	require.NoError(w.t, err)
	require.NoError(w.t, answer.Body.Close())
	return answer.StatusCode, string(content)
}

func as(user, password string) func(r *http.Request) {
	return func(r *http.Request) { r.SetBasicAuth(user, password) }
}

func TestServeShowsTheDashboard(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		held(t, db)
		w := serving(t, program(t, d, "serve", "--listen", "127.0.0.1:0"))
		for path, want := range map[string]string{
			"": "job", "mutex?id=job": "job", "api/leases": `"lock_id":"job"`, "healthz": "ok\n",
		} {
			status, body := w.get(path)
			require.Equal(t, http.StatusOK, status, path)
			require.Contains(t, body, want, path)
		}
		for path, want := range map[string]int{"metrics": 404, "nothing": 404, "release?id=job&lease=x": 403} {
			status, _ := w.get(path)
			require.Equal(t, want, status, path)
		}
		require.NoError(t, w.Process.Signal(syscall.SIGTERM))
		w.requireCode(0)
	})
}

func TestServeHasMetrics(t *testing.T) {
	d, db := file(t)
	held(t, db)
	w := serving(t, program(t, d, "serve", "--listen", "localhost:0", "--metrics"))
	status, body := w.get("metrics")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, `dbmutex_table_leases{state="held"} 1`)
}

func TestServeRefusesForeignHostsOnLoopback(t *testing.T) {
	d, _ := file(t)
	w := serving(t, program(t, d, "serve", "--listen", "127.0.0.1:0"))
	for host, want := range map[string]int{
		"localhost": 200, "LOCALHOST:7070": 200, "127.0.0.1": 200, "127.0.0.2:1": 200, "[::1]:7070": 200, "[::1]": 200,
		"evil.example": 403, "evil.example:7070": 403, "localhost.evil.example": 403, "10.0.0.1": 403, "0.0.0.0": 403,
	} {
		for _, path := range []string{"", "healthz", "api/leases"} {
			status, _ := w.get(path, func(r *http.Request) { r.Host = host })
			require.Equal(t, want, status, "%s of %s", path, host)
		}
	}
}

func TestEveryAnswerOfServeIsSecured(t *testing.T) {
	d, _ := file(t)
	cmd := program(t, d, "serve", "--listen", "127.0.0.1:0", "--metrics")
	cmd.Env = append(cmd.Env, "DBMUTEX_SERVE_USER=anna", "DBMUTEX_SERVE_PASSWORD=s3cret")
	w := serving(t, cmd)
	for _, path := range []string{"", "healthz", "metrics", "nothing", "//x"} {
		for _, host := range []string{"localhost", "evil.example"} {
			for _, user := range []string{"anna", "berta"} {
				r, err := http.NewRequest(http.MethodGet, w.url+path, nil)
				require.NoError(t, err)
				r.Host = host
				r.SetBasicAuth(user, "s3cret")
				answer, err := http.DefaultTransport.RoundTrip(r)
				require.NoError(t, err)
				require.NoError(t, answer.Body.Close())
				require.Contains(t, answer.Header.Get("Content-Security-Policy"), "frame-ancestors 'none'")
				require.Equal(t, "nosniff", answer.Header.Get("X-Content-Type-Options"))
				require.Equal(t, "same-origin", answer.Header.Get("Referrer-Policy"))
				require.Equal(t, "no-store", answer.Header.Get("Cache-Control"))
			}
		}
	}
}

func TestServeReleasesOnlyIfItIsAllowed(t *testing.T) {
	d, db := file(t)
	for _, allowed := range []bool{false, true} {
		lease := testdb.Acquire(t, db, "job")
		args := map[bool][]string{false: nil, true: {"--allow-release"}}[allowed]
		w := serving(t, program(t, d, append([]string{"serve", "-v", "--listen", "127.0.0.1:0"}, args...)...))
		answer, err := http.Post(w.url+"api/release", "application/json",
			strings.NewReader(`{"lock_id":"job","lease_id":"`+testdb.Row(t, db, "job").LeaseID+`"}`))
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		require.Equal(t, map[bool]int{false: 403, true: 200}[allowed], answer.StatusCode)
		if allowed {
			testdb.RequireFree(t, db, "job")
			eventually(t, "it is logged", func() bool { return strings.Contains(w.stderr.String(), "mutex=job") })
		} else {
			testdb.RequireHeld(t, db, "job")
			require.NoError(t, lease.Release())
		}
	}
}

func TestServeAsksForThePassword(t *testing.T) {
	d, _ := file(t)
	cmd := program(t, d, "serve", "--listen", "127.0.0.1:0", "--allow-release", "--metrics")
	cmd.Env = append(cmd.Env, "DBMUTEX_SERVE_USER=anna", "DBMUTEX_SERVE_PASSWORD=s3cret")
	w := serving(t, cmd)
	for _, path := range []string{"", "metrics", "api/leases", "release?id=a&lease=b"} {
		for _, wrong := range []func(r *http.Request){
			func(*http.Request) {}, as("anna", ""), as("anna", "s3cre"), as("", "s3cret"), as("anna\x00s3cret", ""),
		} {
			status, _ := w.get(path, wrong)
			require.Equal(t, http.StatusUnauthorized, status, path)
		}
		status, _ := w.get(path, as("anna", "s3cret"))
		require.NotEqual(t, http.StatusUnauthorized, status, path)
	}
	status, _ := w.get("healthz")
	require.Equal(t, http.StatusOK, status)
	require.NotContains(t, w.stderr.String(), "s3cret")
}

func TestServeThatCouldBeMisusedExits2(t *testing.T) {
	d, _ := file(t)
	for name, tc := range map[string]struct {
		args, env string
	}{
		"releases by anybody":  {"--listen 0.0.0.0:0 --allow-release", ""},
		"all addresses":        {"--listen :0 --allow-release", ""},
		"no password":          {"", "DBMUTEX_SERVE_USER=anna"},
		"no user":              {"", "DBMUTEX_SERVE_PASSWORD=x"},
		"no address":           {"--listen nonsense", ""},
		"an argument":          {"a", ""},
		"a table that is none": {"--table nothing", ""},
	} {
		cmd := program(t, d, append([]string{"serve"}, strings.Fields(tc.args)...)...)
		cmd.Env = append(cmd.Env, "DBMUTEX_SERVE_USER=", "DBMUTEX_SERVE_PASSWORD=", tc.env)
		p := begin(t, cmd)
		p.requireCode(2)
		require.Regexp(t, `^dbmutex: .+\n$`, p.stderr.String(), name)
	}
}

func TestServeSaysThatTheDatabaseDoesNotAnswer(t *testing.T) {
	frozen(t, func(t *testing.T, network *proxy.Proxy, _ *dbmutex.DB) {
		w := serving(t, program(t, network.Database, "serve", "--listen", "127.0.0.1:0", "--timeout", "3s"))
		network.Freeze()
		status, body := w.get("healthz")
		require.Equal(t, http.StatusServiceUnavailable, status)
		require.Equal(t, "the database does not answer\n", body)
		network.Thaw()
		eventually(t, "it answers again", func() bool { status, _ := w.get("healthz"); return status == http.StatusOK })
		require.NoError(t, w.Process.Signal(syscall.SIGINT))
		w.requireCode(0)
	})
}
