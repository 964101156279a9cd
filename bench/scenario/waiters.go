package scenario

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/report"
)

func (e *Env) waiters(ctx context.Context) ([]report.Table, error) {
	many := e.Size.Waiters
	table := report.Table{
		Title: "One waiter and " + thousands(many),
		Text: fmt.Sprintf("Goroutines of one process wait for %v for a lock that another pool holds throughout. Statements are "+
			"those that the server got meanwhile.", e.Size.Waiting),
		Columns: []string{"", "1 waiter: statements", thousands(many) + " waiters: statements"},
	}
	entrants, leave, err := e.enter(ctx, waiting(contender.All()))
	if err != nil {
		return nil, err
	}
	defer leave()
	for _, en := range entrants {
		if en.KeepsOne {
			table.Rows = append(table.Rows, []string{en.Name, "1", "needs a connection for each"})
			continue
		}
		row := []string{en.Name}
		for _, n := range []int{1, many} {
			statements, err := e.waitInVain(ctx, en, n)
			if err != nil {
				return nil, err
			}
			row = append(row, fmt.Sprint(statements))
		}
		table.Rows = append(table.Rows, row)
	}
	return []report.Table{table}, nil
}

// waitInVain counts the statements of n waiters.
func (e *Env) waitInVain(ctx context.Context, en *entrant, n int) (statements int64, err error) {
	id := fmt.Sprintf("wanted by %d", n)
	err = en.use(func() (err error) {
		end, err := en.elsewhere(ctx, id)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, end()) }()
		before, err := e.statements(ctx, en.Store)
		if err != nil {
			return err
		}
		limited, cancel := context.WithTimeout(ctx, e.Size.Waiting)
		defer cancel()
		acquired := make(chan struct{}, n)
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				if _, err := en.Acquire(limited, id); err == nil {
					acquired <- struct{}{}
				}
			})
		}
		<-limited.Done()
		after, err := e.statements(ctx, en.Store)
		statements = after - before
		wg.Wait()
		if err == nil && len(acquired) > 0 {
			err = fmt.Errorf("%d waiters got a lock that was held", len(acquired))
		}
		return err
	})
	return statements, err
}
