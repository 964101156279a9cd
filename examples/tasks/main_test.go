package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/examples/internal/program"
)

func TestTasks(t *testing.T) {
	program.Each(t, func(t *testing.T, out string) {
		lines := strings.Split(out, "\n")
		require.Contains(t, []string{"worker 1 builds the report", "worker 2 builds the report"}, lines[0])
		require.Equal(t, []string{"meanwhile 5 tasks were dropped", "the report is built", ""}, lines[1:])
	})
}
