package scenario

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/report"
	"github.com/gorm-dbmutex/dbmutex/bench/stats"
)

// listing lists a table of as many leases as the scenario held has, and prunes it.
func (e *Env) listing(ctx context.Context) ([]report.Table, error) {
	postgresDSN, err := e.Postgres.Place(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = e.Postgres.Remove(ctx, postgresDSN) }()
	mysqlDSN := ""
	if e.MySQL != nil {
		if mysqlDSN, err = e.MySQL.Place(ctx); err != nil {
			return nil, err
		}
		defer func() { _ = e.MySQL.Remove(ctx, mysqlDSN) }()
	}
	tables, err := contender.Tables(postgresDSN, mysqlDSN, filepath.Join(e.Folder, "listing.db"))
	if err != nil {
		return nil, err
	}
	result := report.Table{
		Title: "Listing " + thousands(e.Size.Held) + " leases",
		Text: "A page has 100 leases. First all leases are held, then every second, then one in " + thousands(few) +
			", and the others ran out.",
		Columns: []string{"", "what", "median", "p99"},
	}
	for _, table := range tables {
		rows, err := e.listed(ctx, table)
		table.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", table.Name, err)
		}
		result.Rows = append(result.Rows, rows...)
	}
	return []report.Table{result}, nil
}

// few is of how many leases one is held in the end.
const few = 100_000

func (e *Env) listed(ctx context.Context, table *contender.Table) (rows [][]string, err error) {
	db := table.DB.WithContext(ctx)
	measure := func(what string, n int, do func() error) {
		if err != nil {
			return
		}
		var times []time.Duration
		if times, err = repeat(n, do); err == nil {
			rows = append(rows, []string{
				table.Name, what, show(stats.Quantile(times, 0.5)), show(stats.Quantile(times, 0.99)),
			})
		}
	}
	page := func(what string, q dbmutex.LeaseQuery, n int) {
		measure(what, n, func() error {
			_, err := db.Leases(q)
			return err
		})
	}
	const many, seldom = 100, 3
	if err = table.Fill(ctx, e.Size.Held); err == nil {
		err = table.Analyze(ctx)
	}
	middle := fmt.Sprintf("tenant-%04d/", e.Size.Held/2000)
	page("all held: the first page", dbmutex.LeaseQuery{}, many)
	page("all held: a page in the middle", dbmutex.LeaseQuery{After: middle}, many)
	page("all held: with a prefix", dbmutex.LeaseQuery{Prefix: middle}, many)
	one := middle + fmt.Sprintf("job-%07d", e.Size.Held/2)
	page("all held: with a prefix of one lease", dbmutex.LeaseQuery{Prefix: one}, many)
	page("all held: with a prefix of none", dbmutex.LeaseQuery{Prefix: middle + "none"}, many)
	page("all held: the oldest", dbmutex.LeaseQuery{Order: dbmutex.OldestFirst}, seldom)
	page("all held: the first to end", dbmutex.LeaseQuery{Order: dbmutex.EndingFirst}, seldom)
	page("all held: those that ran out", dbmutex.LeaseQuery{State: dbmutex.LeasesExpired}, seldom)
	measure("all held: the figures", seldom, func() error {
		_, err := db.LeaseStats()
		return err
	})
	if err == nil {
		err = table.Expire(ctx, 2)
	}
	for state, name := range []string{"held", "ran out", "all"} {
		page("half held: "+name, dbmutex.LeaseQuery{State: dbmutex.LeaseState(state)}, many)
		page("half held: "+name+", with a prefix", dbmutex.LeaseQuery{State: dbmutex.LeaseState(state), Prefix: middle}, many)
	}
	if err == nil {
		err = table.Expire(ctx, few)
	}
	if err == nil {
		err = table.Analyze(ctx)
	}
	page("few held: held", dbmutex.LeaseQuery{}, seldom)
	page("few held: ran out", dbmutex.LeaseQuery{State: dbmutex.LeasesExpired}, many)
	measure("few held: Prune", 1, func() error {
		_, err := db.Prune()
		return err
	})
	page("few held: held, after Prune", dbmutex.LeaseQuery{}, many)
	return rows, err
}
