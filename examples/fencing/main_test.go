package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/examples/internal/program"
)

func TestFencing(t *testing.T) {
	out := program.Output(t)
	require.Regexp(t, `^The slow holder has token 1. It pauses, say for a suspended machine.
The next holder has token 2. Its write: done.
The slow holder wakes up. Its write: the store has seen token 2, and refuses 1.
Its release: dbmutex: the lease ended before the work did: that of "report" was lost, and the work was .*s late; somebody .*
The next holder's release: done.
The store's value is "new".
$`, out)
}
