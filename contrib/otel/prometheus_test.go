package otelmutex_test

import (
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"
	exporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"

	"github.com/gorm-dbmutex/dbmutex"
	otelmutex "github.com/gorm-dbmutex/dbmutex/contrib/otel"
	prommutex "github.com/gorm-dbmutex/dbmutex/contrib/prometheus"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// export makes an observer and the registry of OpenTelemetry's exporter for it.
func export(t *testing.T) (*prometheus.Registry, dbmutex.Observer) {
	t.Helper()
	registry := prometheus.NewRegistry()
	reader, err := exporter.New(exporter.WithRegisterer(registry), exporter.WithoutScopeInfo(), exporter.WithoutTargetInfo())
	require.NoError(t, err)
	observer, err := otelmutex.New(otelmutex.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(reader))))
	require.NoError(t, err)
	return registry, observer
}

// scraped is what Prometheus reads of a registry.
func scraped(r *prometheus.Registry) string {
	scrape := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(scrape, httptest.NewRequest("GET", "/metrics", nil))
	return scrape.Body.String()
}

// times are the lines that differ from run to run.
var times = regexp.MustCompile(`(?m)^\w+_(bucket|sum)\{.*\n`)

func TestTheTextThatPrometheusReads(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		registry, observer := export(t)
		settings := dbmutex.DefaultSettings()
		settings.Observer = observer
		db := d.Mutexes(t, settings)
		lease := testdb.Acquire(t, db, "report")
		require.ErrorIs(t, db.Mutex("report").Do(testdb.Nothing), dbmutex.ErrNotAcquired)
		require.NoError(t, lease.Renew())
		require.NoError(t, lease.Release())
		testdb.Acquire(t, db, "report")
		testdb.Expire(t, db, "report")
		testdb.Acquire(t, db, "report")
		require.NoError(t, db.Mutex("report").ForceRelease())

		require.Equal(t, `# HELP dbmutex_acquire_duration_seconds How long acquires took, waiting included.
# TYPE dbmutex_acquire_duration_seconds histogram
dbmutex_acquire_duration_seconds_count{dbmutex_mutex_name="report",dbmutex_outcome="acquired"} 3
dbmutex_acquire_duration_seconds_count{dbmutex_mutex_name="report",dbmutex_outcome="held"} 1
# HELP dbmutex_acquire_pending Acquires under way.
# TYPE dbmutex_acquire_pending gauge
dbmutex_acquire_pending{dbmutex_mutex_name="report"} 0
# HELP dbmutex_lease_active Leases that this process holds.
# TYPE dbmutex_lease_active gauge
dbmutex_lease_active{dbmutex_mutex_name="report"} 2
# HELP dbmutex_lease_duration_seconds How long leases were held.
# TYPE dbmutex_lease_duration_seconds histogram
dbmutex_lease_duration_seconds_count{dbmutex_mutex_name="report",dbmutex_outcome="released"} 1
# HELP dbmutex_lease_forced_total Leases that were ended by force.
# TYPE dbmutex_lease_forced_total counter
dbmutex_lease_forced_total{dbmutex_mutex_name="report"} 1
# HELP dbmutex_lease_renewals_total Renewals of leases, also those that failed.
# TYPE dbmutex_lease_renewals_total counter
dbmutex_lease_renewals_total{dbmutex_mutex_name="report",dbmutex_outcome="ok"} 1
# HELP dbmutex_lease_takeovers_total Leases that had run out, and were taken over.
# TYPE dbmutex_lease_takeovers_total counter
dbmutex_lease_takeovers_total{dbmutex_mutex_name="report"} 1
`, times.ReplaceAllString(scraped(registry), ""))
	})
}

// tellAll tells of every kind of event with every outcome that it may have.
func tellAll(o dbmutex.Observer) {
	for outcome := dbmutex.OutcomeAcquired; outcome <= dbmutex.OutcomeFailed; outcome++ {
		tell(o, dbmutex.Event{Kind: dbmutex.AcquireBegan})
		tell(o, dbmutex.Event{Kind: dbmutex.AcquireEnded, Outcome: outcome, Waited: 20 * time.Millisecond})
	}
	tell(o, dbmutex.Event{Kind: dbmutex.AcquireBegan})
	tell(o, dbmutex.Event{Kind: dbmutex.AcquireBegan, LockID: "another job"})
	tell(o, dbmutex.Event{Kind: dbmutex.AcquireEnded, Outcome: dbmutex.OutcomeAcquired, Previous: &dbmutex.HeldError{}})
	for outcome := dbmutex.OutcomeReleased; outcome <= dbmutex.OutcomeUnknown; outcome++ {
		tell(o, dbmutex.Event{Kind: dbmutex.LeaseBegan})
		tell(o, dbmutex.Event{Kind: dbmutex.LeaseRenewed})
		tell(o, dbmutex.Event{Kind: dbmutex.RenewalFailed})
		tell(o, dbmutex.Event{Kind: dbmutex.LeaseRanOut})
		tell(o, dbmutex.Event{Kind: dbmutex.LeaseLost})
		tell(o, dbmutex.Event{Kind: dbmutex.LeaseEnded, Outcome: outcome, Held: 2 * time.Hour})
	}
	tell(o, dbmutex.Event{Kind: dbmutex.LeaseBegan, LockID: "another job"})
	tell(o, dbmutex.Event{Kind: dbmutex.ForceReleased})
}

func TestTheTextIsThatOfContribPrometheus(t *testing.T) {
	exported, observer := export(t)
	tellAll(observer)

	own := prometheus.NewRegistry()
	observer, err := prommutex.NewObserver(own, prommutex.ObserverOptions{})
	require.NoError(t, err)
	tellAll(observer)
	require.Equal(t, scraped(own), scraped(exported))
	require.Equal(t, 7, strings.Count(scraped(own), "# HELP"))
}
