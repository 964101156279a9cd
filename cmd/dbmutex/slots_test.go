//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/leaseview"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestNeverMoreCommandsRunThanThereAreSlots(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		name := filepath.Join(t.TempDir(), "witness")
		var all []*process
		for range 8 {
			cmd := program(t, d, "run", "--slots", "2", "--wait", "forever", "job", "--", os.Args[0])
			cmd.Env = append(cmd.Env, asWitness+"="+name, asWitness+"_MANY=2")
			all = append(all, begin(t, cmd))
		}
		for _, p := range all {
			p.requireCode(0)
		}
		require.NoFileExists(t, name+".overlap")
		testdb.RequireFree(t, db, "job")
	})
}

func TestEachCommandHasASlotOfItsOwn(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		seen := map[string]*process{}
		for range 2 {
			cmd := program(t, d, shell(`echo $DBMUTEX_SLOT $DBMUTEX_ID; read x`, "--slots", "2")...)
			cmd.Env = append(cmd.Env, "DBMUTEX_SLOT=other")
			p := begin(t, cmd)
			seen[p.line()] = p
		}
		require.Contains(t, seen, "1 job")
		require.Contains(t, seen, "2 job")
		for _, flags := range [][]string{nil, {"-w", "100ms"}} {
			code, stdout, stderr := run(t, d, shell("echo ran", append(flags, "--slots", "2")...)...)
			require.Equal(t, 75, code)
			require.Empty(t, stdout)
			require.Contains(t, stderr, `all 2 slots of "job" are held, one of them by `)
			require.NotContains(t, stderr, "x1f")
		}
		cmd := program(t, d, shell("echo $DBMUTEX_SLOT")...)
		cmd.Env = append(cmd.Env, "DBMUTEX_SLOT=other")
		code, stdout := begin(t, cmd).code()
		require.Zero(t, code, "the mutex of that id is another one")
		require.Equal(t, "\n", stdout)
		p := seen["1 job"]
		require.NoError(t, p.stdin.Close())
		p.requireCode(1)
		code, stdout, _ = run(t, d, shell("echo $DBMUTEX_SLOT", "--slots", "2")...)
		require.Zero(t, code)
		require.Equal(t, "1\n", stdout)
	})
}

func TestASlotThatIsLostEndsItsCommand(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		p := begin(t, program(t, d, shell("echo ready; exec sleep 60", "--slots", "2", "--ttl", "3s")...))
		require.Equal(t, "ready", p.line())
		require.NoError(t, db.Semaphore("job", 2).ForceRelease())
		p.requireCode(124)
	})
}

// slotted takes slots 1 to 3 of "job", of which 2 runs out, and the mutexes "job" and "job 2".
func slotted(t *testing.T, db *dbmutex.DB) {
	testdb.Acquire(t, db, "job", dbmutex.WithHolder("mutex"), dbmutex.WithTTL(time.Hour))
	testdb.Acquire(t, db, "job 2", dbmutex.WithHolder("other"), dbmutex.WithTTL(time.Hour))
	for n := range 3 {
		_, err := db.Semaphore("job", n+1, dbmutex.WithHolder(fmt.Sprint("permit ", n+1)), dbmutex.WithTTL(time.Hour)).Acquire()
		require.NoError(t, err)
	}
	holders, err := db.Semaphore("job", 1).Holders()
	require.NoError(t, err)
	require.Len(t, holders, 3)
	testdb.Expire(t, db, "job\x1f2")
}

