package scenario

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/report"
	"github.com/gorm-dbmutex/dbmutex/bench/stats"
)

const (
	leadTTL = 2 * time.Second
	leader  = "leader"

	takeOverReach = leadTTL + 100*time.Millisecond
	handOverReach = 20 * time.Millisecond // with pgnotify
)

// lead measures for how long there is no leader.
func (e *Env) lead(ctx context.Context) ([]report.Table, error) {
	result := report.Table{
		Title: "A change of leaders",
		Text: fmt.Sprintf("Mutex.Lead with a TTL of %v. A take-over is from the moment that a process which leads is killed, a "+
			"hand-over from the moment that one resigns, until another leads.", leadTTL),
		Columns: []string{"", "take-over: median", "longest", "reach", "hand-over: median", "p99", "reach"},
	}
	tables, leave, err := e.tables(ctx, "lead")
	if err != nil {
		return nil, err
	}
	defer leave()
	rivals, leaveRivals, err := e.rivals(tables)
	if err != nil {
		return nil, err
	}
	defer leaveRivals()
	for i, table := range tables {
		ways := []bool{false}
		if table.Notifies() {
			ways = []bool{true, false}
		}
		for _, notify := range ways {
			row, err := e.leadOn(ctx, table, rivals[i], notify)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", table.Name, err)
			}
			result.Rows = append(result.Rows, row)
		}
	}
	return []report.Table{result}, nil
}

// rivals are other pools on the same tables, as other processes would have.
func (e *Env) rivals(tables []*contender.Table) (rivals []*contender.Table, leave func(), err error) {
	leave = func() {
		for _, rival := range rivals {
			rival.Close()
		}
	}
	for _, table := range tables {
		rival, err := contender.OpenTable(table.Name, table.DSN)
		if err != nil {
			leave()
			return nil, nil, err
		}
		rivals = append(rivals, rival)
	}
	return rivals, leave, nil
}

func (e *Env) leadOn(ctx context.Context, one, other *contender.Table, notify bool) (row []string, err error) {
	name := one.Name
	if notify {
		name += ", with pgnotify"
		contender.Notify(true)
		defer contender.Notify(false)
	}
	takeOvers, err := repeatTaking(e.Size.TakeOvers, func() (time.Duration, error) { return takeOver(ctx, one, notify) })
	if err != nil {
		return nil, err
	}
	pair := []*contender.Table{one, other}
	handOvers, err := e.handOvers(ctx, pair)
	if err != nil {
		return nil, err
	}
	reached := func(longest, reach time.Duration) string {
		if longest > reach {
			return show(reach) + ": missed"
		}
		return show(reach) + ": kept"
	}
	handOver := ""
	if notify {
		handOver = reached(stats.Quantile(handOvers, 0.99), handOverReach)
	}
	return []string{
		name, show(stats.Quantile(takeOvers, 0.5)), show(slices.Max(takeOvers)), reached(slices.Max(takeOvers), takeOverReach),
		show(stats.Quantile(handOvers, 0.5)), show(stats.Quantile(handOvers, 0.99)), handOver,
	}, nil
}

func repeatTaking(n int, operation func() (time.Duration, error)) (times []time.Duration, err error) {
	for range n {
		took, err := operation()
		if err != nil {
			return nil, err
		}
		times = append(times, took)
	}
	return times, nil
}

// campaign is one call of Lead.
type campaign struct {
	leads  chan time.Time // when it leads
	resign func()
	ended  chan error
}

func campaignOn(ctx context.Context, table *contender.Table) *campaign {
	c := &campaign{leads: make(chan time.Time, 1), ended: make(chan error, 1)}
	ctx, c.resign = context.WithCancel(ctx)
	mutex := table.WithContext(ctx).Mutex(leader, dbmutex.WithTTL(leadTTL))
	go func() {
		c.ended <- mutex.Lead(func(ctx context.Context) error {
			c.leads <- time.Now()
			<-ctx.Done()
			return nil
		})
	}()
	return c
}

// await waits until it leads.
func (c *campaign) await(ctx context.Context) (since time.Time, err error) {
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	select {
	case since = <-c.leads:
	case err = <-c.ended:
		err = errors.Join(errors.New("the campaign has ended"), err)
	case <-limited.Done():
		err = limited.Err()
	}
	return since, err
}

// end resigns.
func (c *campaign) end() error {
	c.resign()
	return <-c.ended
}

// takeOver kills a process that leads, at any moment between two renewals, and waits for the next leader.
func takeOver(ctx context.Context, table *contender.Table, notify bool) (time.Duration, error) {
	program, err := os.Executable()
	if err != nil {
		return 0, err
	}
	text, err := json.Marshal(job{Leads: table.Name, Notify: notify, Where: contender.Where{DSN: table.DSN}})
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, program)
	cmd.Env, cmd.Stderr = append(os.Environ(), jobVariable+"="+string(text)), os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	defer func() { _ = stdin.Close() }()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		return 0, err
	}
	next := campaignOn(ctx, table)
	time.Sleep(leadTTL/4 + rand.N(leadTTL))
	killed := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		return 0, err
	}
	since, err := next.await(ctx)
	return since.Sub(killed), errors.Join(err, next.end())
}

// runLeader is the job of a process that leads until it is killed, or the parent has gone.
func runLeader(j job) error {
	contender.Notify(j.Notify)
	table, err := contender.OpenTable(j.Leads, j.Where.DSN)
	if err != nil {
		return err
	}
	defer table.Close()
	c := campaignOn(context.Background(), table)
	if _, err := c.await(context.Background()); err != nil {
		return err
	}
	if _, err := os.Stdout.WriteString(ready); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return c.end()
}

// handOvers lets two pools resign in turn.
func (e *Env) handOvers(ctx context.Context, pair []*contender.Table) (times []time.Duration, err error) {
	leads := campaignOn(ctx, pair[0])
	if _, err := leads.await(ctx); err != nil {
		return nil, err
	}
	for i := range e.Size.HandOvers {
		next := campaignOn(ctx, pair[(i+1)%2])
		time.Sleep(100*time.Millisecond + rand.N(100*time.Millisecond)) // until it waits
		resigned := time.Now()
		leads.resign()
		since, err := next.await(ctx)
		if err = errors.Join(err, <-leads.ended); err != nil {
			return nil, err
		}
		times = append(times, since.Sub(resigned))
		leads = next
	}
	return times, leads.end()
}
