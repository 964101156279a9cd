// Package otelmutex tells OpenTelemetry of an application's mutexes: in traces, and in metrics. It is a dbmutex.Observer.
//
// Two spans are siblings, beneath the span of the context that the handle had. Both are internal.
//
//   - "dbmutex acquire" is an acquire, waiting included. Spans of its SQL are beneath it.
//   - "dbmutex hold" is a lease, until its release is done. The work's spans are beneath it. It has the span events renewed,
//     renewal failed, ran out and lost. The span of a lease that is never released never ends.
//
// Their attributes begin with "dbmutex.": mutex.name, holder and outcome, which both have; token, once there is a lease; and
// acquire.tries, handed_on (from this process's last holder) and previous.holder (whose lease had run out, and was taken
// over), which an acquire has; slot, of a semaphore's lease; and once, which is true for a Once's. The status is Error if
// the outcome is failed, lost or unknown. That a mutex is held is no error, nor that a Once is done.
//
// The metrics:
//
//	dbmutex.acquire.duration   histogram, s                 how long acquires took, by dbmutex.outcome
//	dbmutex.acquire.pending    up-down counter, {acquire}   acquires under way
//	dbmutex.lease.duration     histogram, s                 how long leases were held, by dbmutex.outcome
//	dbmutex.lease.active       up-down counter, {lease}     leases that this process holds
//	dbmutex.lease.renewals     counter, {renewal}           by dbmutex.outcome: ok or failed
//	dbmutex.lease.takeovers    counter, {lease}             leases of others that had run out, and were taken over
//	dbmutex.lease.forced       counter, {lease}             leases that this process ended by ForceRelease
//
// All have the attribute dbmutex.mutex.name, of which WithNames and WithNameLimit keep the values few. They never have the
// holder, the token or the id of a lease.
package otelmutex

import (
	"fmt"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/gorm-dbmutex/dbmutex"
)

// scope names the instrumentation.
const scope = "github.com/gorm-dbmutex/dbmutex/contrib/otel"

// Option changes what New makes.
type Option func(*options)

type options struct {
	tracers                       trace.TracerProvider
	meters                        metric.MeterProvider
	names                         func(id string) string
	limit                         int
	withoutMetrics, withoutTraces bool
}

// WithTracerProvider says where the spans go. The default is OpenTelemetry's global provider, also if that is set later.
func WithTracerProvider(p trace.TracerProvider) Option { return func(o *options) { o.tracers = p } }

// WithMeterProvider says where the metrics go. The default is OpenTelemetry's global provider, also if that is set later.
func WithMeterProvider(p metric.MeterProvider) Option { return func(o *options) { o.meters = p } }

// WithNames says under which name a mutex is in the metrics: perhaps "export" for all of "export/123". "" leaves the name
// out. The same id must always have the same name. fn runs in many goroutines. The default is the id. That of a Once comes
// without the time of dbmutex.Tick. Spans have the whole id in any case.
func WithNames(fn func(id string) string) Option { return func(o *options) { o.names = fn } }

// WithNameLimit says how many names there are in the metrics: the first n that come, and "_other" for all that come later.
// n is at least 1; the default is 100.
func WithNameLimit(n int) Option { return func(o *options) { o.limit = n } }

// WithoutMetrics leaves out the metrics.
func WithoutMetrics() Option { return func(o *options) { o.withoutMetrics = true } }

// WithoutTraces leaves out the spans.
func WithoutTraces() Option { return func(o *options) { o.withoutTraces = true } }

// New makes an observer, for dbmutex.Settings.Observer or dbmutex.WithObserver. A program needs one: two would count
// everything twice. Nil options are dropped. The error is dbmutex.ErrInvalidSettings for a provider or a function that is
// nil or a limit below 1, or what the meter says of its instruments.
func New(opts ...Option) (dbmutex.Observer, error) {
	o := options{
		tracers: otel.GetTracerProvider(),
		meters:  otel.GetMeterProvider(),
		names:   func(id string) string { return id },
		limit:   100,
	}
	for _, opt := range opts {
		if opt != nil {
			opt(&o)
		}
	}
	switch {
	case o.tracers == nil, o.meters == nil, o.names == nil:
		return nil, fmt.Errorf("%w: a provider or the function of WithNames is nil", dbmutex.ErrInvalidSettings)
	case o.limit < 1:
		return nil, fmt.Errorf("%w: WithNameLimit(%d): it must be 1 or more", dbmutex.ErrInvalidSettings, o.limit)
	}
	var observers []dbmutex.Observer
	if !o.withoutTraces {
		observers = append(observers, spans{o.tracers.Tracer(scope)})
	}
	if !o.withoutMetrics {
		m, err := newMetrics(o.meters.Meter(scope), o.names, o.limit)
		if err != nil {
			return nil, fmt.Errorf("otelmutex: %w", err)
		}
		observers = append(observers, m)
	}
	return dbmutex.Observers(observers...), nil
}
