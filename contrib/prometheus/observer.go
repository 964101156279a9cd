package prommutex

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gorm-dbmutex/dbmutex"
)

// buckets are the histograms', in seconds.
var buckets = []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 30, 60, 300, 900, 3600}

// The labels. A name of "" says nothing: to Prometheus the label is not there then.
const (
	outcomeLabel = "dbmutex_outcome"
	nameLabel    = "dbmutex_mutex_name"
)

// ObserverOptions change what NewObserver makes. The zero value has the defaults.
type ObserverOptions struct {
	// Names says under which name a mutex is in the metrics: perhaps "export" for all of "export/123". "" leaves the name out.
	// The same id must always have the same name. It runs in many goroutines. Nil means the id. The id of a Once comes without
	// the time of dbmutex.Tick.
	Names func(id string) string

	// NameLimit says how many names there are in the metrics: the first that come, and "_other" for all that come later. 0
	// means 100.
	NameLimit int
}

// observer is an Observer, and the Collector that is registered.
type observer struct {
	named func(id string) string
	limit int

	acquireDuration, leaseDuration *prometheus.HistogramVec
	pending, active                *prometheus.GaugeVec
	renewals, takeovers, forced    *prometheus.CounterVec

	mu    sync.Mutex // guards what follows
	names map[string]bool
}

// NewObserver makes an observer, for dbmutex.Settings.Observer or dbmutex.WithObserver, and registers its metrics. It is a
// prometheus.Collector as well, for Unregister.
//
// The error is dbmutex.ErrInvalidSettings for a Registerer that is nil or a limit below 0, or the registry's. A registry
// takes one observer. For a second errors.As finds a prometheus.AlreadyRegisteredError, whose ExistingCollector is the
// first: a dbmutex.Observer, to be used instead. Nothing is registered then. prometheus.WrapRegistererWith keeps observers
// apart by a label that all of them have.
func NewObserver(r prometheus.Registerer, o ObserverOptions) (dbmutex.Observer, error) {
	if r == nil {
		return nil, fmt.Errorf("%w: the Registerer is nil", dbmutex.ErrInvalidSettings)
	}
	if o.NameLimit < 0 {
		return nil, fmt.Errorf("%w: NameLimit %d is negative", dbmutex.ErrInvalidSettings, o.NameLimit)
	}
	made := newObserver(o)
	if err := r.Register(made); err != nil {
		return nil, fmt.Errorf("prommutex: %w", err)
	}
	return made, nil
}

func newObserver(o ObserverOptions) *observer {
	if o.Names == nil {
		o.Names = func(id string) string { return id }
	}
	if o.NameLimit == 0 {
		o.NameLimit = 100
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(
			prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{nameLabel, outcomeLabel})
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{nameLabel})
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append(labels, nameLabel))
	}
	return &observer{
		named:           o.Names,
		limit:           o.NameLimit,
		names:           map[string]bool{},
		acquireDuration: histogram("dbmutex_acquire_duration_seconds", "How long acquires took, waiting included."),
		pending:         gauge("dbmutex_acquire_pending", "Acquires under way."),
		leaseDuration:   histogram("dbmutex_lease_duration_seconds", "How long leases were held."),
		active:          gauge("dbmutex_lease_active", "Leases that this process holds."),
		renewals:        counter("dbmutex_lease_renewals_total", "Renewals of leases, also those that failed.", outcomeLabel),
		takeovers:       counter("dbmutex_lease_takeovers_total", "Leases that had run out, and were taken over."),
		forced:          counter("dbmutex_lease_forced_total", "Leases that were ended by force."),
	}
}

func (o *observer) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		o.acquireDuration, o.pending, o.leaseDuration, o.active, o.renewals, o.takeovers, o.forced,
	}
}

// Describe is prometheus.Collector's.
func (o *observer) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range o.collectors() {
		c.Describe(ch)
	}
}

// Collect is prometheus.Collector's.
func (o *observer) Collect(ch chan<- prometheus.Metric) {
	for _, c := range o.collectors() {
		c.Collect(ch)
	}
}

// Observe counts.
func (o *observer) Observe(ctx context.Context, e dbmutex.Event) context.Context {
	name := o.name(idOf(e))
	switch e.Kind {
	case dbmutex.AcquireBegan:
		o.pending.WithLabelValues(name).Inc()
	case dbmutex.AcquireEnded:
		o.pending.WithLabelValues(name).Dec()
		o.acquireDuration.WithLabelValues(name, e.Outcome.String()).Observe(seconds(e.Waited))
		if e.Previous != nil {
			o.takeovers.WithLabelValues(name).Inc()
		}
	case dbmutex.LeaseBegan:
		o.active.WithLabelValues(name).Inc()
	case dbmutex.LeaseRenewed:
		o.renewals.WithLabelValues("ok", name).Inc()
	case dbmutex.RenewalFailed:
		o.renewals.WithLabelValues("failed", name).Inc()
	case dbmutex.LeaseEnded:
		o.active.WithLabelValues(name).Dec()
		o.leaseDuration.WithLabelValues(name, e.Outcome.String()).Observe(seconds(e.Held))
	case dbmutex.ForceReleased:
		o.forced.WithLabelValues(name).Inc()
	}
	return nil
}

// name is that of a mutex in the metrics. An id always has the same one: what is added under it is taken away under it.
func (o *observer) name(id string) string {
	name := o.named(id)
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case name == "" || o.names[name]:
		return name
	case len(o.names) == o.limit:
		return "_other"
	}
	o.names[name] = true
	return name
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
