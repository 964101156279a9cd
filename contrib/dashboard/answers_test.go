package dashboard_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/dashboard"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// paced runs a test on every database, with a dashboard whose answers are fresh for so long.
func paced(t *testing.T, answer, stats time.Duration, test func(t *testing.T, s *site)) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		test(t, open(t, d.Mutexes(t, dbmutex.DefaultSettings()), allow, answer, stats))
	})
}

func TestTwoHundredViewersCostWhatOneCosts(t *testing.T) {
	paced(t, time.Hour, time.Hour, func(t *testing.T, s *site) {
		testdb.Many(t, s.db, 55)
		n := s.asked(t, ignore)
		for _, page := range []struct {
			path    string
			viewers int
			costs   int32 // more than those before it
		}{
			{"", 200, 2}, {"?state=held&order=id", 5, 0}, {"api/leases", 5, 0}, {"?after=many-00049", 5, 1}, {"api/stats", 5, 0},
			{"?prefix=x", 5, 1}, {"mutex?id=many-00001", 5, 2}, {"api/lease?id=many-00001", 5, 0},
			{"release?id=many-00001&lease=lease-00001", 5, 0},
		} {
			n.Store(0)
			var viewers sync.WaitGroup
			for range page.viewers {
				viewers.Go(func() {
					if w := s.get(page.path); w.Code != http.StatusOK {
						t.Error(page.path, w.Code, w.Body)
					}
				})
			}
			viewers.Wait()
			require.Equal(t, page.costs, n.Load(), page.path)
		}
	})
}

func TestAnAnswerIsFreshForAWhile(t *testing.T) {
	paced(t, time.Nanosecond, time.Hour, func(t *testing.T, s *site) {
		n := s.asked(t, ignore)
		require.Contains(t, s.page(t, ""), "Nothing is held")
		require.EqualValues(t, 2, n.Load())
		testdb.Acquire(t, s.db, "job")
		n.Store(0)
		list := s.page(t, "")
		require.Contains(t, list, "job", "the list is asked for again")
		require.Contains(t, list, "Held now 0 ", "the figures are not")
		require.EqualValues(t, 1, n.Load())
	})
}

func TestTheTimesOfAPageGoOn(t *testing.T) {
	paced(t, time.Hour, time.Hour, func(t *testing.T, s *site) {
		testdb.Acquire(t, s.db, "job", dbmutex.WithTTL(time.Hour))
		seconds := func(path, name string) (all []float64) {
			for _, found := range regexp.MustCompile(name+`="([\d.]+)"`).FindAllStringSubmatch(s.get(path).Body.String(), -1) {
				n, err := strconv.ParseFloat(found[1], 64)
				require.NoError(t, err)
				all = append(all, n)
			}
			return all
		}
		for path, times := range map[string]int{"": 2, "mutex?id=job": 1} { // the oldest lease is also a figure
			since, left := seconds(path, "data-since"), seconds(path, "data-left")
			require.Len(t, since, times)
			time.Sleep(300 * time.Millisecond) // though the answer is the same
			for i, later := range seconds(path, "data-since") {
				require.Greater(t, later, since[i])
			}
			require.Less(t, seconds(path, "data-left")[0], left[0])
		}
	})
}

func TestNewAsksForAPageOnceASecondAtTheMost(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		s := &site{db: d.Mutexes(t, dbmutex.DefaultSettings())}
		h, err := dashboard.New(s.db, dashboard.Options{})
		require.NoError(t, err)
		s.mount(h)
		n := s.asked(t, ignore)
		began := time.Now()
		for range 100 {
			s.get("")
		}
		took := time.Since(began)
		most := 2 + int32(took/time.Second) + int32(took/(10*time.Second))
		require.LessOrEqual(t, n.Load(), most, "%v", took)
		require.Eventually(t, func() bool { s.get("api/leases"); return n.Load() >= 3 }, time.Minute, 50*time.Millisecond)
	})
}

