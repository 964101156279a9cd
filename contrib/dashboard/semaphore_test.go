package dashboard_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/dashboard"
	"github.com/gorm-dbmutex/dbmutex/internal/leaseview"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// permits takes the first n slots of "job", by the holders "permit 1", "permit 2", ...
func permits(t *testing.T, db *dbmutex.DB, n int) []dbmutex.LeaseInfo {
	t.Helper()
	for i := range n {
		_, err := db.Semaphore("job", i+1, dbmutex.WithHolder(fmt.Sprint("permit ", i+1))).Acquire()
		require.NoError(t, err)
	}
	holders, err := db.Semaphore("job", n).Holders()
	require.NoError(t, err)
	require.Len(t, holders, n)
	return holders
}

func TestASemaphoreIsListedAsOneMutexWithItsHolders(t *testing.T) {
	each(t, allow, func(t *testing.T, s *site) {
		testdb.Acquire(t, s.db, "job", dbmutex.WithHolder("of the mutex"))
		testdb.Acquire(t, s.db, "job 2")
		permits(t, s.db, 3)
		testdb.Expire(t, s.db, "job\x1f2")
		for _, order := range []string{"id", "oldest", "ending"} {
			page := s.get("?state=all&order=" + order).Body.String()
			require.Regexp(t, `(^| )job 2 holders, 1 ran out job, slot 1 permit 1 \d.* job, slot 2 permit 2 .* ran out .*`+
				`job, slot 3 permit 3 `, text(page), order)
			rows := page[strings.Index(page, "<tbody"):]
			require.Equal(t, 3, strings.Count(rows, `href="mutex?id=job`), "job, its slots, and job 2")
			require.Contains(t, page, `aria-label="Release slot 3 of job"`)
			require.NotContains(t, page, `aria-label="Release slot 2 of job"`, "it has ended")
		}
		require.Contains(t, s.page(t, ""), "job 2 holders job, slot 1 permit 1 ")
		require.Contains(t, s.page(t, "?state=expired"), "job 1 ran out job, slot 2 permit 2 ")
		require.NotContains(t, s.page(t, ""), "\x1f")
		require.Contains(t, s.page(t, ""), "4 of 4")
	})
}

func TestASemaphoreMayBeLongerThanAPage(t *testing.T) {
	each(t, dashboard.Options{}, func(t *testing.T, s *site) {
		permits(t, s.db, 55)
		testdb.Acquire(t, s.db, "job 2")
		first := s.get("").Body.String()
		require.Contains(t, text(first), "job 50 holders on this page job, slot 1 ")
		next := linkTo(t, first, "./?after=")
		require.Contains(t, next, "after_slot=")
		second := s.get(next).Body.String()
		require.Contains(t, text(second), "job 5 holders on this page job, slot ")
		require.Contains(t, text(second), "job 2 ")
		slots := map[string]bool{}
		for _, slot := range regexp.MustCompile(`slot (\d+)</td>`).FindAllStringSubmatch(first+second, -1) {
			slots[slot[1]] = true
		}
		require.Len(t, slots, 55)

		var page leaseview.Page
		require.NoError(t, json.Unmarshal(s.get("api/leases").Body.Bytes(), &page))
		require.Len(t, page.Leases, 50)
		require.Equal(t, "job", *page.Next)
		require.Equal(t, page.Leases[49].Slot, page.NextSlot)
		w := s.get(fmt.Sprintf("api/leases?after=job&after_slot=%d", page.NextSlot))
		page = leaseview.Page{}
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &page))
		require.Len(t, page.Leases, 6)
		require.Nil(t, page.Next)
		require.Zero(t, page.NextSlot)
	})
}

func TestASemaphoreHasAPage(t *testing.T) {
	each(t, allow, func(t *testing.T, s *site) {
		holders := permits(t, s.db, 2)
		page := s.page(t, "mutex?id=job")
		require.Contains(t, page, "The semaphore of this id: 2 holders")
		for i, holder := range holders {
			require.Regexp(t, fmt.Sprintf(`slot %d %s permit %d \d+ `, i+1, holder.LeaseID, i+1), page)
			require.Contains(t, page, "dbmutex release --lease "+holder.LeaseID+" job")
		}
		require.NotContains(t, page, "Acquired", "there is no mutex")
		testdb.Acquire(t, s.db, "job", dbmutex.WithHolder("of the mutex"))
		page = s.page(t, "mutex?id=job")
		require.Contains(t, page, "Holder of the mutex Acquired ")
		require.Contains(t, page, "The semaphore of this id: 2 holders")

		var got leaseview.Page
		require.NoError(t, json.Unmarshal(s.get("api/lease?id=job").Body.Bytes(), &got))
		require.Len(t, got.Leases, 3)
		require.Equal(t, []int{0, 1, 2}, []int{got.Leases[0].Slot, got.Leases[1].Slot, got.Leases[2].Slot})
		require.Equal(t, 2, strings.Count(s.get("api/leases").Body.String(), `"slot":`))

		long := strings.Repeat("x", 256) // no semaphore has such an id
		testdb.Acquire(t, s.db, long)
		require.Contains(t, s.page(t, "mutex?id="+long), "Acquired")
	})
}

