package dashboard_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/dashboard"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestTheListSaysWhoHoldsWhat(t *testing.T) {
	each(t, dashboard.Options{Title: "orders-db"}, func(t *testing.T, s *site) {
		require.Contains(t, s.page(t, ""), "Nothing is held")
		testdb.Acquire(t, s.db, "billing/invoice-run", dbmutex.WithHolder("worker-1"), dbmutex.WithTTL(30*time.Minute))
		testdb.Acquire(t, s.db, "leader", dbmutex.WithHolder("worker-2"), dbmutex.WithoutTTL())
		testdb.Acquire(t, s.db, "nightly", dbmutex.WithHolder("worker-3"))
		testdb.Expire(t, s.db, "nightly")

		held := s.page(t, "")
		require.Contains(t, held, "orders-db")
		require.Contains(t, held, "Read only")
		require.Regexp(t, `billing/invoice-run worker-1 \d+ [\w ]+ \d+ min \d\d:\d\d:\d\d `, held)
		require.Regexp(t, `leader worker-2 \d+ [\w ]+ never `, held)
		require.NotContains(t, held, "nightly")
		require.Regexp(t, `Held now 2 Ran out, not taken over 1 Never expire 1 Held longest \d+ [\w ]+ billing/invoice-run`, held)
		require.Contains(t, held, "2 of 2")

		expired := s.page(t, "?state=expired")
		require.Regexp(t, `nightly worker-3 \d+ [\w ]+ ran out \d+ [\w ]+ ago `, expired)
		require.NotContains(t, strings.SplitN(expired, "Ends in", 2)[1], "worker-1")
		all := s.page(t, "?state=all")
		require.Contains(t, all, "3 of 3")

		found := s.page(t, "?prefix=billing/")
		require.Contains(t, found, "1 of 1")
		require.NotContains(t, found, "worker-2")
		require.Contains(t, s.page(t, "?prefix=BILLING/"), "No mutex begins with “BILLING/”")
		require.Contains(t, s.page(t, "?prefix=x&state=expired"), "No mutex that ran out begins with “x”")
		require.Contains(t, s.page(t, "?after=z"), "No more")
	})
}

func TestTheListCanBeSorted(t *testing.T) {
	each(t, dashboard.Options{}, func(t *testing.T, s *site) {
		testdb.Acquire(t, s.db, "b", dbmutex.WithTTL(time.Hour))
		time.Sleep(5 * time.Millisecond) // the database's clock goes on
		testdb.Acquire(t, s.db, "a", dbmutex.WithoutTTL())
		time.Sleep(5 * time.Millisecond)
		testdb.Acquire(t, s.db, "c", dbmutex.WithTTL(time.Minute))
		for order, want := range map[string][]string{"": {"a", "b", "c"}, "id": {"a", "b", "c"}, "oldest": {"b", "a", "c"},
			"ending": {"c", "b", "a"}} {
			require.Equal(t, want, s.leases(t, "order="+order).ids(), order)
			var onPage []string
			page := s.get("?order=" + order).Body.String()
			for _, link := range links(page[strings.Index(page, "<tbody"):]) {
				onPage = append(onPage, strings.TrimPrefix(link, "mutex?id="))
			}
			require.Equal(t, want, onPage, order)
			require.Equal(t, 1, strings.Count(page, "aria-sort="))
		}
		page := s.get("?order=oldest").Body.String()
		require.Contains(t, page, `aria-sort="descending"><a href="./?order=oldest">Held for`)
	})
}

