package prommutex_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	prommutex "github.com/gorm-dbmutex/dbmutex/contrib/prometheus"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// scraped is what Prometheus reads of a registry.
func scraped(t *testing.T, r *prometheus.Registry) string {
	t.Helper()
	scrape := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(scrape, httptest.NewRequest("GET", "/metrics", nil))
	require.Equal(t, 200, scrape.Code, scrape.Body)
	return scrape.Body.String()
}

// values are the lines of a scrape, without "dbmutex_" and the labels' names, and without the times of histograms.
func values(t *testing.T, r *prometheus.Registry) (lines []string) {
	t.Helper()
	noise := regexp.MustCompile(`\w+="|"|^dbmutex_`)
	for line := range strings.Lines(scraped(t, r)) {
		name, _, _ := strings.Cut(line, "{")
		if !strings.HasPrefix(line, "#") && !strings.HasSuffix(name, "_bucket") && !strings.HasSuffix(name, "_sum") {
			lines = append(lines, noise.ReplaceAllString(strings.TrimSpace(line), ""))
		}
	}
	return lines
}

func newObserver(t *testing.T, r prometheus.Registerer, o prommutex.ObserverOptions) dbmutex.Observer {
	t.Helper()
	observer, err := prommutex.NewObserver(r, o)
	require.NoError(t, err)
	return observer
}

// tell tells an observer of an event of the mutex "job", unless it names another.
func tell(o dbmutex.Observer, e dbmutex.Event) {
	if e.LockID == "" {
		e.LockID = "job"
	}
	_ = o.Observe(context.Background(), e)
}

// tellEveryKind tells of one event of each kind.
func tellEveryKind(o dbmutex.Observer) {
	for kind := dbmutex.AcquireBegan; kind <= dbmutex.ForceReleased; kind++ {
		tell(o, dbmutex.Event{Kind: kind, Outcome: dbmutex.OutcomeReleased, Previous: &dbmutex.HeldError{}})
	}
}

func TestMetricsFollowPrometheusConventions(t *testing.T) {
	r := prometheus.NewRegistry()
	tellEveryKind(newObserver(t, r, prommutex.ObserverOptions{}))
	require.Equal(t, 7, strings.Count(scraped(t, r), "# HELP"))
	problems, err := testutil.GatherAndLint(r)
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestWhatHappensToMutexesIsCounted(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		r := prometheus.NewRegistry()
		settings := dbmutex.DefaultSettings()
		settings.Observer = newObserver(t, r, prommutex.ObserverOptions{})
		others := d.Mutexes(t, dbmutex.DefaultSettings())
		db := d.Registered(t, settings).WithContext(testdb.Limited(t))

		held := testdb.Acquire(t, others, "job")
		require.ErrorIs(t, db.Mutex("job").Do(testdb.Nothing), dbmutex.ErrNotAcquired)
		testdb.Expire(t, others, "job")
		require.NoError(t, db.Mutex("job").Do(func(ctx context.Context) error { // a take-over
			lease, _ := dbmutex.LeaseFrom(ctx)
			return lease.Renew()
		}))
		require.ErrorIs(t, held.Release(), dbmutex.ErrTimeout)
		require.Panics(t, func() { _ = db.Mutex("job").Do(func(context.Context) error { panic("the work's own") }) })
		testdb.Acquire(t, others, "job")
		require.NoError(t, db.Mutex("job").ForceRelease())
		lease := testdb.Acquire(t, db, "job")
		require.Contains(t, values(t, r), `lease_active{job} 1`)
		require.NoError(t, others.Mutex("job").ForceRelease())
		testdb.RequireTimeout(t, lease.Release(), "job", true)

		require.Equal(t, []string{
			"acquire_duration_seconds_count{job,acquired} 3",
			"acquire_duration_seconds_count{job,held} 1",
			"acquire_pending{job} 0",
			"lease_active{job} 0",
			"lease_duration_seconds_count{job,lost} 1",
			"lease_duration_seconds_count{job,released} 2",
			"lease_forced_total{job} 1",
			"lease_renewals_total{job,ok} 1",
			"lease_takeovers_total{job} 1",
		}, values(t, r))
	})
}

