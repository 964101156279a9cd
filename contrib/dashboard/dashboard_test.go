package dashboard_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/dashboard"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestWhatNewRefuses(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		for _, nothing := range []*dbmutex.DB{nil, {}, dbmutex.Wrap(&gorm.DB{}), dbmutex.Wrap(d.Open(t))} {
			_, err := dashboard.New(nothing, dashboard.Options{})
			require.ErrorIs(t, err, dbmutex.ErrNotRegistered)
		}
		db := d.Registered(t, dbmutex.DefaultSettings())
		_, err := dashboard.New(db, dashboard.Options{})
		require.ErrorContains(t, err, `table "db_mutexes" is missing`)
		require.NoError(t, db.Migrate())
		_, err = dashboard.New(db, dashboard.Options{})
		require.NoError(t, err)
	})
}

func TestRoutes(t *testing.T) {
	each(t, allow, func(t *testing.T, s *site) {
		testdb.Acquire(t, s.db, "job")
		leaseID := testdb.Row(t, s.db, "job").LeaseID
		const page, program = "text/html; charset=utf-8", "application/json"
		for _, route := range []struct {
			method, path string
			status       int
			kind, allow  string
		}{
			{"GET", "", 200, page, ""},
			{"HEAD", "", 200, page, ""},
			{"POST", "", 405, "text/plain; charset=utf-8", "GET"},
			{"GET", "mutex?id=job", 200, page, ""},
			{"DELETE", "mutex?id=job", 405, "text/plain; charset=utf-8", "GET"},
			{"GET", "release?id=job&lease=" + leaseID, 200, page, ""},
			{"PUT", "release", 405, "text/plain; charset=utf-8", "GET, POST"},
			{"GET", "api/leases", 200, program, ""},
			{"GET", "api/lease?id=job", 200, program, ""},
			{"GET", "api/stats", 200, program, ""},
			{"GET", "api/release", 405, "text/plain; charset=utf-8", "POST"},
			{"GET", "static/dbmutex.css", 200, "text/css; charset=utf-8", ""},
			{"GET", "static/dbmutex.js", 200, "text/javascript; charset=utf-8", ""},
			{"GET", "static/icon.svg", 200, "image/svg+xml; charset=utf-8", ""},
			{"GET", "static/", 404, "text/plain; charset=utf-8", ""},
			{"GET", "static/../pages.html", 404, "text/plain; charset=utf-8", ""},
			{"GET", "mutex/", 404, "text/plain; charset=utf-8", ""},
			{"GET", "favicon.ico", 404, "text/plain; charset=utf-8", ""},
		} {
			r := httptest.NewRequest(route.method, mount+"/"+route.path, nil)
			r.Header.Set("Sec-Fetch-Site", "same-origin")
			w := httptest.NewRecorder()
			http.StripPrefix(mount, s.dashboard).ServeHTTP(w, r) // a ServeMux would clean the path
			name := route.method + " " + route.path
			require.Equal(t, route.status, w.Code, name)
			header := w.Header()
			require.Equal(t, route.kind, header.Get("Content-Type"), name)
			require.Equal(t, route.allow, header.Get("Allow"), name)
			require.Equal(t, "no-store", header.Get("Cache-Control"), name)
			require.Equal(t, "nosniff", header.Get("X-Content-Type-Options"), name)
			require.Equal(t, "same-origin", header.Get("Referrer-Policy"), name)
			require.Equal(t, "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "+
				"form-action 'self'; base-uri 'none'; frame-ancestors 'none'", header.Get("Content-Security-Policy"), name)
		}
	})
}

func TestFilesAreKeptUnderTheirHashAlone(t *testing.T) {
	each(t, dashboard.Options{}, func(t *testing.T, s *site) {
		files := 0
		for _, link := range links(s.get("").Body.String()) {
			if !strings.HasPrefix(link, "static/") {
				continue
			}
			files++
			w := s.get(link)
			require.Equal(t, http.StatusOK, w.Code)
			require.Equal(t, "public, max-age=31536000, immutable", w.Header().Get("Cache-Control"))
			w = s.get(link + "0") // of another version, as two replicas may be
			require.Equal(t, http.StatusOK, w.Code)
			require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
		}
		require.Equal(t, 3, files)
	})
}

