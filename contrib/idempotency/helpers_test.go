package idempotency_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/idempotency"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// TestMain also is the body of the child processes.
func TestMain(m *testing.M) {
	testprocess.Main(m, map[string]testprocess.Task{"serve": serve})
}

// each runs a test on every database.
func each(t *testing.T, test func(t *testing.T, p *place)) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		p := &place{database: d}
		require.NoError(t, p.open(t).Migrate())
		test(t, p)
	})
}

// place is a database for servers.
type place struct {
	database *testdb.Database
}

// open opens the database with settings that must not matter.
func (p *place) open(t *testing.T) *dbmutex.DB {
	t.Helper()
	settings := dbmutex.DefaultSettings()
	settings.SkipHeld = true
	return p.database.Registered(t, settings)
}

// caller is whose request it is, as a login would have found out.
func caller(r *http.Request) string { return r.Header.Get("User") }

// serve starts a server with a database handle of its own, as on a machine of its own.
func (p *place) serve(t *testing.T, o idempotency.Options, handler http.HandlerFunc, opts ...dbmutex.Option) *server {
	t.Helper()
	return serveOn(t, p.open(t), o, handler, opts...)
}

func serveOn(t *testing.T, db *dbmutex.DB, o idempotency.Options, handler http.HandlerFunc, opts ...dbmutex.Option) *server {
	t.Helper()
	s := &server{log: make(chan string, 100)}
	idempotent, err := idempotency.New(db.Session(&gorm.Session{Logger: errorLog{logger.Discard, s.log}}), caller, o, opts...)
	require.NoError(t, err)
	s.Server = httptest.NewServer(idempotent(handler))
	t.Cleanup(s.Close)
	return s
}

// server is a web server. log has what its logger's Error got.
type server struct {
	*httptest.Server
	log chan string
}

type errorLog struct {
	logger.Interface
	lines chan string
}

func (l errorLog) Error(_ context.Context, format string, args ...any) {
	l.lines <- fmt.Sprintf(format, args...)
}

// client follows no redirects.
var client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// request is what a client sends. What is not set is as in order.
type request struct {
	method, path, key, user, body string
	keys                          []string // rather than key
}

// answer is what it gets.
type answer struct {
	status   int
	header   http.Header
	body     string
	replayed bool
}

// send sends a request, also from a goroutine.
func (s *server) send(ctx context.Context, r request) (a answer, err error) {
	or := func(text, otherwise string) string {
		if text == "" {
			return otherwise
		}
		return text
	}
	sent, err := http.NewRequestWithContext(ctx, or(r.method, "POST"), s.URL+or(r.path, "/orders"), strings.NewReader(r.body))
	if err != nil {
		return a, err
	}
	sent.Header["Idempotency-Key"] = r.keys
	if r.keys == nil && r.key != "" {
		sent.Header.Set("Idempotency-Key", r.key)
	}
	if user := or(r.user, "anna"); user != "nobody" {
		sent.Header.Set("User", user)
	}
	got, err := client.Do(sent)
	if err != nil {
		return a, err
	}
	body, err := io.ReadAll(got.Body)
	_ = got.Body.Close()
	return answer{got.StatusCode, got.Header, string(body), got.Header.Get("Idempotent-Replayed") == "true"}, err
}

// must sends a request that gets an answer with a status.
func (s *server) must(t *testing.T, status int, r request) answer {
	t.Helper()
	a, err := s.send(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, status, a.status, a.body)
	return a
}

// requireRefused sends a request that gets a problem.
func (s *server) requireRefused(t *testing.T, status int, title string, r request) answer {
	t.Helper()
	a := s.must(t, status, r)
	require.False(t, a.replayed)
	require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
	var problem struct {
		Status        int
		Title, Detail string
	}
	require.NoError(t, json.NewDecoder(bytes.NewReader([]byte(a.body))).Decode(&problem))
	require.Equal(t, status, problem.Status)
	require.Contains(t, problem.Title, title)
	return a
}

// takeAway lets the lease of a handler's request be lost.
func takeAway(db *dbmutex.DB, r *http.Request) error {
	lease, _ := dbmutex.LeaseFrom(r.Context())
	return db.Where("lock_id = ?", lease.LockID()).Delete(&dbmutex.DBOnce{}).Error
}
