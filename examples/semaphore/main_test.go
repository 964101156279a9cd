package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/examples/internal/program"
)

// TestSemaphore reads the program's story: all calls are made, and never more than 4 at once.
func TestSemaphore(t *testing.T) {
	program.Each(t, func(t *testing.T, out string) {
		require.Regexp(t, `\n20 calls were made, at most [1-4] at once\.\n$`, out)
		require.NotRegexp(t, `(?m)^([5-9]|\d\d+|-\d+) at once: `, out)
		require.NotRegexp(t, `in slot ([05-9]|\d\d+)`, out)
	})
}