func TestNamesAreLimited(t *testing.T) {
	forced := func(o prommutex.ObserverOptions, ids ...string) []string {
		r := prometheus.NewRegistry()
		observer := newObserver(t, r, o)
		for _, id := range ids {
			tell(observer, dbmutex.Event{Kind: dbmutex.ForceReleased, LockID: id})
		}
		return values(t, r)
	}
	require.Equal(t, []string{"lease_forced_total{_other} 3", "lease_forced_total{a} 2", "lease_forced_total{b} 2"},
		forced(prommutex.ObserverOptions{NameLimit: 2}, "a", "b", "c", "a", "d", "b", "c"))

	prefix := func(id string) string {
		name, _, _ := strings.Cut(id, "/")
		return name
	}
	require.Equal(t, []string{"lease_forced_total{} 1", "lease_forced_total{_other} 1", "lease_forced_total{export} 2"},
		forced(prommutex.ObserverOptions{Names: prefix, NameLimit: 1}, "export/1", "export/2", "/1", "import/1"))

	var ids []string
	for i := range 102 {
		ids = append(ids, fmt.Sprint("job ", i))
	}
	all := forced(prommutex.ObserverOptions{}, ids...)
	require.Len(t, all, 101)
	require.Contains(t, all, "lease_forced_total{_other} 2")
}

func TestRunsOfAOnceAndSlotsAreCountedUnderOneName(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		r := prometheus.NewRegistry()
		settings := dbmutex.DefaultSettings()
		settings.Observer = newObserver(t, r, prommutex.ObserverOptions{})
		db := d.Mutexes(t, settings).WithContext(testdb.Limited(t))
		for _, id := range []string{"job@2026-11-27T00:00:00Z", "job@2026-11-27T00:00:00Z", "job@2026-11-28T00:00:00.5Z", "a@b"} {
			require.NoError(t, db.Once(id, time.Hour).Do(testdb.Nothing))
		}
		for range 2 {
			_, err := db.Semaphore("slots", 2).Acquire()
			require.NoError(t, err)
		}
		tell(settings.Observer, dbmutex.Event{Kind: dbmutex.ForceReleased, LockID: "m@2026-11-27T00:00:00Z"}) // of no Once
		require.Equal(t, []string{
			"acquire_duration_seconds_count{a@b,acquired} 1",
			"acquire_duration_seconds_count{job,acquired} 2",
			"acquire_duration_seconds_count{job,done} 1",
			"acquire_duration_seconds_count{slots,acquired} 2",
			"acquire_pending{a@b} 0", "acquire_pending{job} 0", "acquire_pending{slots} 0",
			"lease_active{a@b} 0", "lease_active{job} 0", "lease_active{slots} 2",
			"lease_duration_seconds_count{a@b,recorded} 1",
			"lease_duration_seconds_count{job,recorded} 2",
			"lease_forced_total{m@2026-11-27T00:00:00Z} 1",
		}, values(t, r))
	})
}

func TestARegistryTakesOneObserver(t *testing.T) {
	r := prometheus.NewRegistry()
	first := newObserver(t, r, prommutex.ObserverOptions{})
	second, err := prommutex.NewObserver(r, prommutex.ObserverOptions{NameLimit: 1})
	require.Nil(t, second)
	var already prometheus.AlreadyRegisteredError
	require.True(t, errors.As(err, &already))
	require.Same(t, first, already.ExistingCollector.(dbmutex.Observer))

	require.True(t, r.Unregister(first.(prometheus.Collector)))
	newObserver(t, r, prommutex.ObserverOptions{})

	r = prometheus.NewRegistry()
	for _, database := range []string{"a", "b"} {
		labelled := prometheus.WrapRegistererWith(prometheus.Labels{"database": database}, r)
		tell(newObserver(t, labelled, prommutex.ObserverOptions{}), dbmutex.Event{Kind: dbmutex.ForceReleased})
	}
	require.Equal(t, []string{"lease_forced_total{a,job} 1", "lease_forced_total{b,job} 1"}, values(t, r))
}

func TestWhatNewObserverRefuses(t *testing.T) {
	observer, err := prommutex.NewObserver(nil, prommutex.ObserverOptions{})
	require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
	require.Nil(t, observer)
	r := prometheus.NewRegistry()
	observer, err = prommutex.NewObserver(r, prommutex.ObserverOptions{NameLimit: -1})
	require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
	require.Nil(t, observer)
	newObserver(t, r, prommutex.ObserverOptions{}) // nothing was registered
}

func TestManyGoroutinesAtOnce(t *testing.T) {
	r := prometheus.NewRegistry()
	observer := newObserver(t, r, prommutex.ObserverOptions{NameLimit: 5})
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			for range 100 {
				tell(observer, dbmutex.Event{Kind: dbmutex.LeaseBegan, LockID: fmt.Sprint(i)})
				tell(observer, dbmutex.Event{Kind: dbmutex.LeaseEnded, LockID: fmt.Sprint(i), Outcome: dbmutex.OutcomeReleased})
			}
		})
		all.Go(func() { _, _ = r.Gather() })
	}
	all.Wait()
	require.Len(t, values(t, r), 12, "5 names and _other")
	require.Contains(t, values(t, r), "lease_duration_seconds_count{_other,released} 500")
	require.Contains(t, values(t, r), "lease_active{_other} 0")
}
