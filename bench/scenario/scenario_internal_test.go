package scenario

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
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

func TestContendersHaveNames(t *testing.T) {
	assert.Equal(t, baseName, contender.All()[0].Name)
	seen := map[string]bool{}
	for _, c := range contender.All() {
		assert.False(t, seen[c.Name], c.Name)
		seen[c.Name] = true
	}
	_, ok := contender.ByName("dbmutex")
	assert.True(t, ok)
}
