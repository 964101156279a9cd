package dashboard_test

import (
	"bytes"
	"encoding/json"
	"html"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/dashboard"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// mount is where the tests mount the dashboard.
const mount = "/ops/mutexes"

// site is a dashboard with its database.
type site struct {
	db        *dbmutex.DB
	dashboard http.Handler
	handler   http.Handler // the dashboard where it is mounted
	log       *logs
}

// allow lets everybody release.
var allow = dashboard.Options{AllowRelease: func(*http.Request) bool { return true }}

// each runs a test on every database, with a dashboard that forgets its answers at once, and waits for long.
func each(t *testing.T, o dashboard.Options, test func(t *testing.T, s *site)) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		test(t, open(t, d.Mutexes(t, dbmutex.DefaultSettings()), o, 0, 0))
	})
}

// open mounts a dashboard whose answers are fresh for so long.
func open(t *testing.T, db *dbmutex.DB, o dashboard.Options, answer, stats time.Duration) *site {
	t.Helper()
	s := &site{db: db, log: &logs{}}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(s.log, nil))
	}
	h, err := dashboard.NewAt(db, o, answer, stats, time.Minute, 4)
	require.NoError(t, err)
	s.mount(h)
	return s
}

func (s *site) mount(h http.Handler) {
	mux := http.NewServeMux()
	mux.Handle(mount+"/", http.StripPrefix(mount, h))
	s.dashboard, s.handler = h, mux
}

func (s *site) do(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	return w
}

// get asks for a path in the dashboard.
func (s *site) get(path string) *httptest.ResponseRecorder {
	return s.do(httptest.NewRequest(http.MethodGet, mount+"/"+strings.TrimPrefix(path, "./"), nil))
}

// page must be there; it is the text that a reader sees.
func (s *site) page(t *testing.T, path string) string {
	t.Helper()
	w := s.get(path)
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	return text(w.Body.String())
}

// post sends a form, as a browser does from a page of the dashboard.
func (s *site) post(path string, form url.Values) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, mount+"/"+path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	return s.do(r)
}

// postJSON sends what a program sends.
func (s *site) postJSON(body any) *httptest.ResponseRecorder {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	r := httptest.NewRequest(http.MethodPost, mount+"/api/release", bytes.NewReader(text))
	r.Header.Set("Content-Type", "application/json")
	return s.do(r)
}

// leases is what api/leases says.
type leases struct {
	Now    time.Time
	Leases []struct {
		LockID  string `json:"lock_id"`
		LeaseID string `json:"lease_id"`
	}
	Next *string
}

func (s *site) leases(t *testing.T, query string) (found leases) {
	t.Helper()
	w := s.get("api/leases?" + query)
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &found))
	return found
}

func (l leases) ids() (ids []string) {
	for _, lease := range l.Leases {
		ids = append(ids, lease.LockID)
	}
	return ids
}

// asked counts the statements that read the table, and calls do before each.
func (s *site) asked(t *testing.T, do func(statement string)) *atomic.Int32 {
	t.Helper()
	var n atomic.Int32
	require.NoError(t, s.db.Callback().Row().Before("gorm:row").Register("asked", func(tx *gorm.DB) {
		if statement := tx.Statement.SQL.String(); strings.Contains(statement, "expires_at") {
			n.Add(1)
			do(statement)
		}
	}))
	return &n
}

func ignore(string) {}

var (
	tag   = regexp.MustCompile(`<[^>]*>`)
	space = regexp.MustCompile(`\s+`)
)

// text is a page without its tags.
func text(page string) string {
	page = regexp.MustCompile(`</(td|dt|dd|h1|p|li)>`).ReplaceAllString(page, " ")
	return space.ReplaceAllString(html.UnescapeString(tag.ReplaceAllString(page, "")), " ")
}

// links are what a page leads to and what it needs.
func links(page string) (found []string) {
	for _, attribute := range regexp.MustCompile(`(?:href|src|action)="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		found = append(found, html.UnescapeString(attribute[1]))
	}
	return found
}

// linkTo is the only link of a page that begins so.
func linkTo(t *testing.T, page, prefix string) string {
	t.Helper()
	var found []string
	for _, link := range links(page) {
		if strings.HasPrefix(link, prefix) {
			found = append(found, link)
		}
	}
	require.Len(t, found, 1, page)
	return found[0]
}

// logs can be written and read at the same time.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