func TestPagesFollowEachOther(t *testing.T) {
	each(t, dashboard.Options{}, func(t *testing.T, s *site) {
		testdb.Many(t, s.db, 120)
		s.asked(t, func(statement string) {
			if strings.Contains(strings.ToUpper(statement), "OFFSET") {
				t.Error(statement)
			}
		})

		var ids []string
		for query, pages := "", 0; ; pages++ {
			found := s.leases(t, query)
			ids = append(ids, found.ids()...)
			if found.Next == nil {
				require.Equal(t, 2, pages)
				break
			}
			require.Len(t, found.Leases, 50)
			require.Equal(t, found.Leases[49].LockID, *found.Next)
			query = "after=" + url.QueryEscape(*found.Next)
		}
		require.Len(t, ids, 120)
		require.True(t, slices.IsSorted(ids))

		first := s.get("?prefix=many&state=all").Body.String()
		require.Contains(t, text(first), "50, more follow")
		require.Contains(t, s.page(t, ""), "50 of 120")
		second := s.get(linkTo(t, first, "./?after=")).Body.String()
		require.Contains(t, text(second), "many-00050 ")
		require.NotContains(t, text(second), "many-00049 ")
		require.NotContains(t, text(second), "many-00100 ")
		third := s.get(linkTo(t, second, "./?after=")).Body.String()
		require.Contains(t, text(third), "the last 20")
		require.Contains(t, links(third), "./?prefix=many&state=all", "the first page")

		require.Len(t, s.leases(t, "after=many-00069").Leases, 50)
		require.Nil(t, s.leases(t, "after=many-00069").Next, "a page that is full, and the last")
		require.NotContains(t, s.get("?after=many-00069").Body.String(), `rel="next"`)

		oldest := s.get("?order=oldest").Body.String()
		require.Contains(t, text(oldest), "The first 50.")
		require.NotContains(t, oldest, "after=")
		require.Nil(t, s.leases(t, "order=oldest").Next)
	})
}

func TestAListThatDoesNotExist(t *testing.T) {
	each(t, dashboard.Options{}, func(t *testing.T, s *site) {
		for _, query := range []string{"state=open", "order=name", "order=oldest&after=x", "prefix=%00", "prefix=%ff",
			"after=x&after_slot=x", "after=x&after_slot=-1", "once=1&state=open", "prefix=a%1f"} {
			w := s.get("?" + query)
			require.Equal(t, http.StatusBadRequest, w.Code, query)
			require.Contains(t, text(w.Body.String()), "There is no such list.")
			w = s.get("api/leases?" + query)
			require.Equal(t, http.StatusBadRequest, w.Code, query)
			require.Contains(t, w.Body.String(), `{"error":"There is no such list.`)
		}
	})
}

func TestProgramsGetJSON(t *testing.T) {
	each(t, dashboard.Options{}, func(t *testing.T, s *site) {
		lease := testdb.Acquire(t, s.db, "job", dbmutex.WithHolder("worker-1"), dbmutex.WithTTL(time.Hour))
		testdb.Acquire(t, s.db, "leader", dbmutex.WithHolder("worker-2"), dbmutex.WithoutTTL())
		row := testdb.Row(t, s.db, "job")

		var got map[string]any
		get := func(path string, status int) map[string]any {
			w := s.get(path)
			require.Equal(t, status, w.Code, w.Body)
			require.Equal(t, "application/json", w.Header().Get("Content-Type"))
			got = nil
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &got))
			return got
		}
		requireNow := func() {
			now, err := time.Parse(time.RFC3339, got["now"].(string))
			require.NoError(t, err)
			require.True(t, strings.HasSuffix(got["now"].(string), "Z"), got["now"])
			require.WithinDuration(t, time.Now(), now, time.Minute)
		}
		requireJob := func(job any) {
			fields := job.(map[string]any)
			held, left := fields["held_seconds"].(float64), fields["left_seconds"].(float64)
			require.InDelta(t, 300, held, 300)
			require.InDelta(t, 3300, left, 300)
			require.Zero(t, held-float64(int(held)), "a whole number")
			require.Equal(t, map[string]any{"lock_id": "job", "holder": "worker-1", "lease_id": row.LeaseID,
				"creation_time": row.CreationTime.UTC().Format(time.RFC3339Nano),
				"expires_at":    row.ExpiresAt.UTC().Format(time.RFC3339Nano),
				"state":         "held", "held_seconds": held, "left_seconds": left}, fields)
		}

		all := get("api/leases", http.StatusOK)
		requireNow()
		require.Len(t, all, 3)
		require.Nil(t, all["next"])
		require.Len(t, all["leases"], 2)
		requireJob(all["leases"].([]any)[0])
		leader := all["leases"].([]any)[1].(map[string]any)
		require.Nil(t, leader["expires_at"])
		require.Nil(t, leader["left_seconds"])
		require.Contains(t, leader, "left_seconds")

		one := get("api/lease?id=job", http.StatusOK)
		requireNow()
		require.Len(t, one["leases"], 1)
		requireJob(one["leases"].([]any)[0])

		stats := get("api/stats", http.StatusOK)
		requireNow()
		requireJob(stats["oldest"])
		require.EqualValues(t, 2, stats["held"])
		require.EqualValues(t, 0, stats["expired"])
		require.EqualValues(t, 1, stats["without_expiry"])

		testdb.Expire(t, s.db, "job")
		ranOut := get("api/leases?state=expired", http.StatusOK)["leases"].([]any)[0].(map[string]any)
		require.Equal(t, "expired", ranOut["state"])
		require.LessOrEqual(t, ranOut["left_seconds"], 0.)
		require.NoError(t, lease.Release()) // nobody has taken it

		for path, status := range map[string]int{"api/leases?prefix=x": http.StatusOK, "api/lease?id=x": http.StatusNotFound,
			"api/lease": http.StatusNotFound} {
			require.Equal(t, []any{}, get(path, status)["leases"], path)
			requireNow()
		}
	})
}

