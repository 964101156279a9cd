//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/leaseview"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// leased has three leases: of "a/1", which anna has for an hour, of "a/2", which ran out, and of "b", which never expires.
func leased(t *testing.T, db *dbmutex.DB) {
	testdb.Acquire(t, db, "a/1", dbmutex.WithHolder("anna"), dbmutex.WithTTL(time.Hour))
	testdb.Acquire(t, db, "a/2", dbmutex.WithHolder("berta"))
	testdb.Acquire(t, db, "b", dbmutex.WithHolder("anna 2"), dbmutex.WithoutTTL())
	testdb.Expire(t, db, "a/2")
}

func TestListShowsWhatIsHeld(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		leased(t, db)
		for args, want := range map[string]string{
			"list -o ids":                             "a/1 b",
			"ls -o ids":                               "a/1 b",
			"list -o ids --state held":                "a/1 b",
			"list -o ids --state expired":             "a/2",
			"list -o ids --state all":                 "a/1 a/2 b",
			"list -o ids --state all a/":              "a/1 a/2",
			"list -o ids A":                           "",
			"list -o ids --holder 2":                  "b",
			"list -o ids --state all --order oldest":  "a/1 a/2 b",
			"list -o ids --state all --order ending":  "a/2 a/1 b",
			"list -o ids --state all --limit 2":       "a/1 a/2",
			"list -o ids --state all --after a/1":     "a/2 b",
			"list -o ids --after a/1 --limit 1 a":     "",
			"list --output ids --order id --after a/": "a/1 b",
		} {
			code, stdout, stderr := run(t, d, strings.Fields(args)...)
			require.Zero(t, code, stderr)
			require.Equal(t, strings.Fields(want), strings.Fields(stdout), args)
		}
		code, stdout, stderr := run(t, d, "list", "--state", "all")
		require.Zero(t, code, stderr)
		require.Regexp(t, `^MUTEX  HOLDER  HELD FOR +ENDS IN
a/1    anna    .*[0-9] m?s +(59 min [0-9]+ s|1 h)
a/2    berta   .*[0-9] m?s +ran out [0-9]+ m?s ago
b      anna 2  .*[0-9] m?s +never
$`, stdout)
	})
}

func TestListWritesJSON(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		leased(t, db)
		code, stdout, stderr := run(t, d, "list", "--state", "all", "-o", "json", "--limit", "2")
		require.Zero(t, code)
		require.Empty(t, stderr)
		var got struct {
			Now    string
			Leases []map[string]any
			Next   *string
		}
		require.NoError(t, json.Unmarshal([]byte(stdout), &got))
		now, err := time.Parse(time.RFC3339, got.Now)
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), now, time.Minute)
		require.True(t, strings.HasSuffix(got.Now, "Z"))
		require.Equal(t, "a/2", *got.Next)
		require.Len(t, got.Leases, 2)
		for i, state := range []string{"held", "expired"} {
			lease := got.Leases[i]
			row := testdb.Row(t, db, lease["lock_id"].(string))
			require.Equal(t, row.LeaseID, lease["lease_id"])
			require.Equal(t, row.Holder, lease["holder"])
			require.Equal(t, state, lease["state"])
			require.Len(t, lease, 8)
			for key, want := range map[string]time.Time{"creation_time": row.CreationTime, "expires_at": *row.ExpiresAt} {
				require.True(t, strings.HasSuffix(lease[key].(string), "Z"))
				when, err := time.Parse(time.RFC3339, lease[key].(string))
				require.NoError(t, err)
				require.True(t, want.Equal(when), "%v, not %v", when, want)
			}
			require.InDelta(t, now.Sub(row.CreationTime).Seconds(), lease["held_seconds"], 1)
			require.InDelta(t, row.ExpiresAt.Sub(now).Seconds(), lease["left_seconds"], 1)
		}
		_, stdout, _ = run(t, d, "list", "--after", *got.Next, "-o", "json")
		require.NoError(t, json.Unmarshal([]byte(stdout), &got))
		require.Contains(t, stdout, `"next":null`)
		require.Len(t, got.Leases, 1)
		require.Contains(t, got.Leases[0], "expires_at")
		require.Nil(t, got.Leases[0]["expires_at"])
		require.Nil(t, got.Leases[0]["left_seconds"])
		_, stdout, _ = run(t, d, "list", "nothing", "-o", "json")
		require.Regexp(t, `^\{"now":"20.*Z","leases":\[\],"next":null\}\n$`, stdout)
	})
}