func TestAllLinksAreRelative(t *testing.T) {
	each(t, allow, func(t *testing.T, s *site) {
		testdb.Many(t, s.db, 60)
		testdb.Acquire(t, s.db, "http://a:b@c/d?e=f&g=h#i")
		leaseID := testdb.Row(t, s.db, "http://a:b@c/d?e=f&g=h#i").LeaseID
		query := url.Values{"id": {"http://a:b@c/d?e=f&g=h#i"}, "lease": {leaseID}}.Encode()
		followed := map[string]bool{}
		for _, mounted := range []string{"", "/ops", "/a/b/c"} {
			mux := http.NewServeMux()
			mux.Handle(mounted+"/", http.StripPrefix(mounted, s.dashboard))
			base := "http://example.com" + mounted + "/"
			for _, path := range []string{
				"", "?prefix=many&state=all", "?order=ending", "?after=many-00001", "mutex?" + query, "release?" + query,
				"release?id=x&lease=x", "mutex?id=x", "?once=1",
			} {
				w := httptest.NewRecorder()
				mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, base+path, nil))
				for _, link := range links(w.Body.String()) {
					if link == "#main" {
						continue
					}
					from, err := url.Parse(base + path)
					require.NoError(t, err)
					to, err := from.Parse(link)
					require.NoError(t, err)
					require.True(t, strings.HasPrefix(to.String(), base), "%s leads to %s", path, to)
					if page := strings.TrimPrefix(to.String(), base); !followed[page] && !strings.Contains(page, "id=many") {
						followed[page] = true
						w := httptest.NewRecorder()
						mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, to.String(), nil))
						if !strings.Contains(page, "id=x") {
							require.Equal(t, http.StatusOK, w.Code, page)
						}
					}
				}
			}
		}
		require.Greater(t, len(followed), 15)
	})
}

func TestAMountWithoutItsSlashLeadsThere(t *testing.T) {
	each(t, dashboard.Options{}, func(t *testing.T, s *site) {
		mux := http.NewServeMux()
		mux.Handle(mount, http.StripPrefix(mount, s.dashboard))
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, mount+"?prefix=x", nil))
		require.Equal(t, http.StatusPermanentRedirect, w.Code)
		require.Equal(t, "./mutexes/", w.Header().Get("Location"))

		mux = http.NewServeMux()
		mux.Handle(mount+"/", http.StripPrefix(mount+"/", s.dashboard)) // a slash too much
		for path, status := range map[string]int{"": http.StatusOK, "mutex?id=x": http.StatusNotFound} {
			w = httptest.NewRecorder()
			mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, mount+"/"+path, nil))
			require.Equal(t, status, w.Code)
			require.Contains(t, w.Body.String(), "<!doctype html>")
		}
	})
}

func TestThePageSaysHowOftenItAsks(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		db := d.Mutexes(t, dbmutex.DefaultSettings())
		for refresh, want := range map[time.Duration]string{
			0: "5", -1: "0", 1500 * time.Millisecond: "1.5", time.Minute: "60",
		} {
			s := open(t, db, dashboard.Options{Refresh: refresh}, 0, 0)
			page := s.get("").Body.String()
			require.Contains(t, page, `data-refresh="`+want+`"`)
			require.Contains(t, text(page), db.Name()+" · db_mutexes", "the title says which table it is")
		}
	})
}

