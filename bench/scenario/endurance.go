package scenario

import (
	"context"
	"time"

	"github.com/gorm-dbmutex/dbmutex/bench/report"
	"github.com/gorm-dbmutex/dbmutex/bench/stats"
)

func (e *Env) long(ctx context.Context) ([]report.Table, error) {
	return e.endure(ctx, e.Size.LongCycles, report.Table{
		Title: thousands(e.Size.LongCycles) + " cycles on one id",
		Text:  "One goroutine, autovacuum at its defaults.",
	})
}

func (e *Env) oldSnapshot(ctx context.Context) ([]report.Table, error) {
	end, err := e.Postgres.OldSnapshot(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return e.endure(ctx, e.Size.SnapshotCycles, report.Table{
		Title: thousands(e.Size.SnapshotCycles) + " cycles on one id beside an old snapshot",
		Text: "One goroutine, while another session keeps a snapshot open from before the first cycle, so that no dead row can " +
			"be removed.",
	})
}

// endure looks at how a cycle changes with those that came before.
func (e *Env) endure(ctx context.Context, cycles int, table report.Table) ([]report.Table, error) {
	entrants, leave, err := e.enter(ctx, named(baseName, "dbmutex"))
	if err != nil {
		return nil, err
	}
	defer leave()
	const parts = 20
	results, err := inTurn(entrants, parts, func(en *entrant) ([]time.Duration, error) {
		return repeat(max(1, cycles/parts), func() error { return en.Cycle(ctx, "one") })
	})
	if err != nil {
		return nil, err
	}
	table.Text += " A figure is the median of four blocks, each a twentieth of the cycles; the first, which warms up, is " +
		"left out."
	table.Columns = []string{"", "at the start", "in the middle", "at the end", "end to start", "to the bare pair at the end"}
	four := func(entrant, first int) []time.Duration { return results[entrant].blocks[first : first+4] }
	cycle := func(blocks []time.Duration) time.Duration {
		return stats.Quantile(blocks, 0.5) / time.Duration(max(1, cycles/parts))
	}
	for i, en := range entrants {
		start, middle, end := cycle(four(i, 1)), cycle(four(i, parts/2-2)), cycle(four(i, parts-4))
		table.Rows = append(table.Rows, []string{
			en.Name, show(start), show(middle), show(end), showRatio(float64(end) / float64(start)),
			showRatios(four(i, parts-4), four(0, parts-4)),
		})
	}
	return []report.Table{table}, nil
}
