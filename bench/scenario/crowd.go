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

var (
	crowdSizes   = []int{1, 4, 16, 64, 256} // goroutines, each with an id of its own
	refusedSizes = []int{16, 64}            // goroutines, each refused an id of its own
)

// crowds measures many goroutines of one process, each with a lock of its own, on every database.
func (e *Env) crowds(ctx context.Context) (tables []report.Table, err error) {
	fields := []field{onServers(), {
		contenders: contender.CrowdOnSQLite(), on: ", on SQLite",
		try: "The try of the bare statements is their first, a SELECT.",
	}}
	if e.MySQL != nil {
		fields = append(fields, onMySQL())
	}
	for _, f := range fields {
		more, err := e.crowdsOf(ctx, f)
		if err != nil {
			return nil, err
		}
		tables = append(tables, more...)
	}
	return tables, nil
}

// crowdsOf measures cycles and failing tries of crowds.
func (e *Env) crowdsOf(ctx context.Context, f field) ([]report.Table, error) {
	entrants, leave, err := e.enter(ctx, f.contenders)
	if err != nil {
		return nil, err
	}
	defer leave()
	how := fmt.Sprintf("In %d rounds of blocks of %v. The goroutines begin one after the other in the %v before a block, and "+
		"go on for as long after it. What was only partly within it counts for that part, and with all of its time in median "+
		"and p99. The measure is the first.", e.Size.CrowdRounds, e.Size.Crowd, e.Size.Crowd/4)
	cycles := report.Table{
		Title:   "A crowd, each goroutine with a lock of its own" + f.on,
		Text:    fmt.Sprintf("Each acquires and releases its lock, with %d connections for all. ", contender.Pool) + how,
		Columns: crowdColumns,
		Chart: &report.Chart{
			Title: fmt.Sprintf("A crowd%s: cycles per second to the %s, by goroutines", f.on, entrants[0].Name),
		},
	}
	cycle := func(en *entrant, i int) error { return en.Cycle(ctx, fmt.Sprintf("id %d", i)) }
	err = warmUp(entrants, func(en *entrant) ([]time.Duration, error) {
		_, err := sideBySide(slices.Max(crowdSizes), 0, e.Size.Crowd, func(i int) error { return cycle(en, i) })
		return nil, err
	})
	if err != nil {
		return nil, err
	}
	if err := e.crowdTable(&cycles, entrants, crowdSizes, cycle); err != nil {
		return nil, err
	}

	tries := report.Table{
		Title:   "A crowd that is refused" + f.on,
		Text:    "Each tries to acquire a lock of its own that somebody else holds. " + f.try + " " + how,
		Columns: crowdColumns,
	}
	end, err := e.hold(ctx, entrants, slices.Max(refusedSizes))
	defer end()
	if err != nil {
		return nil, err
	}
	if entrants[0].Store == contender.MySQL {
		pair := &entrant{Contender: wholePair(entrants[0].Contender), Instance: whole{entrants[0].Instance}}
		entrants = append([]*entrant{pair}, entrants...)
	}
	err = e.crowdTable(&tries, entrants, refusedSizes, func(en *entrant, i int) error { return en.Try(ctx, heldID(i+1)) })
	return []report.Table{cycles, tries}, err
}

// crowdTable adds what crowds of all sizes did.
func (e *Env) crowdTable(
	table *report.Table, entrants []*entrant, sizes []int, operation func(en *entrant, i int) error,
) error {
	for _, size := range sizes {
		all, err := e.crowd(entrants, size, operation)
		if err != nil {
			return fmt.Errorf("%d goroutines: %w", size, err)
		}
		addCrowd(table, entrants, size, all)
	}
	return nil
}

// crowdColumns are those that addCrowd fills.
var crowdColumns = []string{
	"", "goroutines", "per second", "to the measure", "median", "to the measure", "p99", "to the measure",
}

// crowded is what crowds of a size did with one entrant.
type crowded struct {
	measured
	rates         []float64 // per second, of each round
	medians, p99s []time.Duration
}

// crowd measures crowds of a size, one of each entrant in each round.
func (e *Env) crowd(entrants []*entrant, size int, operation func(en *entrant, i int) error) ([]crowded, error) {
	of := map[*entrant]*crowded{}
	for _, en := range entrants {
		of[en] = &crowded{}
	}
	block := func(en *entrant) ([]time.Duration, error) {
		from := e.Size.Crowd / 4
		until := from + e.Size.Crowd
		operations, err := sideBySide(size, from, until+from, func(i int) error { return operation(en, i) })
		rate, times := stats.Within(operations, from, until)
		c := of[en]
		c.rates = append(c.rates, rate)
		c.medians = append(c.medians, stats.Quantile(times, 0.5))
		c.p99s = append(c.p99s, stats.Quantile(times, 0.99))
		return times, err
	}
	results, err := inTurn(entrants, e.Size.CrowdRounds, block)
	if err != nil {
		return nil, err
	}
	all := make([]crowded, len(entrants))
	for i, en := range entrants {
		all[i] = *of[en]
		all[i].measured = results[i]
	}
	return all, nil
}

// addCrowd adds the rows of a size to a table, and to its chart, if it has one. The first entrant is the measure.
func addCrowd(table *report.Table, entrants []*entrant, size int, all []crowded) {
	base := all[0]
	for i, en := range entrants {
		c := all[i]
		table.Rows = append(table.Rows, []string{
			en.Name, fmt.Sprint(size), fmt.Sprintf("%.0f", stats.Median(c.rates)), showRatios(c.rates, base.rates),
			show(c.median()), showRatios(c.medians, base.medians), show(c.p99()), showRatios(c.p99s, base.p99s),
		})
		if table.Chart == nil {
			continue
		}
		if len(table.Chart.Lines) == i {
			table.Chart.Lines = append(table.Chart.Lines, report.Line{Name: en.Name, Own: en.Own})
		}
		line := &table.Chart.Lines[i]
		line.At = append(line.At, report.XY{X: float64(size), Y: stats.Median(stats.Ratios(c.rates, base.rates))})
	}
}

// sideBySide lets n goroutines run an operation again and again until a time. They begin one after the other, within lead,
// so that they do not stay in step.
func sideBySide(n int, lead, until time.Duration, operation func(i int) error) ([]stats.Operation, error) {
	operations, errs := make([][]stats.Operation, n), make([]error, n)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			time.Sleep(lead * time.Duration(i) / time.Duration(n))
			for {
				began := time.Since(start)
				if began > until {
					return
				}
				if errs[i] = operation(i); errs[i] != nil {
					return
				}
				operations[i] = append(operations[i], stats.Operation{Began: began, Ended: time.Since(start)})
			}
		})
	}
	wg.Wait()
	return slices.Concat(operations...), errors.Join(errs...)
}
