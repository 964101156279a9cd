// Package scenario has what the benchmark measures, block by block in turn, so that noise hits all contenders alike.
package scenario

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/report"
	"github.com/gorm-dbmutex/dbmutex/bench/server"
	"github.com/gorm-dbmutex/dbmutex/bench/stats"
)

// Size is how much is measured.
type Size struct {
	Rounds, Block  int           // blocks of each contender, and operations in each
	HandOffRounds  int           // blocks of the hot lock
	HandOff        time.Duration // length of such a block
	Held           int           // locks that others hold
	LongCycles     int           // on one id
	SnapshotCycles int           // on one id, beside an old snapshot
	Waiters        int           // on one lock
	Waiting        time.Duration // of these
	CrowdRounds    int           // blocks of each crowd
	Crowd          time.Duration // length of such a block
	Permits        int           // locks that others hold, in the table of semaphores
	TakeOvers      int           // of leaders that crash, on each database
	HandOvers      int           // of leaders that resign

	Rivals    []int           // of a lone waiter
	Distances []time.Duration // from the server, each way
	Lone      time.Duration   // length of a block of the lone waiter
}

// Env is what scenarios run on.
type Env struct {
	Postgres *server.Postgres
	MySQL    *server.MySQL                     // nil: its scenario is not run
	Redis    map[contender.Store]*server.Redis // without those that could not be started
	Folder   string                            // for SQLite's files
	Size     Size

	redisDBs int // that are in use
	files    int // of SQLite, that were ever in use
}

// Scenario is one of All.
type Scenario struct {
	Name string
	Run  func(e *Env, ctx context.Context) ([]report.Table, error)
}

// All are the scenarios.
var All = []Scenario{
	{"cycle", (*Env).uncontended},
	{"try", (*Env).failingTry},
	{"ids", (*Env).sixteenIDs},
	{"crowd", (*Env).crowds},
	{"handoff", (*Env).handOff},
	{"fairness", (*Env).fairness},
	{"waiters", (*Env).waiters},
	{"held", (*Env).held},
	{"long", (*Env).long},
	{"snapshot", (*Env).oldSnapshot},
	{"sqlite", (*Env).sqlite},
	{"mysql", (*Env).mysql},
	{"listing", (*Env).listing},
	{"once", (*Env).once},
	{"semaphore", (*Env).semaphore},
	{"lead", (*Env).lead},
}

// database is a server of contenders that use SQL.
type database interface {
	Address() string
	Place(ctx context.Context) (dsn string, err error)
	Remove(ctx context.Context, dsn string) error
	Statements(ctx context.Context) (int64, error)
	Through(dsn string, proxy *server.Proxy) string
}

// database is the server of a store, nil if that is a Redis.
func (e *Env) database(store contender.Store) database {
	switch store {
	case contender.Postgres:
		return e.Postgres
	case contender.MySQL:
		return e.MySQL
	}
	return nil
}

// entrant is a contender with a schema, or the like, of its own.
type entrant struct {
	contender.Contender
	contender.Instance
	where contender.Where
}

// enter opens those of the contenders whose server is there.
func (e *Env) enter(ctx context.Context, contenders []contender.Contender) (entrants []*entrant, leave func(), err error) {
	leave = func() { e.leave(entrants) }
	for _, c := range contenders {
		if c.Store != contender.SQLite && e.database(c.Store) == nil && e.Redis[c.Store] == nil {
			continue
		}
		en := &entrant{Contender: c}
		if en.where, err = e.place(ctx, c.Store); err == nil {
			en.Instance, err = c.Open(ctx, en.where)
		}
		if err != nil {
			leave()
			return nil, nil, fmt.Errorf("open %s: %w", c.Name, err)
		}
		entrants = append(entrants, en)
	}
	return entrants, leave, nil
}

// named are those of all contenders with these names.
func named(names ...string) (contenders []contender.Contender) {
	for _, name := range names {
		all := contender.All()
		i := slices.IndexFunc(all, func(c contender.Contender) bool { return c.Name == name })
		contenders = append(contenders, all[i])
	}
	return contenders
}

func (e *Env) place(ctx context.Context, store contender.Store) (where contender.Where, err error) {
	if database := e.database(store); database != nil {
		where.DSN, err = database.Place(ctx)
		return where, err
	}
	if store == contender.SQLite {
		file := filepath.Join(e.Folder, fmt.Sprintf("place-%d.db", e.files))
		e.files++
		return contender.Where{DSN: "file:" + file + "?_journal_mode=WAL&_synchronous=FULL"}, nil
	}
	where = contender.Where{Redis: e.Redis[store].Addr(), RedisDB: e.redisDBs}
	e.redisDBs++
	return where, nil
}

