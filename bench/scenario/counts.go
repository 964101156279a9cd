package scenario

import (
	"context"
	"fmt"
	"runtime"
	"time"

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

		proxy, where, err := e.through(en, 0)
		if err != nil {
			return err
		}
		defer proxy.Close()
		instance, err := en.Open(ctx, where)
		if err != nil {
			return err
		}
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

// through is an entrant's place by way of a proxy, with a delay each way.
func (e *Env) through(en *entrant, delay time.Duration) (*server.Proxy, contender.Where, error) {
	where, address := en.where, en.where.Redis
	database := e.database(en.Store)
	if database != nil {
		address = database.Address()
	}
	proxy, err := server.NewProxy(address, delay)
	if err != nil {
		return nil, where, err
	}
	if database != nil {
		where.DSN = database.Through(where.DSN, proxy)
	} else {
		where.Redis = proxy.Addr()
	}
	return proxy, where, nil
}

// statements is how many the contenders have sent to a server so far.
func (e *Env) statements(ctx context.Context, store contender.Store) (int64, error) {
	if database := e.database(store); database != nil {
		return database.Statements(ctx)
	}
	return e.Redis[store].Commands(ctx)
}

func showCount(n float64) string { return fmt.Sprintf("%.2f", n) }
