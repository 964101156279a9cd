package scenario

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestBlocksAreInTurn(t *testing.T) {
	var order strings.Builder
	own := func(name string) *entrant {
		return &entrant{Contender: contender.Contender{Name: name, Switch: func(on bool) {
			if !on {
				order.WriteString(" ")
			}
		}}}
	}
	results, err := inTurn([]*entrant{own("a"), own("b"), own("c")}, 3, func(en *entrant) ([]time.Duration, error) {
		order.WriteString(en.Name)
		return []time.Duration{time.Duration(en.Name[0])}, nil
	})
	require.NoError(t, err)
	names := strings.Fields(order.String())
	for round := range 3 {
		assert.ElementsMatch(t, []string{"a", "b", "c"}, names[3*round:3*round+3])
	}
	for i, name := range "abc" {
		assert.Equal(t, []time.Duration{time.Duration(name), time.Duration(name), time.Duration(name)}, results[i].times)
		assert.Len(t, results[i].blocks, 3)
	}
}

func TestAWaitThatTheEndCutsShortIsCounted(t *testing.T) {
	where := contender.Where{DSN: testdb.Postgres(t).DSN}
	for _, c := range fair() {
		if c.Store != contender.Postgres {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			en := &entrant{Contender: c, where: where}
			require.NoError(t, en.use(func() (err error) {
				en.Instance, err = c.Open(t.Context(), where)
				require.NoError(t, err)
				defer en.Close()
				require.NoError(t, en.connect(job{Waiters: 2}))
				end, err := en.elsewhere(t.Context(), "hot")
				require.NoError(t, err)

				spans, err := en.compete(job{First: 3, Waiters: 2, Length: 50 * time.Millisecond})

				require.NoError(t, err)
				require.Len(t, spans, 2)
				assert.ElementsMatch(t, []int{3, 4}, []int{spans[0].Waiter, spans[1].Waiter})
				for _, span := range spans {
					assert.Zero(t, span.Got)
					assert.Greater(t, span.Done, span.Asked)
					assert.LessOrEqual(t, span.Done-span.Asked, int64(50*time.Millisecond))
				}
				return end()
			}))
		})
	}
}

func TestSpansHaveTheWaitAndTheHolding(t *testing.T) {
	where := contender.Where{DSN: testdb.Postgres(t).DSN}
	en := &entrant{Contender: fair()[0], where: where}
	var err error
	en.Instance, err = en.Open(t.Context(), where)
	require.NoError(t, err)
	defer en.Close()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	span, err := en.once(ctx, job{Hold: 20 * time.Millisecond})

	require.NoError(t, err)
	assert.Greater(t, span.Got, span.Asked)
	assert.GreaterOrEqual(t, span.Done-span.Got, int64(20*time.Millisecond))
}

func TestAWaitThatWasCutShortIsMarked(t *testing.T) {
	assert.Equal(t, "≥ 2.00 s", showWait(2*time.Second, 2*time.Second))
	assert.Equal(t, "2.00 s", showWait(2*time.Second, time.Second), "another was cut short")
	assert.Equal(t, "2.00 s", showWait(2*time.Second, 0))
	assert.Equal(t, "0 µs", showWait(0, 0))
}

func TestTheBoundOfAWait(t *testing.T) {
	const bound = 4*9*5*time.Millisecond + 20*40*time.Millisecond // 9 clients hold 5 ms, 10 times 40 ms there and back
	assert.Equal(t, "980.00 ms: kept", showBound(bound, 9, 40*time.Millisecond))
	assert.Equal(t, "980.00 ms: exceeded", showBound(bound+1, 9, 40*time.Millisecond))
}

func TestContendersHaveNames(t *testing.T) {
	for _, all := range [][]contender.Contender{contender.All(), contender.OnMySQL()} {
		assert.Equal(t, baseName, all[0].Name)
		seen := map[string]bool{}
		for _, c := range all {
			assert.False(t, seen[c.Name], c.Name)
			seen[c.Name] = true
			found, ok := contender.ByName(c.Store, c.Name)
			assert.True(t, ok)
			assert.Equal(t, c.Note, found.Note)
		}
	}
	for _, c := range fair() {
		assert.True(t, c.Waits, c.Name)
	}
}
