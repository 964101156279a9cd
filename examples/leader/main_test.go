package main

import (
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/examples/internal/program"
)

// TestLeader reads the program's story: a leader renews and crashes, then each of the others leads, and stops.
func TestLeader(t *testing.T) {
	program.Each(t, func(t *testing.T, out string) {
		line := regexp.MustCompile(`s  (\w+) (leads|still leads|crashes|stops)`)
		var before, ended []string // the line before, and who has ended
		for _, now := range line.FindAllStringSubmatch(out, -1) {
			name, what := now[1], now[2]
			require.NotContains(t, ended, name, "%s", out)
			if what == "crashes" || what == "stops" {
				require.Equal(t, name, before[1], "only the leader ends: %s", out)
				require.Equal(t, what == "crashes", before[2] == "still leads" && len(ended) == 0, "%s", out)
				ended = append(ended, name)
			}
			before = now
		}
		require.ElementsMatch(t, []string{"Anna", "Bert", "Cora"}, ended, "%s", out)
		require.Regexp(t, `crashes \((signal: killed|exit status 1)\)`, out)
	})
}
