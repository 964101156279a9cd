package prommutex

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gorm-dbmutex/dbmutex"
)

// What the collector tells.
var (
	up            = prometheus.NewDesc("dbmutex_up", "Whether the table of the leases could be read.", nil, nil)
	leases        = prometheus.NewDesc("dbmutex_table_leases", "Leases in the table.", []string{"state"}, nil)
	withoutExpiry = prometheus.NewDesc("dbmutex_table_leases_without_expiry", "Leases that are held for ever.", nil, nil)
	oldest        = prometheus.NewDesc("dbmutex_table_oldest_lease_seconds", "How long the oldest lease is held.", nil, nil)
	age           = prometheus.NewDesc("dbmutex_table_lease_age_seconds", "How long a mutex is held.", []string{"mutex"}, nil)
)

// maxPerMutex is how many leases the table tells of at once.
const maxPerMutex = 1000

// CollectorOptions change what NewCollector makes. The zero value has the defaults.
type CollectorOptions struct {
	// Timeout is how long a scrape waits for the database. 0 means 2 seconds.
	Timeout time.Duration

	// MaxAge is how old the figures may be: scrapes within that time get the same. 0 means 10 seconds.
	MaxAge time.Duration

	// PerMutex is of how many mutexes dbmutex_table_lease_age_seconds tells: those that are held longest. A semaphore counts as
	// one, by the oldest of its leases; it is one with the mutex of its id. There are as many values of the label in Prometheus
	// as mutexes have ever been among them. 0 means none; the most is 1000, and no more than the 1000 oldest leases are read.
	PerMutex int
}

// Collector tells Prometheus what is in the table of the leases. It asks the database when it is scraped, one scrape at a
// time: others that come meanwhile wait, and get the same figures. If the database cannot tell, dbmutex_up is 0 and there
// are no other figures, old ones neither. It is safe for concurrent use. It has no goroutine.
type Collector struct {
	db      *dbmutex.DB
	options CollectorOptions

	mu      sync.Mutex // held while the database is asked; guards what follows
	figures []prometheus.Metric
	asked   time.Time
}

// NewCollector makes a collector of the handle's table, which the caller registers. It runs no SQL, so that a program can
// start while its database is away. The context of the handle ends what the collector asks. Several databases need a label
// that keeps them apart: prometheus.WrapRegistererWith.
//
// The error is dbmutex.ErrInvalidSettings for options that are negative or a PerMutex above 1000, or what DB.LeaseStats says
// is wrong with the handle.
func NewCollector(db *dbmutex.DB, o CollectorOptions) (*Collector, error) {
	switch {
	case db == nil || db.Gorm == nil || db.Config == nil || db.Statement == nil:
		return nil, fmt.Errorf("%w (the handle is nil)", dbmutex.ErrNotRegistered)
	case o.Timeout < 0, o.MaxAge < 0, o.PerMutex < 0, o.PerMutex > maxPerMutex:
		return nil, fmt.Errorf("%w: %+v: nothing may be negative, nor PerMutex above %d",
			dbmutex.ErrInvalidSettings, o, maxPerMutex)
	}
	done, cancel := context.WithCancel(context.Background())
	cancel() // so that it says what is wrong with the handle, and asks nobody
	if _, err := db.WithContext(done).LeaseStats(); err != nil && !errors.Is(err, context.Canceled) {
		return nil, err
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Second
	}
	if o.MaxAge == 0 {
		o.MaxAge = 10 * time.Second
	}
	return &Collector{db: db, options: o}, nil
}

// Describe is prometheus.Collector's.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{up, leases, withoutExpiry, oldest, age} {
		ch <- d
	}
}

// Collect is prometheus.Collector's.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	for _, m := range c.latest() {
		ch <- m
	}
}

// latest are the figures, asked for if they are too old.
func (c *Collector) latest() []prometheus.Metric {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.figures == nil || time.Since(c.asked) >= c.options.MaxAge {
		figures, err := c.ask()
		if err != nil {
			figures = []prometheus.Metric{gauge(up, 0)}
		}
		c.figures, c.asked = figures, time.Now()
	}
	return c.figures
}

// ask asks the database.
func (c *Collector) ask() ([]prometheus.Metric, error) {
	ctx, cancel := context.WithTimeout(cmp.Or(c.db.Statement.Context, context.Background()), c.options.Timeout)
	defer cancel()
	db := c.db.WithContext(ctx)
	stats, err := db.LeaseStats()
	if err != nil {
		return nil, err
	}
	longest := 0.
	if stats.Oldest != nil {
		longest = seconds(stats.Oldest.HeldFor())
	}
	figures := []prometheus.Metric{
		gauge(up, 1),
		gauge(leases, float64(stats.Held), "held"),
		gauge(leases, float64(stats.Expired), "expired"),
		gauge(withoutExpiry, float64(stats.WithoutExpiry)),
		gauge(oldest, longest),
	}
	if c.options.PerMutex == 0 {
		return figures, nil
	}
	rows, err := db.Leases(dbmutex.LeaseQuery{Order: dbmutex.OldestFirst, Limit: maxPerMutex})
	told := map[string]bool{}
	for _, row := range rows {
		// No mutex has an id that is not UTF-8: somebody else wrote the row.
		if !utf8.ValidString(row.LockID) || told[row.LockID] || len(told) == c.options.PerMutex {
			continue
		}
		told[row.LockID] = true
		figures = append(figures, gauge(age, seconds(row.HeldFor()), row.LockID))
	}
	return figures, err
}

func gauge(desc *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
}
