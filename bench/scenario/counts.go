package scenario

import (
	"context"
	"fmt"
	"runtime"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/server"
)

// costs are those of one operation.
type costs struct{ statements, roundTrips, allocations float64 }

const (
	costWarmUp = 10
	costRuns   = 100
)

// costs counts statements on the server and, on another pool with a proxy before the server, round trips.
func (e *Env) costs(ctx context.Context, en *entrant, operation func(contender.Instance) error) (c costs, err error) {
	times := func(n int, instance contender.Instance) error {
		_, err := repeat(n, func() error { return operation(instance) })
		return err
	}
	err = en.use(func() error {
		if err := times(costWarmUp, en.Instance); err != nil {
			return err
		}
		before, err := e.statements(ctx, en.Store)
		if err != nil {
			return err
		}
		var start, end runtime.MemStats
		runtime.ReadMemStats(&start)
		if err := times(costRuns, en.Instance); err != nil {
			return err
		}
		runtime.ReadMemStats(&end)
		after, err := e.statements(ctx, en.Store)
		c.statements = float64(after-before) / costRuns
		c.allocations = float64(end.Mallocs-start.Mallocs) / costRuns
		if err != nil {
			return err
		}

		proxy, instance, err := e.throughProxy(ctx, en)
		if err != nil {
			return err
		}
		defer proxy.Close()
		defer instance.Close()
		if err := times(costWarmUp, instance); err != nil {
			return err
		}
		trips := proxy.RoundTrips()
		err = times(costRuns, instance)
		c.roundTrips = float64(proxy.RoundTrips()-trips) / costRuns
		return err
	})
	return c, err
}

func (e *Env) throughProxy(ctx context.Context, en *entrant) (*server.Proxy, contender.Instance, error) {
	address := en.where.Redis
	if en.Store == contender.Postgres {
		address = e.Postgres.Address()
	}
	proxy, err := server.NewProxy(address)
	if err != nil {
		return nil, nil, err
	}
	where := en.where
	if en.Store == contender.Postgres {
		where.DSN = e.Postgres.Through(where.DSN, proxy)
	} else {
		where.Redis = proxy.Addr()
	}
	instance, err := en.Open(ctx, where)
	if err != nil {
		proxy.Close()
	}
	return proxy, instance, err
}

// statements is how many the contenders have sent to a server so far.
func (e *Env) statements(ctx context.Context, store contender.Store) (int64, error) {
	if store == contender.Postgres {
		return e.Postgres.Statements(ctx)
	}
	return e.Redis[store].Commands(ctx)
}

func showCount(n float64) string { return fmt.Sprintf("%.2f", n) }
