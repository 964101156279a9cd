package scenario

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/report"
	"github.com/gorm-dbmutex/dbmutex/bench/stats"
)

const (
	hotWaiters = 8
	hotHold    = 20 * time.Millisecond
)

// waiting are those of the contenders that can wait.
func waiting(contenders []contender.Contender) []contender.Contender {
	return slices.DeleteFunc(slices.Clone(contenders), func(c contender.Contender) bool { return !c.Waits })
}

func (e *Env) handOff(ctx context.Context) ([]report.Table, error) {
	var tables []report.Table
	for _, processes := range []int{1, 2} {
		table, err := e.handOffBetween(ctx, onServers(), processes)
		if err != nil {
			return nil, err
		}
		tables = append(tables, table)
	}
	return tables, nil
}

func (e *Env) handOffBetween(ctx context.Context, f field, processes int) (table report.Table, err error) {
	entrants, leave, err := e.enter(ctx, waiting(f.contenders))
	if err != nil {
		return table, err
	}
	defer leave()
	type total struct {
		stats.Sharing
		statements int
	}
	totals := map[*entrant]*total{}
	results, err := inTurn(entrants, e.Size.HandOffRounds, func(en *entrant) ([]time.Duration, error) {
		jobs := make([]job, processes)
		for i := range jobs {
			waiters := hotWaiters / processes
			jobs[i] = job{
				Where: en.where, First: i * waiters, Waiters: waiters, Hold: hotHold, Length: e.Size.HandOff,
			}
		}
		spans, statements, err := e.compete(ctx, en, jobs)
		if totals[en] == nil {
			totals[en] = &total{}
		}
		t, s := totals[en], stats.Share(spans, hotWaiters)
		t.Acquisitions += s.Acquisitions
		t.statements += statements
		t.Overlaps += s.Overlaps
		t.Least += s.Least
		t.Most += s.Most
		return s.HandOffs, err
	})
	if err != nil {
		return table, err
	}

	in := "in one process"
	if processes > 1 {
		in = fmt.Sprintf("in %d processes", processes)
	}
	in += f.on
	table = report.Table{
		Title: fmt.Sprintf("Hot lock, %d waiters %s", hotWaiters, in),
		Text: fmt.Sprintf("Each holds the one lock for %v and wants it again at once. A hand-off is from the call of a release "+
			"until another waiter has the lock. In blocks of %v; shares are of the acquisitions, an equal one is %.1f %%.",
			hotHold, e.Size.HandOff, 100.0/hotWaiters),
		Columns: []string{
			"", "hand-off median", "p99", "hand-offs", "acquisitions", "statements per acquisition", "least and most served",
			"overlaps",
		},
	}
	title := fmt.Sprintf("Hand-off of a hot lock, %d waiters %s: median and p99, ms", hotWaiters, in)
	table.Chart = chart(title, entrants, results)
	for i, en := range entrants {
		median, p99 := "none", ""
		if len(results[i].times) > 0 {
			median, p99 = show(results[i].median()), show(results[i].p99())
		}
		t := totals[en]
		all := float64(max(1, t.Acquisitions))
		table.Rows = append(table.Rows, []string{
			en.Name, median, p99, fmt.Sprint(len(results[i].times)), fmt.Sprint(t.Acquisitions),
			showCount(float64(t.statements) / all),
			fmt.Sprintf("%.1f %% and %.1f %%", 100*float64(t.Least)/all, 100*float64(t.Most)/all), fmt.Sprint(t.Overlaps),
		})
	}
	return table, nil
}
