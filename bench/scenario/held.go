package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/report"
)

func (e *Env) held(ctx context.Context) ([]report.Table, error) {
	var contenders []contender.Contender
	for _, c := range contender.All() {
		if !c.Variant {
			contenders = append(contenders, c, c) // one place stays empty
		}
	}
	entrants, leave, err := e.enter(ctx, contenders)
	if err != nil {
		return nil, err
	}
	defer leave()
	table := report.Table{
		Title:   thousands(e.Size.Held) + " locks held by others",
		Text:    "The uncontended cycle, in turn on an empty place and on one where others hold that many locks.",
		Columns: []string{"", "empty: median", "full: median", "full: p99", "full to empty"},
	}
	var able []*entrant
	var unable [][]string
	for i := 0; i < len(entrants); i += 2 {
		switch err := entrants[i+1].Fill(ctx, e.Size.Held); {
		case err == nil:
			able = append(able, entrants[i], entrants[i+1])
		case errors.Is(err, errors.ErrUnsupported):
			unable = append(unable, []string{entrants[i].Name, "", "cannot: locks are in shared memory", "", ""})
		default:
			return nil, fmt.Errorf("%s: %w", entrants[i].Name, err)
		}
	}
	if err := e.Postgres.Settle(ctx); err != nil {
		return nil, err
	}
	block := func(en *entrant) ([]time.Duration, error) {
		return repeat(e.Size.Block/2, func() error { return en.Cycle(ctx, "one") })
	}
	if err := warmUp(able, block); err != nil {
		return nil, err
	}
	results, err := inTurn(able, max(1, e.Size.Rounds/2), block)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(able); i += 2 {
		empty, full := results[i], results[i+1]
		table.Rows = append(table.Rows, []string{
			able[i].Name, show(empty.median()), show(full.median()), show(full.p99()), showRatios(full.blocks, empty.blocks),
		})
	}
	table.Rows = append(table.Rows, unable...)
	return []report.Table{table}, nil
}
