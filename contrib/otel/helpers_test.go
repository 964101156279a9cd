package otelmutex_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/gorm-dbmutex/dbmutex"
	otelmutex "github.com/gorm-dbmutex/dbmutex/contrib/otel"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// recording is an observer, and what it told.
type recording struct {
	dbmutex.Observer
	spans   *tracetest.SpanRecorder
	tracers *trace.TracerProvider
	reader  *metric.ManualReader
}

func record(t *testing.T, opts ...otelmutex.Option) *recording {
	t.Helper()
	r := &recording{spans: tracetest.NewSpanRecorder(), reader: metric.NewManualReader()}
	r.tracers = trace.NewTracerProvider(trace.WithSpanProcessor(r.spans))
	var err error
	r.Observer, err = otelmutex.New(append([]otelmutex.Option{
		otelmutex.WithTracerProvider(r.tracers),
		otelmutex.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(r.reader))),
	}, opts...)...)
	require.NoError(t, err)
	return r
}

// each runs a test on every database, with a handle that the recording observes and one of somebody else.
func each(t *testing.T, test func(t *testing.T, db, others *dbmutex.DB, r *recording)) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		others := d.Mutexes(t, dbmutex.DefaultSettings())
		r := record(t)
		settings := dbmutex.DefaultSettings()
		settings.Observer, settings.Holder = r, "me"
		test(t, d.Registered(t, settings).WithContext(testdb.Limited(t)), others, r)
	})
}

// collected are the metrics so far, of which all must be of this package's scope.
func (r *recording) collected(t *testing.T) []metricdata.Metrics {
	t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(t, r.reader.Collect(t.Context(), &all))
	if len(all.ScopeMetrics) == 0 {
		return nil
	}
	require.Len(t, all.ScopeMetrics, 1)
	require.Equal(t, "github.com/gorm-dbmutex/dbmutex/contrib/otel", all.ScopeMetrics[0].Scope.Name)
	return all.ScopeMetrics[0].Metrics
}

// measured are the metrics so far, a line each such as "lease.active job 1" and "lease.duration job released 3". A
// histogram's number is how often it was recorded.
func (r *recording) measured(t *testing.T) (lines []string) {
	t.Helper()
	line := func(m metricdata.Metrics, set attribute.Set, n any) {
		words := []string{strings.TrimPrefix(m.Name, "dbmutex.")}
		for _, a := range set.ToSlice() {
			require.Contains(t, []attribute.Key{"dbmutex.mutex.name", "dbmutex.outcome"}, a.Key)
			words = append(words, a.Value.AsString())
		}
		lines = append(lines, strings.Join(append(words, fmt.Sprint(n)), " "))
	}
	for _, m := range r.collected(t) {
		switch data := m.Data.(type) {
		case metricdata.Sum[int64]:
			for _, p := range data.DataPoints {
				line(m, p.Attributes, p.Value)
			}
		case metricdata.Histogram[float64]:
			for _, p := range data.DataPoints {
				require.GreaterOrEqual(t, p.Sum, 0.)
				line(m, p.Attributes, p.Count)
			}
		default:
			require.Fail(t, "another kind of metric", "%T", data)
		}
	}
	slices.Sort(lines)
	return lines
}

// ended are the spans that ended, of a name, in their order.
func (r *recording) ended(name string) (spans []trace.ReadOnlySpan) {
	for _, s := range r.spans.Ended() {
		if s.Name() == name {
			spans = append(spans, s)
		}
	}
	return spans
}

// last is the span that ended last of a name.
func (r *recording) last(t *testing.T, name string) trace.ReadOnlySpan {
	t.Helper()
	spans := r.ended(name)
	require.NotEmpty(t, spans)
	return spans[len(spans)-1]
}

// attributes are a span's, without "dbmutex.".
func attributes(s trace.ReadOnlySpan) map[string]any {
	all := map[string]any{}
	for _, a := range s.Attributes() {
		all[strings.TrimPrefix(string(a.Key), "dbmutex.")] = a.Value.AsInterface()
	}
	return all
}

// events are the names of a span's events.
func events(s trace.ReadOnlySpan) (names []string) {
	for _, e := range s.Events() {
		names = append(names, e.Name)
	}
	return names
}

func requireNoError(t *testing.T, s trace.ReadOnlySpan) {
	t.Helper()
	require.Equal(t, trace.Status{Code: codes.Unset}, s.Status())
}

func requireError(t *testing.T, s trace.ReadOnlySpan, text string) {
	t.Helper()
	require.Equal(t, codes.Error, s.Status().Code)
	require.Contains(t, s.Status().Description, text)
}