func TestAMutexHasAPage(t *testing.T) {
	each(t, allow, func(t *testing.T, s *site) {
		w := s.get("mutex?id=a/b+c")
		require.Equal(t, http.StatusNotFound, w.Code)
		require.Contains(t, text(w.Body.String()), "Nobody holds it")
		for _, id := range []string{"", "%00", strings.Repeat("x", 257)} { // which no mutex has
			require.Equal(t, http.StatusNotFound, s.get("mutex?id="+id).Code)
		}

		lease := testdb.Acquire(t, s.db, "a/b c", dbmutex.WithHolder("worker-1"), dbmutex.WithTTL(time.Hour))
		row := testdb.Row(t, s.db, "a/b c")
		w = s.get(linkTo(t, strings.SplitN(s.get("").Body.String(), "<tbody", 2)[1], "mutex?"))
		require.Equal(t, http.StatusOK, w.Code)
		page := text(w.Body.String())
		const second = "2006-01-02 15:04:05 UTC"
		require.Regexp(t, `Holder worker-1 Acquired `+row.CreationTime.UTC().Format(second)+` · \d+ \w.* ago `, page)
		require.Regexp(t, `Ends `+row.ExpiresAt.UTC().Format(second)+` · in \d+ min unless it is renewed `, page)
		require.Contains(t, page, "Lease id "+row.LeaseID)
		require.Contains(t, page, "dbmutex show 'a/b c'")
		require.Contains(t, page, "dbmutex release --lease "+row.LeaseID+" 'a/b c'")

		testdb.Expire(t, s.db, "a/b c")
		require.Contains(t, s.page(t, "mutex?id=a/b+c"), "ran out, not taken over")
		require.NoError(t, lease.Release())
		testdb.Acquire(t, s.db, "a/b c", dbmutex.WithoutTTL())
		require.Contains(t, s.page(t, "mutex?id=a/b+c"), "never · only a release frees it")
	})
}

func TestALeaseThatMinHoldKeepsIsToldApart(t *testing.T) {
	each(t, allow, func(t *testing.T, s *site) {
		require.NoError(t, testdb.Acquire(t, s.db, "job", dbmutex.WithMinHold(time.Minute)).Release())
		require.Contains(t, s.page(t, ""), "(done, kept by MinHold)")
		page := s.get("mutex?id=job").Body.String()
		require.Contains(t, text(page), "it is done, and MinHold keeps the mutex")
		require.Contains(t, s.page(t, linkTo(t, page, "release?")), "Its work is done. MinHold keeps the mutex for another ")
	})
}