func TestAViewerWhoGoesAwayTakesNobodysAnswer(t *testing.T) {
	paced(t, time.Hour, time.Hour, func(t *testing.T, s *site) {
		testdb.Acquire(t, s.db, "job")
		asks, goOn := make(chan bool, 9), make(chan bool)
		n := s.asked(t, func(string) {
			asks <- true
			<-goOn
		})
		ctx, leave := context.WithCancel(context.Background())
		var viewers sync.WaitGroup
		viewers.Go(func() {
			s.do(httptest.NewRequest(http.MethodGet, mount+"/api/leases", nil).WithContext(ctx))
		})
		<-asks
		leave()
		viewers.Wait() // though the database has not answered
		viewers.Go(func() {
			if w := s.get("api/leases"); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"job"`) {
				t.Error(w.Code, w.Body)
			}
		})
		close(goOn)
		viewers.Wait()
		require.EqualValues(t, 1, n.Load())
	})
}

func TestFourStatementsAtATime(t *testing.T) {
	paced(t, time.Hour, time.Hour, func(t *testing.T, s *site) {
		_, err := s.db.LeaseStats() // the table has been looked at
		require.NoError(t, err)
		var mu sync.Mutex
		running, most := 0, 0
		s.asked(t, func(string) {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(5 * time.Millisecond)
			mu.Lock()
			running--
			mu.Unlock()
		})
		var viewers sync.WaitGroup
		for i := range 40 {
			viewers.Go(func() {
				if w := s.get(fmt.Sprintf("api/leases?prefix=%d", i)); w.Code != http.StatusOK {
					t.Error(w.Code, w.Body)
				}
			})
		}
		viewers.Wait()
		require.LessOrEqual(t, most, 4)
	})
}

func TestADatabaseThatIsAwayIsToldOf(t *testing.T) {
	paced(t, 0, 0, func(t *testing.T, s *site) {
		testdb.Acquire(t, s.db, "job", dbmutex.WithHolder("worker-1"))
		leaseID := testdb.Row(t, s.db, "job").LeaseID
		s.page(t, "")
		s.page(t, "mutex?id=job")
		broken := true
		require.NoError(t, s.db.Callback().Row().Before("gorm:row").Register("fail", func(tx *gorm.DB) {
			if broken {
				_ = tx.AddError(errors.New("the network \u202e broke"))
			}
		}))

		for path, seen := range map[string]string{"": "job worker-1", "mutex?id=job": "Holder worker-1"} {
			w := s.get(path)
			require.Equal(t, http.StatusServiceUnavailable, w.Code)
			page := text(w.Body.String())
			require.Contains(t, page, "The database does not answer.")
			require.Contains(t, page, `the network \u202e broke`)
			require.Regexp(t, `What you see below is from \d\d:\d\d:\d\d\.`, page)
			require.Contains(t, page, seen)
		}
		for _, path := range []string{"?state=all", "mutex?id=other"} { // nothing is known of them
			w := s.get(path)
			require.Equal(t, http.StatusServiceUnavailable, w.Code)
			require.Contains(t, text(w.Body.String()), "Nothing is known")
			require.NotContains(t, text(w.Body.String()), "What you see below")
		}
		for _, path := range []string{"api/leases", "api/lease?id=job", "api/stats"} {
			w := s.get(path)
			require.Equal(t, http.StatusServiceUnavailable, w.Code)
			require.Contains(t, w.Body.String(), `{"error":"The database does not answer. `)
		}
		for _, w := range []*httptest.ResponseRecorder{
			s.get("release?id=job&lease=" + leaseID), s.post("release", sure("job", leaseID)),
			s.postJSON(map[string]string{"lock_id": "job", "lease_id": leaseID}),
		} {
			require.Equal(t, http.StatusServiceUnavailable, w.Code)
		}

		broken = false
		require.Contains(t, s.page(t, ""), "job worker-1")
	})
}

func TestTheListIsThereWithoutTheFigures(t *testing.T) {
	paced(t, 0, 0, func(t *testing.T, s *site) {
		testdb.Acquire(t, s.db, "job", dbmutex.WithHolder("worker-1"))
		require.NoError(t, s.db.Callback().Row().Before("gorm:row").Register("fail", func(tx *gorm.DB) {
			if strings.Contains(tx.Statement.SQL.String(), "sum(") {
				_ = tx.AddError(context.DeadlineExceeded)
			}
		}))
		page := s.page(t, "")
		require.Contains(t, page, "Held now – ")
		require.Contains(t, page, "could not be counted")
		require.Contains(t, page, "job worker-1")
		require.Equal(t, http.StatusOK, s.get("api/leases?prefix=x").Code)
		require.Equal(t, http.StatusServiceUnavailable, s.get("api/stats").Code)
	})
}

func TestAPanicOfACallbackIsAnError(t *testing.T) {
	paced(t, 0, 0, func(t *testing.T, s *site) {
		require.NoError(t, s.db.Callback().Row().Before("gorm:row").Register("panic", func(*gorm.DB) { panic("a plugin") }))
		w := s.get("")
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.Contains(t, text(w.Body.String()), "panic: a plugin")
	})
}

func TestADatabaseThatDoesNotAnswerKeepsNobodyWaiting(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		network := proxy.New(t, d)
		s := &site{db: network.Database.Mutexes(t, dbmutex.DefaultSettings())}
		h, err := dashboard.NewAt(s.db, allow, 0, 0, 500*time.Millisecond, 4)
		require.NoError(t, err)
		s.mount(h)
		testdb.Acquire(t, s.db, "job")
		answers := func() bool { return s.get("").Code == http.StatusOK }
		require.Eventually(t, answers, time.Minute, time.Millisecond)
		network.Freeze()
		w := s.get("")
		require.Equal(t, http.StatusServiceUnavailable, w.Code)
		require.Contains(t, text(w.Body.String()), "The database does not answer. It had 500ms. What you see below is from ")
		network.Thaw()
		require.Eventually(t, answers, time.Minute, time.Millisecond)
	})
}
