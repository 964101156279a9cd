package scenario

import (
	"context"
	"fmt"
	"time"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/report"
	"github.com/gorm-dbmutex/dbmutex/bench/stats"
)

const (
	loneHold  = 5 * time.Millisecond // the rivals', too
	loneThink = 20 * time.Millisecond

	// boundName is the contender whose waits have a bound.
	boundName = "dbmutex with pgnotify"
)

// fair are the contenders that a lone waiter is measured with.
func fair() []contender.Contender {
	return named("dbmutex", boundName, "pglock", "advisory lock", "redislock, durable Redis")
}

func (e *Env) fairness(ctx context.Context) ([]report.Table, error) {
	text := fmt.Sprintf("A process with one waiter wants the lock again %v after its release, another process with rivals "+
		"at once; all hold it for %v. Blocks of %v. The distance is a proxy's, which delays every byte. ≥ is a wait that the "+
		"end of the block cut short. The p99 of fewer than 100 waits is the longest. Passed is how many acquisitions of rivals "+
		"that asked later came first, in the worst of the waits. The bound is that of p99: 4 × clients × hold and 10 round "+
		"trips.", loneThink, loneHold, e.Size.Lone)
	together := report.Table{Title: "A lone waiter beside rivals, all as far away", Text: text}
	apart := report.Table{
		Title: "A lone waiter far away, its rivals near",
		Text:  "The same, but only the waiter goes through the proxy. Round trips are the waiter's.",
	}
	for _, each := range e.Size.Distances {
		if err := e.fairnessAt(ctx, &together, each, each); err != nil {
			return nil, err
		}
		if each == 0 {
			continue // these are together
		}
		if err := e.fairnessAt(ctx, &apart, each, 0); err != nil {
			return nil, err
		}
	}
	return []report.Table{together, apart}, nil
}

// fairnessAt adds the rows of a distance to a table. The chart is of the last cell.
func (e *Env) fairnessAt(ctx context.Context, table *report.Table, lone, rivals time.Duration) error {
	table.Columns = []string{
		"", "each way", "rivals", "wait median", "p99", "longest", "waits", "share of acquisitions", "passed", "bound",
	}
	for _, n := range e.Size.Rivals {
		entrants, leave, err := e.enter(ctx, fair())
		if err != nil {
			return err
		}
		waits := map[*entrant]stats.Waiting{}
		results, err := inTurn(entrants, 1, func(en *entrant) ([]time.Duration, error) {
			spans, err := e.beside(ctx, en, n, lone, rivals)
			waits[en] = stats.Wait(spans, 0)
			return waits[en].Times, err
		})
		leave()
		if err != nil {
			return err
		}
		for i, en := range entrants {
			w, row := waits[en], []string{en.Name, show(lone), fmt.Sprint(n)}
			for _, q := range []float64{0.5, 0.99, 1} {
				row = append(row, showWait(stats.Quantile(w.Times, q), w.Cut))
			}
			bound := ""
			if en.Name == boundName {
				bound = showBound(results[i].p99(), n+1, lone)
			}
			table.Rows = append(table.Rows, append(row,
				fmt.Sprint(len(w.Times)), fmt.Sprintf("%.1f %%", 100*w.Share), fmt.Sprint(w.Passed), bound))
		}
		title := fmt.Sprintf("%s (%d rivals, %v each way): wait, median and p99, ms", table.Title, n, lone)
		table.Chart = chart(title, entrants, results)
	}
	return nil
}

// beside runs a lone waiter, which has number 0, and n rivals, each at its distance from the server.
func (e *Env) beside(ctx context.Context, en *entrant, n int, lone, rivals time.Duration) ([]stats.Span, error) {
	jobs := []job{{Waiters: 1, Think: loneThink}, {First: 1, Waiters: n}}
	for i, each := range []time.Duration{lone, rivals} {
		j := &jobs[i]
		j.Where, j.Hold, j.Length = en.where, loneHold, e.Size.Lone
		if each == 0 {
			continue
		}
		proxy, where, err := e.through(en, each)
		if err != nil {
			return nil, err
		}
		defer proxy.Close()
		j.Where = where
	}
	spans, _, err := e.compete(ctx, en, jobs)
	return spans, err
}

// showWait is a wait to read. One that was cut short would have been longer.
func showWait(d, cut time.Duration) string {
	if cut != 0 && d == cut {
		return "≥ " + show(d)
	}
	return show(d)
}

// showBound is how long a wait may take at p99, and whether it does not take longer.
func showBound(p99 time.Duration, clients int, each time.Duration) string {
	bound := 4*time.Duration(clients)*loneHold + 10*2*each
	if p99 > bound {
		return show(bound) + ": exceeded"
	}
	return show(bound) + ": kept"
}
