package otelmutex

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/gorm-dbmutex/dbmutex"
)

// buckets are the histograms', in seconds.
var buckets = []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 30, 60, 300, 900, 3600}

// metrics is the observer that counts.
type metrics struct {
	named func(id string) string
	limit int

	acquireDuration, leaseDuration metric.Float64Histogram
	pending, active                metric.Int64UpDownCounter
	renewals, takeovers, forced    metric.Int64Counter

	mu    sync.Mutex // guards what follows
	names map[string]bool
}

func newMetrics(meter metric.Meter, named func(id string) string, limit int) (*metrics, error) {
	m := &metrics{named: named, limit: limit, names: map[string]bool{}}
	errs := make([]error, 7)
	m.acquireDuration, errs[0] = meter.Float64Histogram("dbmutex.acquire.duration", metric.WithUnit("s"),
		metric.WithDescription("How long acquires took, waiting included."), metric.WithExplicitBucketBoundaries(buckets...))
	m.pending, errs[1] = meter.Int64UpDownCounter("dbmutex.acquire.pending", metric.WithUnit("{acquire}"),
		metric.WithDescription("Acquires under way."))
	m.leaseDuration, errs[2] = meter.Float64Histogram("dbmutex.lease.duration", metric.WithUnit("s"),
		metric.WithDescription("How long leases were held."), metric.WithExplicitBucketBoundaries(buckets...))
	m.active, errs[3] = meter.Int64UpDownCounter("dbmutex.lease.active", metric.WithUnit("{lease}"),
		metric.WithDescription("Leases that this process holds."))
	m.renewals, errs[4] = meter.Int64Counter("dbmutex.lease.renewals", metric.WithUnit("{renewal}"),
		metric.WithDescription("Renewals of leases, also those that failed."))
	m.takeovers, errs[5] = meter.Int64Counter("dbmutex.lease.takeovers", metric.WithUnit("{lease}"),
		metric.WithDescription("Leases that had run out, and were taken over."))
	m.forced, errs[6] = meter.Int64Counter("dbmutex.lease.forced", metric.WithUnit("{lease}"),
		metric.WithDescription("Leases that were ended by force."))
	return m, errors.Join(errs...)
}

// Observe counts.
func (m *metrics) Observe(ctx context.Context, e dbmutex.Event) context.Context {
	name := m.name(idOf(e))
	switch e.Kind {
	case dbmutex.AcquireBegan:
		m.pending.Add(ctx, 1, with(name, ""))
	case dbmutex.AcquireEnded:
		m.pending.Add(ctx, -1, with(name, ""))
		m.acquireDuration.Record(ctx, seconds(e.Waited), with(name, e.Outcome.String()))
		if e.Previous != nil {
			m.takeovers.Add(ctx, 1, with(name, ""))
		}
	case dbmutex.LeaseBegan:
		m.active.Add(ctx, 1, with(name, ""))
	case dbmutex.LeaseRenewed:
		m.renewals.Add(ctx, 1, with(name, "ok"))
	case dbmutex.RenewalFailed:
		m.renewals.Add(ctx, 1, with(name, "failed"))
	case dbmutex.LeaseEnded:
		m.active.Add(ctx, -1, with(name, ""))
		m.leaseDuration.Record(ctx, seconds(e.Held), with(name, e.Outcome.String()))
	case dbmutex.ForceReleased:
		m.forced.Add(ctx, 1, with(name, ""))
	}
	return nil
}

// name is that of a mutex in the metrics. An id always has the same one: what is added under it is taken away under it.
func (m *metrics) name(id string) string {
	name := m.named(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case name == "" || m.names[name]:
		return name
	case len(m.names) == m.limit:
		return "_other"
	}
	m.names[name] = true
	return name
}

// with are the attributes of a measurement, without those that are "".
func with(name, outcome string) metric.MeasurementOption {
	var attributes []attribute.KeyValue
	if name != "" {
		attributes = append(attributes, attribute.String("dbmutex.mutex.name", name))
	}
	if outcome != "" {
		attributes = append(attributes, attribute.String("dbmutex.outcome", outcome))
	}
	return metric.WithAttributeSet(attribute.NewSet(attributes...))
}

// idOf is the mutex's id, or that of a Once without the time of dbmutex.Tick: else every tick would have a name.
func idOf(e dbmutex.Event) string {
	at := strings.LastIndex(e.LockID, "@")
	if !e.Once || at < 0 {
		return e.LockID
	}
	if _, err := time.Parse(time.RFC3339Nano, e.LockID[at+1:]); err != nil {
		return e.LockID
	}
	return e.LockID[:at]
}

// seconds of a time, which no step of a clock makes negative.
func seconds(d time.Duration) float64 { return max(d, 0).Seconds() }