func TestExactlyOneSlotIsReleased(t *testing.T) {
	each(t, allow, func(t *testing.T, s *site) {
		holders := permits(t, s.db, 3)
		left := func() (slots []int) {
			found, err := s.db.Semaphore("job", 1).Holders()
			require.NoError(t, err)
			for _, holder := range found {
				slots = append(slots, holder.Slot)
			}
			return slots
		}
		second := "release?" + url.Values{"id": {"job"}, "lease": {holders[1].LeaseID}}.Encode()
		ask := s.get(second).Body.String()
		require.Contains(t, text(ask), "Release slot 2 of job?")
		require.Contains(t, text(ask), "Held by permit 2 for ")
		require.Equal(t, []int{1, 2, 3}, left())
		require.Equal(t, http.StatusSeeOther, s.post(linkTo(t, ask, "release?"), url.Values{"confirm": {"job"}}).Code)
		require.Equal(t, []int{1, 3}, left())
		require.Contains(t, s.log.String(), "lease_id="+holders[1].LeaseID)
		require.Equal(t, http.StatusConflict, s.get(second).Code)
		require.Equal(t, http.StatusConflict, s.post("release", sure("job", holders[1].LeaseID)).Code)
		require.JSONEq(t, `{"released":false}`,
			s.postJSON(map[string]string{"lock_id": "job", "lease_id": holders[1].LeaseID}).Body.String())
		require.JSONEq(t, `{"released":true}`,
			s.postJSON(map[string]string{"lock_id": "job", "lease_id": holders[2].LeaseID}).Body.String())
		require.Equal(t, []int{1}, left())
	})
}

func TestWhatIsDoneOnceIsListed(t *testing.T) {
	each(t, allow, func(t *testing.T, s *site) {
		require.Contains(t, s.page(t, "?once=1"), "Nothing is done, and nothing runs")
		require.NoError(t, s.db.Once("job@1", time.Hour, dbmutex.WithHolder("worker-1")).Do(testdb.Nothing))
		goOn := make(chan bool)
		defer close(goOn)
		begun := make(chan bool)
		go func() {
			_ = s.db.Once("job@2", time.Hour, dbmutex.WithHolder("worker-2"), dbmutex.WithTTL(time.Hour)).Do(
				func(context.Context) error { close(begun); <-goOn; return nil })
		}()
		<-begun
		testdb.Acquire(t, s.db, "a mutex")

		w := s.get("?once=1")
		require.Equal(t, http.StatusOK, w.Code)
		page := text(w.Body.String())
		require.Regexp(t, `job@1 worker-1 \d+ \w.* ago done kept for (59 min|1 h) `+
			`job@2 worker-2 \d+ \w.* ago running ends in `, page)
		require.NotContains(t, page, "a mutex")
		require.NotContains(t, w.Body.String(), `href="release`, "read only")
		require.Contains(t, w.Body.String(), `<a href="./?once=1" aria-current="page">Once</a>`)
		require.Equal(t, 1, strings.Count(w.Body.String(), "aria-current="))
		require.Contains(t, s.get("").Body.String(), `<a href="./?once=1">Once</a>`)
		require.NotContains(t, s.page(t, ""), "job@1")
		require.Contains(t, s.page(t, "?once=1&prefix=job@2"), "1 of 1")
		require.Contains(t, s.page(t, "?once=1&prefix=x"), "Nothing begins with “x”")

		var got leaseview.Page
		require.NoError(t, json.Unmarshal(s.get("api/leases?once=1").Body.Bytes(), &got))
		require.Len(t, got.Leases, 2)
		require.Equal(t, []string{"done", "held"}, []string{got.Leases[0].State, got.Leases[1].State})
		require.Equal(t, "worker-1", got.Leases[0].Holder)
	})
}

func TestPagesOfOnceFollowEachOther(t *testing.T) {
	each(t, dashboard.Options{}, func(t *testing.T, s *site) {
		for i := range 60 {
			require.NoError(t, s.db.Once(fmt.Sprintf("job@%02d", i), time.Hour).Do(testdb.Nothing))
		}
		first := s.get("?once=1").Body.String()
		require.Contains(t, text(first), "50, more follow")
		second := s.get(linkTo(t, first, "./?after=")).Body.String()
		require.Contains(t, text(second), "job@59 ")
		require.NotContains(t, text(second), "job@49 ")
		require.Contains(t, text(second), "the last 10")
		require.Contains(t, s.page(t, "?once=1&order=oldest"), "The first 50.")
	})
}

func TestWithoutTheTableOfOnceThePageSaysSo(t *testing.T) {
	each(t, dashboard.Options{}, func(t *testing.T, s *site) {
		require.NoError(t, s.db.Migrator().DropTable(&dbmutex.DBOnce{}))
		require.Contains(t, s.page(t, "?once=1"), "There is no table of Once")
		require.Equal(t, http.StatusNotFound, s.get("api/leases?once=1").Code)
		require.Contains(t, s.page(t, ""), "Nothing is held")
	})
}