func TestASemaphoreIsListedAsOneMutexWithItsHolders(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		slotted(t, db)
		code, stdout, stderr := run(t, d, "list")
		require.Zero(t, code, stderr)
		lines := strings.Split(strings.TrimSpace(stdout), "\n")
		require.Len(t, lines, 6)
		for i, want := range []string{`MUTEX`, `job       mutex  `, `job       2 holders`,
			`  slot 1  permit 1 .*[0-9] m?s +(59 min|1 h)`, `  slot 3  permit 3  `, `job 2     other  `} {
			require.Regexp(t, "^"+want, lines[i])
		}
		_, stdout, _ = run(t, d, "list", "--state", "all")
		require.Contains(t, stdout, "\njob       2 holders, 1 ran out")
		require.Regexp(t, `\n  slot 2 +permit 2 .* ran out `, stdout)
		_, stdout, _ = run(t, d, "list", "--state", "expired")
		require.Contains(t, stdout, "\njob       1 ran out")
		_, stdout, _ = run(t, d, "list", "-o", "ids")
		require.Equal(t, "job\njob 2\n", stdout)
		_, stdout, _ = run(t, d, "list", "--order", "oldest", "-o", "ids")
		require.Equal(t, "job\njob 2\n", stdout)

		code, stdout, _ = run(t, d, "list", "-o", "json")
		require.Zero(t, code)
		require.Equal(t, 2, strings.Count(stdout, `"slot":`), "only slots have one")
		require.NotContains(t, stdout, "next_slot")
		var all []string
		for args := []string{}; ; {
			code, stdout, _ := run(t, d, append([]string{"list", "-o", "json", "--limit", "1", "--state", "all"}, args...)...)
			require.Zero(t, code)
			var got leaseview.Page
			require.NoError(t, json.Unmarshal([]byte(stdout), &got))
			require.Len(t, got.Leases, 1)
			all = append(all, fmt.Sprint(got.Leases[0].LockID, " ", got.Leases[0].Slot))
			if got.Next == nil {
				break
			}
			args = []string{"--after", *got.Next, "--after-slot", fmt.Sprint(got.NextSlot)}
		}
		require.Equal(t, []string{"job 0", "job 1", "job 2", "job 3", "job 2 0"}, all)
		_, _, stderr = run(t, d, "list", "--limit", "2")
		require.Equal(t, "dbmutex: more follow: --after \"job\" --after-slot 1\n", stderr)
	})
}

func TestShowSaysWhoHasWhichSlot(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		slotted(t, db)
		require.NoError(t, db.Mutex("job").ForceRelease())
		code, stdout, stderr := run(t, d, "show", "job")
		require.Zero(t, code, stderr)
		require.Equal(t, 2, strings.Count(stdout, "mutex     job\n"))
		require.Contains(t, stdout, "slot      1\nstate     held\nholder    permit 1\nheld for ")
		require.Contains(t, stdout, "\n\nmutex     job\nslot      3\n")
		_, stdout, _ = run(t, d, "show", "job", "-o", "json")
		var got leaseview.Page
		require.NoError(t, json.Unmarshal([]byte(stdout), &got))
		require.Len(t, got.Leases, 2)
		for range 2 {
			require.NoError(t, db.Semaphore("job", 1).ForceRelease())
		}
		code, stdout, _ = run(t, d, "show", "job")
		require.Equal(t, 1, code)
		require.Equal(t, "\"job\" is not held\n", stdout)
		long := strings.Repeat("x", 256) // no semaphore has such an id
		testdb.Acquire(t, db, long)
		code, _, stderr = run(t, d, "show", long)
		require.Zero(t, code, stderr)
	})
}

func TestReleaseEndsExactlyOneSlot(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		slotted(t, db)
		require.NoError(t, db.Mutex("job").ForceRelease())
		holders, err := db.Semaphore("job", 1).Holders()
		require.NoError(t, err)
		code, _, stderr := run(t, d, "release", "job", "--force", "--yes")
		require.Equal(t, 2, code)
		for _, holder := range holders {
			require.Contains(t, stderr, fmt.Sprintf("--lease %s of %s in slot %d", holder.LeaseID, holder.Holder, holder.Slot))
		}
		require.Contains(t, stderr, `"job" has 2 holders`)
		code, _, stderr = run(t, d, "release", "job", "--lease", holders[1].LeaseID)
		require.Zero(t, code, stderr)
		left, err := db.Semaphore("job", 1).Holders()
		require.NoError(t, err)
		require.Len(t, left, 1)
		require.Equal(t, holders[0].LeaseID, left[0].LeaseID)
		code, _, _ = run(t, d, "release", "job", "--lease", holders[1].LeaseID)
		require.Equal(t, 1, code)
		code, _, stderr = run(t, d, "release", strings.Repeat("x", 256), "--lease", "none")
		require.Equal(t, 1, code, stderr)
	})
}

func TestWatchSeesSlots(t *testing.T) {
	d, db := file(t)
	p := begin(t, program(t, d, "watch", "--interval", "10ms"))
	require.Empty(t, p.ids())
	_, err := db.Semaphore("job", 2).Acquire()
	require.NoError(t, err)
	require.Equal(t, []string{"job"}, p.ids())
	_, err = db.Semaphore("job", 2).Acquire()
	require.NoError(t, err)
	require.Equal(t, []string{"job", "job"}, p.ids())
}
