//go:build unix

package main

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// frozen runs fn with a database behind a network that can freeze.
func frozen(t *testing.T, fn func(t *testing.T, network *proxy.Proxy, db *dbmutex.DB)) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		fn(t, proxy.New(t, d), d.Mutexes(t, dbmutex.DefaultSettings()))
	})
}

func TestADatabaseThatHangsEndsTheCommandBeforeItsLease(t *testing.T) {
	frozen(t, func(t *testing.T, network *proxy.Proxy, db *dbmutex.DB) {
		beats := `trap 'echo TERM' TERM; echo ready; for i in $(seq 1200); do date +%s.%N; sleep 0.05; done`
		p := begin(t, program(t, network.Database, shell(beats, "--ttl", "15s")...))
		require.Equal(t, "ready", p.line())
		expires := *testdb.Row(t, db, "job").ExpiresAt
		network.Freeze()
		for p.line() != "TERM" {
		}
		// A renewal that was under way may have been done.
		if now := *testdb.Row(t, db, "job").ExpiresAt; now.After(expires) {
			expires = now
		}
		require.True(t, time.Now().Before(expires), "TERM came %v after the lease's end", time.Since(expires))
		require.NotEmpty(t, p.line(), "it has its grace")
		code, stdout := p.code()
		require.Equal(t, 124, code, p.stderr)
		lines := strings.Fields(stdout)
		last, err := strconv.ParseFloat(lines[len(lines)-1], 64)
		require.NoError(t, err)
		require.Less(t, time.Unix(0, int64(last*1e9)).Sub(expires), 4*time.Second, "it ran on")
	})
}

func TestACommandThatObeysTERMStillExits124(t *testing.T) {
	frozen(t, func(t *testing.T, network *proxy.Proxy, _ *dbmutex.DB) {
		script := `trap 'exit 0' TERM; echo ready; ` + lasts
		p := begin(t, program(t, network.Database, shell(script, "--ttl", "9s")...))
		require.Equal(t, "ready", p.line())
		network.Freeze()
		p.requireCode(124)
	})
}

func TestAReleaseThatFailsKeepsTheCommandsCode(t *testing.T) {
	frozen(t, func(t *testing.T, network *proxy.Proxy, db *dbmutex.DB) {
		p := begin(t, program(t, network.Database, shell("echo ready; read x; exit 3", "--ttl", "10m")...))
		require.Equal(t, "ready", p.line())
		network.Freeze()
		ended := time.Now()
		require.NoError(t, p.stdin.Close())
		p.requireCode(3)
		require.Less(t, time.Since(ended), 20*time.Second) // 10 on a machine that has nothing else to do
		require.Contains(t, p.stderr.String(), "the mutex stays taken until its TTL is over")
		testdb.RequireHeld(t, db, "job")
	})
}

func TestADatabaseThatDoesNotAnswerExits125(t *testing.T) {
	frozen(t, func(t *testing.T, network *proxy.Proxy, _ *dbmutex.DB) {
		network.Freeze()
		code, _, stderr := run(t, network.Database, shell("echo ran", "--timeout", "100ms")...)
		require.Equal(t, 125, code)
		require.Contains(t, stderr, "no answer within 100ms")
	})
}
