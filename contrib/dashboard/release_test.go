package dashboard_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/dashboard"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// sure is the form of a confirmation.
func sure(id, leaseID string) url.Values {
	return url.Values{"id": {id}, "lease": {leaseID}, "confirm": {id}}
}

func TestAReleaseIsConfirmed(t *testing.T) {
	o := allow
	o.Actor = func(r *http.Request) string { return r.Header.Get("User") + "anna" }
	each(t, o, func(t *testing.T, s *site) {
		const id = "export/customer 80131"
		testdb.Acquire(t, s.db, id, dbmutex.WithHolder("worker-3"))
		leaseID := testdb.Row(t, s.db, id).LeaseID

		list := s.get("").Body.String()
		require.Contains(t, text(list), "Releases allowed")
		ask := s.get(linkTo(t, list, "release?")).Body.String()
		require.Contains(t, text(ask), "Held by worker-3 for ")
		require.Contains(t, text(ask), "Its work is not stopped. It learns of this by its next renewal, or at its end. "+
			"Until then the next holder may run beside it.")
		action := linkTo(t, ask, "release?")
		require.NotNil(t, testdb.Row(t, s.db, id), "a GET changes nothing")

		w := s.post(action, url.Values{"confirm": {"export/customer"}})
		require.Equal(t, http.StatusUnprocessableEntity, w.Code)
		require.Contains(t, text(w.Body.String()), "That is not the mutex’s id. Nothing was released.")
		require.Equal(t, action, linkTo(t, w.Body.String(), "release?"), "the form is there again")
		require.Equal(t, http.StatusUnprocessableEntity, s.post("release", url.Values{"id": {id}, "lease": {leaseID}}).Code)
		require.NotNil(t, testdb.Row(t, s.db, id))

		w = s.post(action, url.Values{"confirm": {id}})
		require.Equal(t, http.StatusSeeOther, w.Code)
		require.Equal(t, "./?done=export%2Fcustomer+80131", w.Header().Get("Location"))
		require.Nil(t, testdb.Row(t, s.db, id))
		require.Contains(t, s.log.String(), `level=WARN msg="dbmutex: the dashboard released a lease by force" `+
			`mutex="export/customer 80131" lease_id=`+leaseID+` actor=anna remote_addr=192.0.2.1:1234`)
		require.Contains(t, s.page(t, w.Header().Get("Location")), "Released export/customer 80131 "+
			"Whoever had it learns of it by the next renewal, or at the end of the work.")
	})
}

func TestALeaseThatHadEndedIsNotReleased(t *testing.T) {
	each(t, allow, func(t *testing.T, s *site) {
		lease := testdb.Acquire(t, s.db, "job")
		leaseID := testdb.Row(t, s.db, "job").LeaseID
		require.NoError(t, lease.Release())
		for _, now := range []string{"nobody", "another"} { // holds it
			if now == "another" {
				testdb.Acquire(t, s.db, "job")
			}
			for _, w := range []*httptest.ResponseRecorder{
				s.post("release", sure("job", leaseID)), s.get("release?id=job&lease=" + leaseID),
			} {
				require.Equal(t, http.StatusConflict, w.Code)
				require.Contains(t, text(w.Body.String()), "That lease had ended.")
				require.Contains(t, text(w.Body.String()), "Nothing was released.")
			}
			w := s.postJSON(map[string]string{"lock_id": "job", "lease_id": leaseID})
			require.Equal(t, http.StatusOK, w.Code)
			require.JSONEq(t, `{"released":false}`, w.Body.String())
			require.Equal(t, http.StatusUnprocessableEntity,
				s.post("release", url.Values{"id": {"job"}, "lease": {leaseID}, "confirm": {"jo"}}).Code)
		}
		testdb.RequireHeld(t, s.db, "job")
		require.Equal(t, http.StatusConflict, s.post("release", sure(strings.Repeat("x", 257), "lease")).Code)
	})
}

func TestProgramsRelease(t *testing.T) {
	each(t, allow, func(t *testing.T, s *site) {
		testdb.Acquire(t, s.db, "job")
		body := map[string]string{"lock_id": "job", "lease_id": testdb.Row(t, s.db, "job").LeaseID}
		r := httptest.NewRequest(http.MethodPost, mount+"/api/release", strings.NewReader(`{}`))
		r.Header.Set("Content-Type", "text/plain")
		require.Equal(t, http.StatusUnsupportedMediaType, s.do(r).Code)
		behind, err := json.Marshal(body)
		require.NoError(t, err)
		r = httptest.NewRequest(http.MethodPost, mount+"/api/release", strings.NewReader(string(behind)+"and more"))
		r.Header.Set("Content-Type", "application/json")
		require.Equal(t, http.StatusBadRequest, s.do(r).Code)
		for _, wrong := range []any{"job", []string{}, map[string]string{"lock_id": "job"}, map[string]string{"lease_id": "x"},
			map[string]string{"lock_id": "job", "lease_id": strings.Repeat("x", 1<<16)}} {
			require.Equal(t, http.StatusBadRequest, s.postJSON(wrong).Code)
		}
		testdb.RequireHeld(t, s.db, "job")
		w := s.postJSON(body)
		require.Equal(t, http.StatusOK, w.Code)
		require.JSONEq(t, `{"released":true}`, w.Body.String())
		testdb.RequireFree(t, s.db, "job")
	})
}

