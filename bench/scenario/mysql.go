package scenario

import (
	"context"
	"slices"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/report"
)

func onMySQL() field {
	return field{
		contenders: contender.OnMySQL(),
		on:         ", on MySQL",
		try: "The measure is a whole cycle of the bare pair: its try is an INSERT that fails, which commits nothing and so " +
			"does not wait for the disk.",
		counts: "the preparation of a statement is a round trip, and no statement.",
	}
}

// mysql measures on a server of its own what other scenarios measure on the others.
func (e *Env) mysql(ctx context.Context) ([]report.Table, error) {
	f := onMySQL()
	cycle, err := e.uncontendedBy(ctx, f)
	if err != nil {
		return nil, err
	}
	ids, err := e.sixteenIDsBy(ctx, f)
	if err != nil {
		return nil, err
	}
	hot, err := e.handOffBetween(ctx, f, 2)
	if err != nil {
		return nil, err
	}
	f.contenders = append([]contender.Contender{wholePair(f.contenders[0])}, f.contenders...)
	try, err := e.failingTryBy(ctx, f)
	return slices.Concat(cycle, try, ids, []report.Table{hot}), err
}

// wholePair is a contender whose try is a cycle.
func wholePair(pair contender.Contender) contender.Contender {
	open := pair.Open
	pair.Name += ", a whole cycle"
	pair.Open = func(ctx context.Context, where contender.Where) (contender.Instance, error) {
		instance, err := open(ctx, where)
		return whole{instance}, err
	}
	return pair
}

type whole struct{ contender.Instance }

func (w whole) Try(ctx context.Context, id string) error { return w.Cycle(ctx, "free, not "+id) }