func TestListSaysThatNothingIsHeldAndThatMoreFollow(t *testing.T) {
	d, db := file(t)
	for state, want := range map[string]string{
		"held": "nothing is held", "expired": "nothing ran out", "all": "nothing is held, and nothing ran out",
	} {
		code, stdout, stderr := run(t, d, "list", "--state", state)
		require.Zero(t, code)
		require.Empty(t, stdout)
		require.Equal(t, "dbmutex: "+want+"\n", stderr)
	}
	leased(t, db)
	_, _, stderr := run(t, d, "list", "--limit", "1")
	require.Equal(t, "dbmutex: more follow: --after \"a/1\"\n", stderr)
	_, _, stderr = run(t, d, "list", "--limit", "1", "--order", "ending")
	require.Equal(t, "dbmutex: more follow: --limit says how many are listed\n", stderr)
	_, _, stderr = run(t, d, "list", "--limit", "2")
	require.Empty(t, stderr)
}

func TestListReadsMoreThanTheDatabaseGivesAtOnce(t *testing.T) {
	d, db := file(t)
	rows := make([]dbmutex.DBMutex, 2100)
	for i := range rows {
		rows[i] = dbmutex.DBMutex{LockID: fmt.Sprintf("job %04d", i), LeaseID: fmt.Sprint("lease ", i), CreationTime: time.Now()}
	}
	require.NoError(t, db.CreateInBatches(rows, 100).Error)
	for limit, more := range map[int]bool{999: true, 1000: true, 1001: true, 2000: true, 2099: true, 2100: false, 5000: false} {
		_, stdout, stderr := run(t, d, "list", "-o", "ids", "--limit", fmt.Sprint(limit))
		require.Equal(t, min(limit, 2100), strings.Count(stdout, "\n"))
		require.Equal(t, more, strings.Contains(stderr, "more follow"), limit)
	}
}

func TestTextsCannotDeceive(t *testing.T) {
	d, db := file(t)
	evil := "a\x1b[2J\n\u202eb\u009b\U000e0041\\"
	escaped := `"a\x1b[2J\n\u202eb\u009b\U000e0041\\"`
	testdb.Acquire(t, db, evil, dbmutex.WithHolder(evil))
	testdb.Acquire(t, db, `"b"`, dbmutex.WithHolder(`DOMAIN\anna <b>`))
	_, stdout, _ := run(t, d, "list", "-o", "ids")
	require.Equal(t, `"\"b\""`+"\n"+escaped+"\n", stdout)
	_, stdout, _ = run(t, d, "list")
	require.Regexp(t, `\n"\\"b\\"" +DOMAIN\\anna <b> `, stdout)
	require.Equal(t, 2, strings.Count(stdout, escaped))
	code, stdout, _ := run(t, d, "show", evil)
	require.Zero(t, code)
	require.Equal(t, 2, strings.Count(stdout, escaped))
	_, stdout, _ = run(t, d, "list", "-o", "json")
	for _, r := range strings.TrimSuffix(stdout, "\n") {
		require.True(t, r >= ' ' && r < 0x7f, "%q", r)
	}
	var got leaseview.Page
	require.NoError(t, json.Unmarshal([]byte(stdout), &got))
	require.Equal(t, evil, got.Leases[1].Holder)
	require.Equal(t, evil, got.Leases[1].LockID)
	code, _, stderr := run(t, d, "run", evil, "--", "true")
	require.Equal(t, 75, code)
	require.Equal(t, 1, strings.Count(stderr, "\n"))
	require.NotContains(t, stderr, "\x1b")
	code, _, stderr = run(t, d, "release", evil, "--force", "--yes")
	require.Zero(t, code)
	require.Contains(t, stderr, escaped+", which "+escaped+" had")
	require.Equal(t, 1, strings.Count(stderr, "\n"))
}

