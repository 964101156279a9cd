package scenario

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/report"
)

func (e *Env) sqlite(ctx context.Context) ([]report.Table, error) {
	table := report.Table{
		Title:   "SQLite in WAL mode",
		Text:    "The uncontended cycle on files of their own. With synchronous=NORMAL a power cut can undo the last cycles.",
		Columns: []string{"", "synchronous", "median", "p99", "to the bare statements, prepared", "to the bare statements"},
	}
	for _, synchronous := range []string{"FULL", "NORMAL"} {
		rows, err := e.sqliteRows(ctx, synchronous)
		if err != nil {
			return nil, err
		}
		table.Rows = append(table.Rows, rows...)
	}
	return []report.Table{table}, nil
}

func (e *Env) sqliteRows(ctx context.Context, synchronous string) (rows [][]string, err error) {
	var entrants []*entrant
	for i, c := range contender.OnSQLite() {
		file := filepath.Join(e.Folder, fmt.Sprintf("%s-%d.db", synchronous, i))
		instance, err := c.Open(ctx, contender.Where{DSN: "file:" + file + "?_journal_mode=WAL&_synchronous=" + synchronous})
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", c.Name, err)
		}
		defer instance.Close()
		entrants = append(entrants, &entrant{Contender: c, Instance: instance})
	}
	block := func(en *entrant) ([]time.Duration, error) {
		return repeat(e.Size.Block, func() error { return en.Cycle(ctx, "one") })
	}
	if err := warmUp(entrants, block); err != nil {
		return nil, err
	}
	results, err := inTurn(entrants, e.Size.Rounds, block)
	if err != nil {
		return nil, err
	}
	for i, en := range entrants {
		rows = append(rows, []string{
			en.Name, synchronous, show(results[i].median()), show(results[i].p99()),
			showRatios(results[i].blocks, results[0].blocks), showRatios(results[i].blocks, results[1].blocks),
		})
	}
	return rows, nil
}
