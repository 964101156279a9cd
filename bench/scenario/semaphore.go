package scenario

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/report"
)

// slots are those of the semaphores that are measured.
var slots = []int{4, 16, 64}

// semaphore compares semaphores with a mutex of the same table.
func (e *Env) semaphore(ctx context.Context) ([]report.Table, error) {
	tables, leave, err := e.tables(ctx, "semaphore")
	if err != nil {
		return nil, err
	}
	defer leave()
	result := report.Table{
		Title: "Semaphores, in a table where " + thousands(e.Size.Permits) + " locks are held by others",
		Text: "One goroutine acquires and releases a lease while no other is held, and is refused one while all are held. The " +
			"measure is a mutex in the same table.",
		Columns: []string{
			"", "slots", "cycle: median", "p99", "to the mutex", "full, a try: median", "p99", "to the mutex",
		},
	}
	for i, table := range tables {
		rows, err := e.semaphoresOn(ctx, table, i == 0)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", table.Name, err)
		}
		result.Rows = append(result.Rows, rows...)
	}
	return []report.Table{result}, nil
}

// tables are those of all databases, empty.
func (e *Env) tables(ctx context.Context, name string) (tables []*contender.Table, leave func(), err error) {
	postgresDSN, err := e.Postgres.Place(ctx)
	if err != nil {
		return nil, nil, err
	}
	mysqlDSN := ""
	if e.MySQL != nil {
		mysqlDSN, err = e.MySQL.Place(ctx)
	}
	leave = func() {
		for _, table := range tables {
			table.Close()
		}
		_ = e.Postgres.Remove(ctx, postgresDSN)
		if mysqlDSN != "" {
			_ = e.MySQL.Remove(ctx, mysqlDSN)
		}
	}
	if err == nil {
		tables, err = contender.Tables(postgresDSN, mysqlDSN, "file:"+filepath.Join(e.Folder, name+".db")+"?_journal_mode=WAL")
	}
	if err != nil {
		leave()
		return nil, nil, err
	}
	return tables, leave, nil
}

// semaphoresOn measures those on one table and, beside them, those of Redis.
func (e *Env) semaphoresOn(ctx context.Context, table *contender.Table, besideRedis bool) (rows [][]string, err error) {
	if err := table.Fill(ctx, e.Size.Permits); err != nil {
		return nil, err
	}
	if err := table.Analyze(ctx); err != nil {
		return nil, err
	}
	entrants := []*entrant{{Contender: contender.Contender{Name: "mutex, " + table.Name}, Instance: table.Leases(0)}}
	counts := append([]int{1}, slots...)
	for _, n := range slots {
		entrants = append(entrants, &entrant{
			Contender: contender.Contender{Name: "semaphore, " + table.Name}, Instance: table.Leases(n),
		})
	}
	if besideRedis {
		var others []contender.Contender
		for _, store := range []contender.Store{contender.DurableRedis, contender.VolatileRedis} {
			for _, n := range slots {
				others = append(others, contender.RedisSemaphore(store, n))
			}
		}
		more, leave, err := e.enter(ctx, others)
		if err != nil {
			return nil, err
		}
		defer leave()
		entrants = append(entrants, more...)
		for range len(more) / len(slots) {
			counts = append(counts, slots...)
		}
	}
	for _, en := range entrants {
		if err := en.Fill(ctx, 1); err != nil {
			return nil, fmt.Errorf("%s: %w", en.Name, err)
		}
	}
	measure := func(operation func(contender.Instance) error) ([]measured, error) {
		block := func(en *entrant) ([]time.Duration, error) {
			return repeat(e.Size.Block, func() error { return operation(en.Instance) })
		}
		if err := warmUp(entrants, block); err != nil {
			return nil, err
		}
		return inTurn(entrants, e.Size.Rounds, block)
	}
	cycles, err := measure(func(instance contender.Instance) error { return instance.Cycle(ctx, "one") })
	if err != nil {
		return nil, err
	}
	tries, err := measure(func(instance contender.Instance) error { return instance.Try(ctx, contender.Full) })
	if err != nil {
		return nil, err
	}
	for i, en := range entrants {
		rows = append(rows, []string{
			en.Name, fmt.Sprint(counts[i]),
			show(cycles[i].median()), show(cycles[i].p99()), showRatios(cycles[i].blocks, cycles[0].blocks),
			show(tries[i].median()), show(tries[i].p99()), showRatios(tries[i].blocks, tries[0].blocks),
		})
	}
	return rows, nil
}