func TestShowSaysWhoHoldsAMutex(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		leased(t, db)
		code, stdout, stderr := run(t, d, "show", "a/1")
		require.Zero(t, code)
		require.Empty(t, stderr)
		require.Regexp(t, `^mutex     a/1
state     held
holder    anna
held for  [0-9].*s, since 20[0-9-]+ [0-9:]+ UTC
ends in   (59 min [0-9]+ s|1 h), at 20[0-9-]+ [0-9:]+ UTC
lease     `+testdb.Row(t, db, "a/1").LeaseID+`
$`, stdout)
		code, stdout, _ = run(t, d, "show", "b")
		require.Zero(t, code)
		require.Contains(t, stdout, "\nends in   never\n")
		code, stdout, _ = run(t, d, "show", "a/2")
		require.Equal(t, 1, code)
		require.Contains(t, stdout, "\nstate     ran out, not taken over\n")
		require.Regexp(t, `\nbegun     .*[0-9] m?s ago, at 20.*\nended     [0-9]+ m?s ago, at 20`, stdout)
		code, stdout, stderr = run(t, d, "show", "a")
		require.Equal(t, 1, code)
		require.Empty(t, stderr)
		require.Equal(t, "\"a\" is not held\n", stdout)
		for id, want := range map[string]struct{ code, leases int }{"a/1": {0, 1}, "a/2": {1, 1}, "b": {0, 1}, "a": {1, 0}} {
			code, stdout, _ := run(t, d, "show", id, "-o", "json")
			require.Equal(t, want.code, code)
			var got leaseview.Page
			require.NoError(t, json.Unmarshal([]byte(stdout), &got))
			require.WithinDuration(t, time.Now(), got.Now, time.Minute)
			require.Len(t, got.Leases, want.leases)
			require.Nil(t, got.Next)
		}
	})
}

func TestShowTellsWhatMinHoldKeeps(t *testing.T) {
	d, _ := file(t)
	code, _, _ := run(t, d, shell("true", "--min-hold", "29s")...)
	require.Zero(t, code)
	code, stdout, _ := run(t, d, "show", "job")
	require.Zero(t, code)
	require.Contains(t, stdout, "held: the work has ended")
}

func TestWordsForTimes(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0 ms": -time.Second, "840 ms": 840 * time.Millisecond, "1 s": 1999 * time.Millisecond, "59 s": time.Minute - 1,
		"1 min": time.Minute, "12 min 41 s": 12*time.Minute + 41*time.Second, "1 h": time.Hour + 59*time.Second,
		"1 h 12 min": 72 * time.Minute, "9 d 4 h": 220 * time.Hour,
		"9 d": 216*time.Hour + 59*time.Minute, "800 d": 800 * 24 * time.Hour,
	} {
		require.Equal(t, want, inWords(d))
	}
}

func TestAnAnswerThatCannotBeWrittenExits2(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("it takes a /dev/full")
	}
	d, db := file(t)
	held(t, db)
	for _, args := range []string{
		"list", "list -o json", "list -o ids", "show job", "show job -o json", "prune", "schema mysql", "watch", "doctor",
	} {
		cmd := program(t, d, strings.Fields(args)...)
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		require.NoError(t, err)
		cmd.Stdout = full
		require.Equal(t, 2, exitCode(t, cmd.Run()), args)
		require.NoError(t, full.Close())
	}
}
