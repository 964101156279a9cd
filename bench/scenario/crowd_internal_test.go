package scenario

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/report"
	"github.com/gorm-dbmutex/dbmutex/bench/stats"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestSideBySideEachHasItsOwnAndEnds(t *testing.T) {
	const lead, until = 5 * time.Millisecond, 20 * time.Millisecond
	var of [3]atomic.Int64
	operations, err := sideBySide(len(of), lead, until, func(i int) error {
		of[i].Add(1)
		time.Sleep(time.Millisecond)
		return nil
	})
	require.NoError(t, err)
	all := 0
	for i := range of {
		assert.Positive(t, of[i].Load(), "goroutine %d", i)
		all += int(of[i].Load())
	}
	assert.Len(t, operations, all)
	for _, o := range operations {
		assert.LessOrEqual(t, o.Began, until)
		assert.GreaterOrEqual(t, o.Ended, o.Began+time.Millisecond)
	}
	last := slices.MaxFunc(operations, func(a, b stats.Operation) int { return int(a.Began - b.Began) })
	assert.GreaterOrEqual(t, last.Began, lead, "they go on after the start")
}

func TestSideBySideTellsEveryFailure(t *testing.T) {
	failures := []error{errors.New("first"), errors.New("second")}
	_, err := sideBySide(2, 0, time.Hour, func(i int) error { return failures[i] })
	assert.ErrorIs(t, err, failures[0])
	assert.ErrorIs(t, err, failures[1])
}

func TestACrowdIsMeasuredInRounds(t *testing.T) {
	e := &Env{Size: Size{CrowdRounds: 3, Crowd: 10 * time.Millisecond}}
	entrants := []*entrant{{Contender: contender.Contender{Name: "a"}}, {Contender: contender.Contender{Name: "b"}}}
	all, err := e.crowd(entrants, 2, func(_ *entrant, i int) error {
		if i > 1 {
			return fmt.Errorf("there is no goroutine %d", i)
		}
		time.Sleep(time.Millisecond)
		return nil
	})
	require.NoError(t, err)
	require.Len(t, all, 2)
	for _, c := range all {
		assert.Len(t, c.rates, 3, "one of each round")
		assert.Len(t, c.medians, 3)
		assert.Len(t, c.p99s, 3)
		assert.GreaterOrEqual(t, c.median(), time.Millisecond)
	}

	wrong := errors.New("wrong")
	err = e.crowdTable(&report.Table{}, entrants, []int{16}, func(*entrant, int) error { return wrong })
	require.ErrorIs(t, err, wrong)
	assert.ErrorContains(t, err, "16 goroutines")
}

func TestACrowdIsComparedWithTheFirst(t *testing.T) {
	const ms = time.Millisecond
	entrants := []*entrant{
		{Contender: contender.Contender{Name: "pair"}}, {Contender: contender.Contender{Name: "ours", Own: true}},
	}
	all := []crowded{
		{
			measured: measured{times: []time.Duration{ms, 3 * ms}},
			rates:    []float64{100, 200}, medians: []time.Duration{2 * ms, ms}, p99s: []time.Duration{4 * ms, 4 * ms},
		},
		{
			measured: measured{times: []time.Duration{ms, 2 * ms}},
			rates:    []float64{400, 400}, medians: []time.Duration{ms, ms}, p99s: []time.Duration{ms, 2 * ms},
		},
	}
	table := report.Table{Columns: crowdColumns, Chart: &report.Chart{}}
	addCrowd(&table, entrants, 16, all)
	addCrowd(&table, entrants, 64, all)

	require.Len(t, table.Rows, 4)
	for _, row := range table.Rows {
		require.Len(t, row, len(table.Columns))
	}
	assert.Equal(t, []string{
		"pair", "16", "150", "1.00 (1.00–1.00)", "1.00 ms", "1.00 (1.00–1.00)", "3.00 ms", "1.00 (1.00–1.00)",
	}, table.Rows[0])
	assert.Equal(t, []string{
		"ours", "64", "400", "3.00 (2.00–4.00)", "1.00 ms", "0.75 (0.50–1.00)", "2.00 ms", "0.38 (0.25–0.50)",
	}, table.Rows[3])
	assert.Equal(t, []report.Line{
		{Name: "pair", At: []report.XY{{X: 16, Y: 1}, {X: 64, Y: 1}}},
		{Name: "ours", At: []report.XY{{X: 16, Y: 3}, {X: 64, Y: 3}}, Own: true},
	}, table.Chart.Lines)
}

func TestAllAreRefusedTheLocksOfACrowd(t *testing.T) {
	const many = contender.Pool + 2 // more than a pool of connections could keep
	e := &Env{Folder: t.TempDir()}
	where := contender.Where{DSN: testdb.Postgres(t).DSN}
	var entrants []*entrant
	for _, c := range named("bare pair", "dbmutex", "advisory lock") {
		en := &entrant{Contender: c, where: where}
		var err error
		en.Instance, err = c.Open(t.Context(), where)
		require.NoError(t, err)
		defer en.Close()
		entrants = append(entrants, en)
	}
	files, leave, err := e.enter(t.Context(), contender.CrowdOnSQLite())
	require.NoError(t, err)
	defer leave()
	require.Len(t, files, len(contender.CrowdOnSQLite()))
	entrants = append(entrants, files...)

	end, err := e.hold(t.Context(), entrants, many)

	defer end()
	require.NoError(t, err)
	for _, en := range entrants {
		for i := range many {
			require.NoError(t, en.Try(t.Context(), heldID(i+1)), "%s: %d", en.Name, i+1)
		}
		require.Error(t, en.Try(t.Context(), heldID(many+1)), "%s: a free lock", en.Name)
		require.NoError(t, en.Cycle(context.Background(), "free"), en.Name)
	}
}
