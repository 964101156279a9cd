//go:build unix

package main

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/leaseview"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// ids are those of the next line of a dbmutex watch.
func (p *process) ids() (ids []string) {
	p.t.Helper()
	var d leaseview.Page
	require.NoError(p.t, json.Unmarshal([]byte(p.line()), &d))
	for _, lease := range d.Leases {
		ids = append(ids, lease.LockID)
	}
	return ids
}

func TestWatchWritesALineForEveryChange(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
			p := begin(t, program(t, d, "watch", "j", "--interval", "10ms"))
			require.Empty(t, p.ids())
			lease := testdb.Acquire(t, db, "job")
			require.Equal(t, []string{"job"}, p.ids())
			require.NoError(t, lease.Renew())
			other := testdb.Acquire(t, db, "job 2")
			require.Equal(t, []string{"job", "job 2"}, p.ids())
			testdb.Acquire(t, db, "not watched")
			require.NoError(t, lease.Release())
			require.Equal(t, []string{"job 2"}, p.ids())
			testdb.Expire(t, db, "job 2")
			require.Empty(t, p.ids())
			_ = other.Release()
			require.NoError(t, db.Mutex("not watched").ForceRelease())
			require.NoError(t, p.Process.Signal(sig))
			code, stdout := p.code()
			require.Zero(t, code, p.stderr)
			require.Empty(t, stdout)
			require.Empty(t, p.stderr.String())
		}
	})
}

func TestWatchGoesOnWhenTheDatabaseAnswersAgain(t *testing.T) {
	frozen(t, func(t *testing.T, network *proxy.Proxy, db *dbmutex.DB) {
		p := begin(t, program(t, network.Database, "watch", "--interval", "10ms", "--timeout", "3s"))
		require.Empty(t, p.ids())
		network.Freeze()
		held(t, db)
		eventually(t, "it complains", func() bool { return strings.Contains(p.stderr.String(), "the database does not answer") })
		network.Thaw()
		require.Equal(t, []string{"job"}, p.ids())
		require.NoError(t, p.Process.Signal(syscall.SIGTERM))
		p.requireCode(0)
	})
}
