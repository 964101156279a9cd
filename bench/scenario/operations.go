package scenario

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/report"
	"github.com/gorm-dbmutex/dbmutex/bench/stats"
)

// baseName is the measure of all, and the first of them.
const baseName = "bare pair"

// field is who is measured together, and what their tables say of them.
type field struct {
	contenders []contender.Contender
	on         string // the end of a title
	try        string // of the bare pair
	counts     string // which statements are
}

func onServers() field {
	return field{
		contenders: contender.All(),
		try: "The bare pair's try is its upsert, which locks the row and commits, as an upsert with a WHERE does; a SELECT " +
			"would be cheaper, but could not acquire.",
		counts: "PostgreSQL does not count those that fail, Redis counts commands, those of scripts too.",
	}
}

func (e *Env) uncontended(ctx context.Context) ([]report.Table, error) {
	return e.uncontendedBy(ctx, onServers())
}

func (e *Env) uncontendedBy(ctx context.Context, f field) ([]report.Table, error) {
	entrants, leave, err := e.enter(ctx, f.contenders)
	if err != nil {
		return nil, err
	}
	defer leave()
	return e.operations(ctx, report.Table{
		Title: "Uncontended cycle" + f.on,
		Text:  "One goroutine acquires and releases a free lock. " + f.costs(),
	}, entrants, "the bare pair", func(instance contender.Instance) error { return instance.Cycle(ctx, "one") })
}

func (e *Env) failingTry(ctx context.Context) ([]report.Table, error) {
	return e.failingTryBy(ctx, onServers())
}

func (e *Env) failingTryBy(ctx context.Context, f field) ([]report.Table, error) {
	entrants, leave, err := e.enter(ctx, f.contenders)
	if err != nil {
		return nil, err
	}
	defer leave()
	end, err := e.hold(ctx, entrants, 1)
	defer end()
	if err != nil {
		return nil, err
	}
	return e.operations(ctx, report.Table{
		Title: "Failing try" + f.on,
		Text:  "One goroutine is refused a lock that somebody else holds. " + f.try + " " + f.costs(),
	}, entrants, "the bare pair", func(instance contender.Instance) error { return instance.Try(ctx, heldID(1)) })
}

// heldID is the id of a lock that hold holds, from 1.
func heldID(n int) string { return fmt.Sprintf("held %d", n) }

// hold makes each of the entrants be refused the first n locks of heldID, until end.
func (e *Env) hold(ctx context.Context, entrants []*entrant, n int) (end func(), err error) {
	var ends []func() error
	end = func() {
		for _, one := range ends {
			_ = one()
		}
	}
	for _, en := range entrants {
		err := en.Fill(ctx, n)
		if errors.Is(err, errors.ErrUnsupported) {
			ids := make([]string, n)
			for i := range ids {
				ids[i] = heldID(i + 1)
			}
			for some := range slices.Chunk(ids, contender.Pool) {
				var one func() error
				if one, err = en.allElsewhere(ctx, some); err != nil {
					break
				}
				ends = append(ends, one)
			}
		}
		if err != nil {
			return end, fmt.Errorf("%s: %w", en.Name, err)
		}
	}
	return end, nil
}

// costs says what operations counts.
func (f field) costs() string {
	return "Statements and round trips are those of one operation; " + f.counts
}

// operations measures one operation after the other, and compares it with the first entrant's, which has a name.
func (e *Env) operations(
	ctx context.Context, table report.Table, entrants []*entrant, measure string, operation func(contender.Instance) error,
) ([]report.Table, error) {
	block := func(en *entrant) ([]time.Duration, error) {
		return repeat(e.Size.Block, func() error { return operation(en.Instance) })
	}
	if err := warmUp(entrants, block); err != nil {
		return nil, err
	}
	results, err := inTurn(entrants, e.Size.Rounds, block)
	if err != nil {
		return nil, err
	}
	base := results[0]
	table.Columns = []string{
		"", "median", "p99", "to " + measure, "statements", "round trips", "allocations", "server", "its crash leaves",
	}
	for i, en := range entrants {
		c, err := e.costs(ctx, en, operation)
		if err != nil {
			return nil, err
		}
		table.Rows = append(table.Rows, []string{
			en.Name, show(results[i].median()), show(results[i].p99()), showRatios(results[i].blocks, base.blocks),
			showCount(c.statements), showCount(c.roundTrips), fmt.Sprintf("%.0f", c.allocations), string(en.Store), en.Crash,
		})
	}
	table.Chart = chart(table.Title+": median and p99, ms", entrants, results)
	return []report.Table{table}, nil
}

// goroutines is as many as the pools have connections.
const goroutines = contender.Pool

func (e *Env) sixteenIDs(ctx context.Context) ([]report.Table, error) {
	return e.sixteenIDsBy(ctx, onServers())
}

func (e *Env) sixteenIDsBy(ctx context.Context, f field) ([]report.Table, error) {
	entrants, leave, err := e.enter(ctx, f.contenders)
	if err != nil {
		return nil, err
	}
	defer leave()
	cycles := max(1, e.Size.Block/4) // of each goroutine
	block := func(en *entrant) ([]time.Duration, error) {
		times, errs := make([][]time.Duration, goroutines), make([]error, goroutines)
		var wg sync.WaitGroup
		for i := range goroutines {
			wg.Go(func() {
				id := fmt.Sprintf("id %d", i)
				times[i], errs[i] = repeat(cycles, func() error { return en.Cycle(ctx, id) })
			})
		}
		wg.Wait()
		var all []time.Duration
		for _, some := range times {
			all = append(all, some...)
		}
		return all, errors.Join(errs...)
	}
	if err := warmUp(entrants, block); err != nil {
		return nil, err
	}
	results, err := inTurn(entrants, e.Size.Rounds, block)
	if err != nil {
		return nil, err
	}
	base := results[0]
	table := report.Table{
		Title:   fmt.Sprintf("%d goroutines on %d ids", goroutines, goroutines) + f.on,
		Text:    "Each goroutine acquires and releases a lock of its own. More cycles per second are better.",
		Columns: []string{"", "median", "p99", "cycles per second", "cycles per second to the bare pair"},
	}
	title := fmt.Sprintf("A cycle while %d goroutines use %d ids", goroutines, goroutines)
	table.Chart = chart(title+f.on+": median and p99, ms", entrants, results)
	for i, en := range entrants {
		took := stats.Quantile(results[i].blocks, 0.5)
		table.Rows = append(table.Rows, []string{
			en.Name, show(results[i].median()), show(results[i].p99()),
			fmt.Sprintf("%.0f", float64(cycles*goroutines)/took.Seconds()),
			showRatios(base.blocks, results[i].blocks),
		})
	}
	return []report.Table{table}, nil
}