// leave closes the entrants and removes what they wrote.
func (e *Env) leave(entrants []*entrant) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, en := range entrants {
		en.Close()
		if database := e.database(en.Store); database != nil {
			_ = database.Remove(ctx, en.where.DSN)
		}
	}
	for _, redis := range e.Redis {
		_ = redis.Empty(ctx)
	}
	e.redisDBs = 0
}

// ErrNoServer is the error of With if the contender's server could not be started.
var ErrNoServer = errors.New("its server is not there")

// With opens one contender for fn.
func (e *Env) With(ctx context.Context, c contender.Contender, fn func(contender.Instance) error) error {
	entrants, leave, err := e.enter(ctx, []contender.Contender{c})
	if err != nil {
		return err
	}
	defer leave()
	if len(entrants) == 0 {
		return ErrNoServer
	}
	return entrants[0].use(func() error { return fn(entrants[0].Instance) })
}

// use runs fn with what the contender switches on.
func (en *entrant) use(fn func() error) error {
	if en.Switch != nil {
		en.Switch(true)
		defer en.Switch(false)
	}
	if err := fn(); err != nil {
		return fmt.Errorf("%s: %w", en.Name, err)
	}
	return nil
}

// elsewhere holds a lock by one more pool on an entrant's place, as another process would.
func (en *entrant) elsewhere(ctx context.Context, id string) (end func() error, err error) {
	return en.allElsewhere(ctx, []string{id})
}

// allElsewhere holds locks by one more pool, which has a connection for each of up to contender.Pool locks.
func (en *entrant) allElsewhere(ctx context.Context, ids []string) (end func() error, err error) {
	other, err := en.Open(ctx, en.where)
	if err != nil {
		return nil, err
	}
	var releases []func() error
	end = func() (err error) {
		defer other.Close()
		for _, release := range releases {
			err = errors.Join(err, release())
		}
		return err
	}
	for _, id := range ids {
		release, err := other.Acquire(ctx, id)
		if err != nil {
			return nil, errors.Join(err, end())
		}
		releases = append(releases, release)
	}
	return end, nil
}

// measured is what the blocks of an entrant took.
type measured struct{ times, blocks []time.Duration }

func (m measured) median() time.Duration { return stats.Quantile(m.times, 0.5) }
func (m measured) p99() time.Duration    { return stats.Quantile(m.times, 0.99) }

// inTurn runs, in each round, one block of every entrant, in an order drawn anew, so that nobody always follows the same. A
// block returns how long its operations took.
func inTurn(entrants []*entrant, rounds int, block func(en *entrant) ([]time.Duration, error)) ([]measured, error) {
	results := make([]measured, len(entrants))
	for range rounds {
		for _, n := range rand.Perm(len(entrants)) {
			runtime.GC() // nobody cleans up after the one before
			err := entrants[n].use(func() error {
				start := time.Now()
				times, err := block(entrants[n])
				results[n].blocks = append(results[n].blocks, time.Since(start))
				results[n].times = append(results[n].times, times...)
				return err
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return results, nil
}

// warmUp is one round that is not counted: connections are opened and statements prepared.
func warmUp(entrants []*entrant, block func(en *entrant) ([]time.Duration, error)) error {
	_, err := inTurn(entrants, 1, block)
	return err
}

// repeat runs an operation n times, one after the other.
func repeat(n int, operation func() error) ([]time.Duration, error) {
	times := make([]time.Duration, 0, n)
	for range n {
		start := time.Now()
		if err := operation(); err != nil {
			return nil, err
		}
		times = append(times, time.Since(start))
	}
	return times, nil
}

// show is a duration to read.
func show(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%.0f µs", float64(d)/float64(time.Microsecond))
	case d < time.Second:
		return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// thousands is a number with commas.
func thousands(n int) string { return message.NewPrinter(language.English).Sprintf("%d", n) }

func showRatio(ratio float64) string {
	if math.IsNaN(ratio) {
		return "–"
	}
	return fmt.Sprintf("%.2f", ratio)
}

// showRatios is the median of the ratios of blocks of one round, and their quartiles.
func showRatios[T ~int64 | ~float64](blocks, base []T) string {
	ratios := stats.Ratios(blocks, base)
	return fmt.Sprintf("%s (%s–%s)", showRatio(stats.Median(ratios)),
		showRatio(stats.Quantile(ratios, 0.25)), showRatio(stats.Quantile(ratios, 0.75)))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// chart draws the times of entrants.
func chart(title string, entrants []*entrant, results []measured) *report.Chart {
	c := &report.Chart{Title: title}
	for i, en := range entrants {
		c.Points = append(c.Points, report.Point{
			Name: en.Name, Own: en.Own, Median: milliseconds(results[i].median()), P99: milliseconds(results[i].p99()),
		})
	}
	return c
}
