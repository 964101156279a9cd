package scenario

import (
	"context"
	"crypto/rand"
	"fmt"
	"math"
	"slices"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/report"
)

// once measures work that is to be done once: its first run, and the next ones, which find that it is done.
func (e *Env) once(ctx context.Context) ([]report.Table, error) {
	tables, err := e.onceBy(ctx, field{
		contenders: contender.OnceOnPostgres(),
		counts:     "PostgreSQL does not count those that fail.",
	})
	if err != nil || e.MySQL == nil {
		return tables, err
	}
	more, err := e.onceBy(ctx, field{
		contenders: contender.OnceOnMySQL(), on: ", on MySQL",
		counts: "the preparation of a statement is a round trip, and no statement.",
	})
	return append(tables, more...), err
}

func (e *Env) onceBy(ctx context.Context, f field) ([]report.Table, error) {
	entrants, leave, err := e.enter(ctx, f.contenders)
	if err != nil {
		return nil, err
	}
	defer leave()
	first, err := e.operations(ctx, report.Table{
		Title: "Work that is done once: the first run" + f.on,
		Text: "One goroutine does work of an id that was never there, and leaves a record of that. A lock's cycle leaves none. " +
			f.costs(),
	}, entrants, "the bare pair", func(instance contender.Instance) error { return instance.Cycle(ctx, "tick "+rand.Text()) })
	if err != nil {
		return nil, err
	}

	entrants = entrants[1:]
	end, err := e.hold(ctx, entrants, 1)
	defer end()
	if err != nil {
		return nil, err
	}
	again := func(instance contender.Instance) error { return instance.Try(ctx, heldID(1)) }
	next, err := e.operations(ctx, report.Table{
		Title: "Work that is done once: the next runs" + f.on,
		Text: "One goroutine finds that the work of an id is done. The measure is a failing try of a mutex. WAL is what " +
			"PostgreSQL writes to its log for one operation. " + f.costs(),
	}, entrants, "a failing try", again)
	if err != nil {
		return nil, err
	}
	if entrants[0].Store == contender.Postgres {
		next[0].Columns = append(next[0].Columns, "WAL")
		for i, en := range entrants {
			n, err := e.wal(ctx, en, again)
			if err != nil {
				return nil, err
			}
			next[0].Rows[i] = append(next[0].Rows[i], fmt.Sprintf("%d bytes", n))
		}
	}
	return slices.Concat(first, next), nil
}

// wal is how many bytes of its log an operation costs: the least of a few blocks, as the server writes some by itself.
func (e *Env) wal(ctx context.Context, en *entrant, operation func(contender.Instance) error) (int64, error) {
	least := int64(math.MaxInt64)
	for range 3 {
		before, err := e.Postgres.WAL(ctx)
		if err != nil {
			return 0, err
		}
		if _, err := repeat(costRuns, func() error { return operation(en.Instance) }); err != nil {
			return 0, err
		}
		after, err := e.Postgres.WAL(ctx)
		if err != nil {
			return 0, err
		}
		least = min(least, (after-before)/costRuns)
	}
	return least, nil
}
