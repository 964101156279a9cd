package main

import (
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/examples/internal/program"
)

var story = regexp.MustCompile(`^The slow holder has token (\d+). It pauses, say for a suspended machine.
The next holder has token (\d+). Its write: done.
The slow holder wakes up. Its write: the store has seen token (\d+), and refuses (\d+).
Its release: dbmutex: the lease ended before the work did: that of "report" was lost, and the work was .*s late; somebody .*
The next holder's release: done.
The store's value is "new".
$`)

func TestFencing(t *testing.T) {
	program.Each(t, func(t *testing.T, out string) {
		tokens := story.FindStringSubmatch(out)
		require.NotNil(t, tokens, "%s", out)
		first, err := strconv.Atoi(tokens[1])
		require.NoError(t, err)
		second, err := strconv.Atoi(tokens[2])
		require.NoError(t, err)
		require.Greater(t, second, first)
		require.Equal(t, []string{tokens[2], tokens[1]}, tokens[3:])
	})
}
