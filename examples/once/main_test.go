package main

import (
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/examples/internal/program"
)

// TestOnce reads the program's story: a process crashes in the middle of a tick, and each tick succeeds once all the same.
func TestOnce(t *testing.T) {
	program.Each(t, func(t *testing.T, out string) {
		begun, done, crashed := map[string][]string{}, map[string]int{}, ""
		var last []string
		line := regexp.MustCompile(`s  (\w+) (begins|has done|crashes) (\S+)`)
		for _, now := range line.FindAllStringSubmatch(out, -1) {
			name, what, tick := now[1], now[2], now[3]
			switch what {
			case "begins":
				begun[tick] = append(begun[tick], name)
			case "has done":
				require.Contains(t, begun[tick], name, "%s", out)
				done[tick]++
			case "crashes":
				require.Equal(t, name, last[1], "%s", out)
				require.Equal(t, "begins", last[2], "%s", out)
				require.Empty(t, crashed, "%s", out)
				crashed = last[3]
			}
			last = now
		}
		require.NotEmpty(t, crashed, "%s", out)
		require.Greater(t, len(begun[crashed]), 1, "another process runs it: %s", out)
		require.GreaterOrEqual(t, len(done), ticks, "%s", out)
		require.Contains(t, done, crashed, "%s", out)
		for tick, n := range done {
			require.Equal(t, 1, n, "%s: %s", tick, out)
			require.Contains(t, out, tick+" has succeeded: 1\n")
		}
		require.Regexp(t, `crashes in the middle of that \((signal: killed|exit status 1)\)`, out)
	})
}