func TestAnIDCannotDeceive(t *testing.T) {
	each(t, allow, func(t *testing.T, s *site) {
		for id, shown := range map[string]string{
			`<script>alert(1)</script>`:   `&lt;script&gt;alert(1)&lt;/script&gt;`,
			`" onfocus="alert(1)" x="`:    `&#34; onfocus=&#34;alert(1)&#34; x=&#34;`,
			`'><img src=x onerror=a()>`:   `&#39;&gt;&lt;img src=x onerror=a()&gt;`,
			`{{.Table}} ${x} %s`:          `{{.Table}} ${x} %s`,
			"javascript:alert(1)":         "javascript:alert(1)",
			"../../release?id=x&lease=y#": "../../release?id=x&amp;lease=y#",
			"pay\u202etxt.exe":            `pay<E>\u202e</E>txt.exe`,
			"a\u200bb\u2066\u00a0":        `a<E>\u200b</E>b<E>\u2066\u00a0</E>`,
			"line\r\nbreak\rtab\t":        `line<E>\r\n</E>break<E>\r</E>tab<E>\t</E>`,
			"esc\x1b[31m\u009b":           `esc<E>\x1b</E>[31m<E>\u009b</E>`,
			" job ":                       `<E>\x20</E>job<E>\x20</E>`,
			"job\ufe0f\u3164\u2800":       `job<E>\ufe0f\u3164\u2800</E>`,
			"日本/עברית/é":                  "日本/עברית/é",
		} {
			shown = strings.NewReplacer("<E>", `<span class="esc" title="a character that could not be seen">`, "</E>", "</span>").
				Replace(shown)
			lease, err := s.db.Mutex(id, dbmutex.WithHolder(id)).Acquire()
			require.NoError(t, err)
			row := testdb.Row(t, s.db, id)
			query := url.Values{"id": {id}, "lease": {row.LeaseID}}
			list := s.get("").Body.String()
			require.Contains(t, list, `"><bdi>`+shown+`</bdi></a></td>`, "%q", id)
			require.Contains(t, list, `<td class="c-holder" role="cell"><bdi>`+shown+`</bdi>`, "%q", id)
			detail := linkTo(t, strings.SplitN(list, "<tbody", 2)[1], "mutex?")
			page := s.get(detail)
			require.Equal(t, http.StatusOK, page.Code, "%q", id)
			require.Contains(t, page.Body.String(), `<h1><bdi>`+shown+`</bdi></h1>`)
			confirm := s.get(linkTo(t, page.Body.String(), "release?"))
			require.Equal(t, http.StatusOK, confirm.Code, "%q", id)

			found := s.get("?" + url.Values{"prefix": {id}}.Encode())
			require.Contains(t, text(found.Body.String()), "1 of 1", "%q", id)
			for _, page := range []string{list, page.Body.String(), confirm.Body.String(), found.Body.String(),
				s.get("?" + url.Values{"prefix": {id + "x"}}.Encode()).Body.String(),
				s.get("?" + url.Values{"done": {id}}.Encode()).Body.String(), s.get("api/leases").Body.String()} {
				require.NotRegexp(t, "<(script>|img)| onfocus=\"|[\\r\\t\\x1b\u202e\u200b\u2066\u009b]",
					strings.ReplaceAll(page, `value="`+id, ""), "%q", id)
			}

			query.Set("confirm", dashboard.Visible(id)) // as a browser sends it, which can type no other
			w := s.post(linkTo(t, confirm.Body.String(), "release?"), url.Values{"confirm": {dashboard.Visible(id)},
				"id": {strings.ReplaceAll(id, "\r", "\r\n")}, "lease": {row.LeaseID}})
			require.Equal(t, http.StatusSeeOther, w.Code, "%q", id)
			require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)
			location, err := url.Parse(w.Header().Get("Location"))
			require.NoError(t, err)
			require.Equal(t, id, location.Query().Get("done"))
		}
	})
}

func TestWords(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 999 * time.Millisecond: "0 s", time.Second: "1 s", 59 * time.Second: "59 s", time.Minute: "1 min",
		251 * time.Second: "4 min 11 s", 10*time.Minute + 30*time.Second: "10 min", 72 * time.Minute: "1 h 12 min",
		3601 * time.Second: "1 h", 220*time.Hour + 59*time.Minute: "9 d 4 h", 24 * time.Hour: "1 d",
	} {
		require.Equal(t, want, dashboard.Words(d), d)
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		require.Equal(t, want, dashboard.Grouped(n))
	}
	for s, want := range map[string]string{
		"export/customer/80131": "export/customer/80131", "-x": "-- -x", "-x y": "-- '-x y'", "a b": "'a b'",
		"it's": `'it'\''s'`, "$(reboot)": "'$(reboot)'",
		"": "''", "a\nb": "", "~root": "'~root'",
	} {
		require.Equal(t, want, dashboard.Argument(s))
	}
	require.Equal(t, `\xff\xfe`, dashboard.Visible("\xff\xfe"))
	require.Equal(t, `\x20\x20`, dashboard.Visible("  "))
}