func TestWhoMayNotReleaseCannot(t *testing.T) {
	t.Parallel()
	for name, allowed := range map[string]func(*http.Request) bool{
		"nobody may": nil, "others may": func(r *http.Request) bool { return r.Header.Get("User") == "root" },
	} {
		t.Run(name, func(t *testing.T) {
			each(t, dashboard.Options{AllowRelease: allowed}, func(t *testing.T, s *site) {
				testdb.Acquire(t, s.db, "job")
				leaseID := testdb.Row(t, s.db, "job").LeaseID
				for _, w := range []*httptest.ResponseRecorder{
					s.get("release?id=job&lease=" + leaseID), s.post("release", sure("job", leaseID)),
					s.postJSON(map[string]string{"lock_id": "job", "lease_id": leaseID}),
				} {
					require.Equal(t, http.StatusForbidden, w.Code)
					require.Contains(t, text(w.Body.String()), "You may not release mutexes here.")
				}
				testdb.RequireHeld(t, s.db, "job")
				for _, page := range []string{"", "mutex?id=job"} {
					require.Contains(t, s.page(t, page), "Read only")
					require.NotContains(t, s.get(page).Body.String(), `href="release`)
				}
			})
		})
	}
}

func TestOtherSitesReleaseNothing(t *testing.T) {
	each(t, allow, func(t *testing.T, s *site) {
		testdb.Acquire(t, s.db, "job")
		leaseID := testdb.Row(t, s.db, "job").LeaseID
		for header, value := range map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"} {
			for path, body := range map[string]string{
				"release": sure("job", leaseID).Encode(), "api/release": `{"lock_id":"job","lease_id":"` + leaseID + `"}`,
			} {
				r := httptest.NewRequest(http.MethodPost, mount+"/"+path, strings.NewReader(body))
				r.Header.Set("Content-Type", map[string]string{"release": "application/x-www-form-urlencoded",
					"api/release": "application/json"}[path])
				r.Header.Set(header, value)
				w := s.do(r)
				require.Equal(t, http.StatusForbidden, w.Code)
				require.Contains(t, text(w.Body.String()), "This came from another site. Nothing was released.")
			}
		}
		testdb.RequireHeld(t, s.db, "job")
	})
}

func TestAReleaseSaysWhatIsMissing(t *testing.T) {
	each(t, allow, func(t *testing.T, s *site) {
		testdb.Acquire(t, s.db, "job")
		require.Equal(t, http.StatusBadRequest, s.get("release?id=job").Code)
		require.Equal(t, http.StatusBadRequest, s.post("release", url.Values{"id": {"job"}, "confirm": {"job"}}).Code)
		require.Equal(t, http.StatusBadRequest, s.post("release", sure("", "x")).Code)
		require.Equal(t, http.StatusBadRequest, s.post("release", sure(strings.Repeat("x", 1<<16), "x")).Code)
		testdb.RequireHeld(t, s.db, "job")
	})
}

func TestAReleaseShowsAtOnce(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		var told []dbmutex.Event
		settings := dbmutex.DefaultSettings()
		settings.Observer = observer(func(e dbmutex.Event) {
			if e.Kind == dbmutex.ForceReleased {
				told = append(told, e)
			}
		})
		s := open(t, d.Mutexes(t, settings), allow, 1<<62, 1<<62)
		testdb.Acquire(t, s.db, "job", dbmutex.WithHolder("worker-1"))
		leaseID := testdb.Row(t, s.db, "job").LeaseID
		require.Contains(t, s.page(t, ""), "Held now 1 ")
		require.Contains(t, s.page(t, "mutex?id=job"), "worker-1")
		w := s.post("release", sure("job", leaseID))
		require.Equal(t, http.StatusSeeOther, w.Code)
		list := s.page(t, w.Header().Get("Location"))
		require.Contains(t, list, "Held now 0 ")
		require.Contains(t, list, "Nothing is held")
		require.Equal(t, http.StatusNotFound, s.get("mutex?id=job").Code)
		require.Len(t, told, 1)
		require.Equal(t, "worker-1", told[0].Holder)
	})
}

type observer func(e dbmutex.Event)

// Observe tells.
func (o observer) Observe(ctx context.Context, e dbmutex.Event) context.Context {
	o(e)
	return ctx
}

func TestABrowserThatGoesAwayDoesNotUndoARelease(t *testing.T) {
	each(t, allow, func(t *testing.T, s *site) {
		testdb.Acquire(t, s.db, "job")
		leaseID := testdb.Row(t, s.db, "job").LeaseID
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		r := httptest.NewRequest(http.MethodPost, mount+"/release", strings.NewReader(sure("job", leaseID).Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		require.Equal(t, http.StatusSeeOther, s.do(r.WithContext(ctx)).Code)
		testdb.RequireFree(t, s.db, "job")
	})
}
