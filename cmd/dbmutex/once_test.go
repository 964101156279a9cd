//go:build unix

package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/leaseview"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// period is a time whose periods do not meet soon.
const period = "87600h"

// oncePer is a script that is to succeed once per period.
func oncePer(script string, flags ...string) []string {
	return shell(script, append([]string{"--once-per", period}, flags...)...)
}

// tickOfJob is the id of the record of oncePer.
func tickOfJob(t *testing.T) string {
	every, err := time.ParseDuration(period)
	require.NoError(t, err)
	return dbmutex.Tick("job", time.Now(), every)
}

// witnesses are the lines of a file.
func witnesses(t *testing.T, name string) []string {
	content, err := os.ReadFile(name)
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	return strings.Fields(string(content))
}

func TestTwoMachinesRunACommandOncePerPeriod(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		name := filepath.Join(t.TempDir(), "witness")
		script := "echo ran >> " + name + "; sleep 0.2"
		var machines []*process
		for _, holder := range []string{"anna", "berta", "anna", "berta"} {
			machines = append(machines, begin(t, program(t, d, oncePer(script, "--wait", "forever", "--holder", holder)...)))
		}
		for _, p := range machines {
			p.requireCode(0)
		}
		require.Len(t, witnesses(t, name), 1)
		record, err := db.Once(tickOfJob(t), time.Hour).Done()
		require.NoError(t, err)
		require.NotNil(t, record)
		code, _, stderr := run(t, d, oncePer(script, "--holder", "clara")...)
		require.Zero(t, code)
		require.Equal(t, "dbmutex: done already by "+record.Holder+", begun at "+utc(record.CreationTime)+"\n", stderr)
		code, _, stderr = run(t, d, oncePer(script, "-q")...)
		require.Zero(t, code)
		require.Empty(t, stderr)
		require.Len(t, witnesses(t, name), 1)
		every, _ := time.ParseDuration(period)
		require.WithinDuration(t, time.Now().Add(2*every), *record.ExpiresAt, time.Hour)

		code, _, _ = run(t, d, "run", "--once-per", period, "job 2", "--", "sh", "-c", script)
		require.Zero(t, code)
		require.Len(t, witnesses(t, name), 2, "another one")
		testdb.RequireFree(t, db, "job")
	})
}

func TestACommandThatFailsIsRunAgainByTheNext(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		name := filepath.Join(t.TempDir(), "witness")
		for _, step := range []struct {
			script string
			want   int
		}{{"exit 3", 3}, {"kill -9 $$", 137}, {"exit 0", 0}, {"exit 4", 0}} {
			code, _, stderr := run(t, d, oncePer("echo ran >> "+name+"; "+step.script)...)
			require.Equal(t, step.want, code, stderr)
			if step.want != 0 {
				require.Empty(t, stderr)
			}
		}
		require.Len(t, witnesses(t, name), 3)
	})
}

func TestAPeriodThatSomebodyRunsNowIsHeld(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		p := begin(t, program(t, d, oncePer(`echo $DBMUTEX_ID $DBMUTEX_TOKEN $DBMUTEX_SLOT; read x; exit $x`)...))
		words := strings.Fields(p.line())
		require.Len(t, words, 2)
		require.Equal(t, "job", words[0])
		require.NotEqual(t, "0", words[1])
		for _, tc := range []struct {
			flags []string
			want  int
		}{{nil, 75}, {[]string{"-w", "100ms"}, 75}, {[]string{"-E", "9"}, 9}, {[]string{"--skip-held"}, 0}} {
			code, stdout, stderr := run(t, d, oncePer("echo ran", tc.flags...)...)
			require.Equal(t, tc.want, code)
			require.Empty(t, stdout)
			require.Contains(t, stderr, `"`+tickOfJob(t)+`" is held by `)
		}
		// That waits gets 0 when it is done, and the command when it is not.
		waits := func() *process {
			w := begin(t, program(t, d, oncePer("echo ran; exit 5", "-v", "-w", "forever")...))
			eventually(t, "it waits", func() bool { return strings.Contains(w.stderr.String(), "waiting") })
			return w
		}
		waiter := waits()
		_, err := p.stdin.Write([]byte("3\n"))
		require.NoError(t, err)
		p.requireCode(3)
		require.Equal(t, "ran", waiter.line())
		waiter.requireCode(5)

		p = begin(t, program(t, d, oncePer(`echo begun; read x; exit $x`)...))
		require.Equal(t, "begun", p.line())
		waiter = waits()
		_, err = p.stdin.Write([]byte("0\n"))
		require.NoError(t, err)
		p.requireCode(0)
		code, stdout := waiter.code()
		require.Zero(t, code, waiter.stderr)
		require.Empty(t, stdout)
		require.Contains(t, waiter.stderr.String(), "done already by ")
	})
}

func TestALostLeaseRecordsNothing(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		p := begin(t, program(t, d, oncePer("trap 'exit 0' TERM; echo ready; "+lasts, "--ttl", "3s")...))
		require.Equal(t, "ready", p.line())
		require.NoError(t, db.Where("lock_id <> ''").Delete(&dbmutex.DBOnce{}).Error)
		code, stdout := p.code()
		require.Equal(t, 124, code, p.stderr)
		require.Empty(t, stdout)
		record, err := db.Once(tickOfJob(t), time.Hour).Done()
		require.NoError(t, err)
		require.Nil(t, record)
		code, stdout, _ = run(t, d, oncePer("echo ran")...)
		require.Zero(t, code)
		require.Equal(t, "ran\n", stdout)
	})
}

func TestACommandThatEndsWithItsLeaseRecordsNothing(t *testing.T) {
	frozen(t, func(t *testing.T, network *proxy.Proxy, db *dbmutex.DB) {
		script := "trap 'echo TERM; read x; exit 0' TERM; echo ready; " + lasts
		p := begin(t, program(t, network.Database, oncePer(script, "--ttl", "15s")...))
		require.Equal(t, "ready", p.line())
		network.Freeze()
		require.Equal(t, "TERM", p.line())
		network.Thaw() // so that it could be recorded
		require.NoError(t, p.stdin.Close())
		p.requireCode(124)
		record, err := db.Once(tickOfJob(t), time.Hour).Done()
		require.NoError(t, err)
		require.Nil(t, record)
	})
}

func TestASuccessThatCannotBeRecordedIsToldOf(t *testing.T) {
	frozen(t, func(t *testing.T, network *proxy.Proxy, db *dbmutex.DB) {
		p := begin(t, program(t, network.Database, oncePer("echo ready; read x; exit 0", "--ttl", "10m")...))
		require.Equal(t, "ready", p.line())
		network.Freeze()
		_, err := p.stdin.Write([]byte("\n"))
		require.NoError(t, err)
		p.requireCode(0)
		require.Contains(t, p.stderr.String(), "the command has succeeded, but that may not be recorded")
	})
}

func TestASignalThatEndsACommandOfAPeriodRecordsNothing(t *testing.T) {
	d, db := file(t)
	p := begin(t, program(t, d, oncePer("echo ready; exec sleep 60")...))
	require.Equal(t, "ready", p.line())
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	p.requireCode(143)
	rows, err := db.Leases(dbmutex.LeaseQuery{Once: true})
	require.NoError(t, err)
	require.Empty(t, rows)
}

func TestTheBordersOfPeriods(t *testing.T) {
	for _, tc := range []struct {
		at, every string
		want      string
		warns     bool
	}{
		{"2026-11-27T11:58:59Z", "24h", "job@2026-11-27T00:00:00Z", false},
		{"2026-11-27T11:59:01Z", "24h", "job@2026-11-27T00:00:00Z", true},
		{"2026-11-27T12:00:00Z", "24h", "job@2026-11-28T00:00:00Z", true},
		{"2026-11-27T12:01:01Z", "24h", "job@2026-11-28T00:00:00Z", false},
		{"2026-11-27T03:00:00+01:00", "24h", "job@2026-11-27T00:00:00Z", false},
		{"2026-11-27T02:59:59Z", "1h", "job@2026-11-27T03:00:00Z", false},
		{"2026-11-27T03:00:00Z", "1h", "job@2026-11-27T03:00:00Z", false},
		{"2026-11-27T03:30:00Z", "1h", "job@2026-11-27T04:00:00Z", true},
		{"2026-11-27T03:00:05Z", "10s", "job@2026-11-27T03:00:10Z", true},
		{"2026-11-27T03:00:07Z", "10s", "job@2026-11-27T03:00:10Z", false},
		{"2026-11-25T00:00:00Z", "168h", "job@2026-11-23T00:00:00Z", false},
	} {
		at, err := time.Parse(time.RFC3339, tc.at)
		require.NoError(t, err)
		every, err := time.ParseDuration(tc.every)
		require.NoError(t, err)
		said := &output{}
		r := &runner{global: &global{log: newLogger(said, "text", 0)}, id: "job", oncePer: every}
		require.Equal(t, tc.want, r.tick(at))
		require.Equal(t, tc.warns, strings.Contains(said.String(), "twice"), "%s %s %s", tc.at, tc.every, said)
	}
}

func TestRunsAndRecordsAreListedShownAndForgotten(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		for _, args := range []string{"list --once", "list --once job -o ids"} {
			code, stdout, _ := run(t, d, strings.Fields(args)...)
			require.Zero(t, code)
			require.Empty(t, stdout)
		}
		code, stdout, _ := run(t, d, "show", "--once", "job")
		require.Equal(t, 1, code)
		require.Equal(t, "\"job\" is not done, and nobody runs it\n", stdout)

		require.NoError(t, db.Once("job@1", time.Hour, dbmutex.WithHolder("anna")).Do(testdb.Nothing))
		require.NoError(t, db.Once("job@1/2", time.Minute).Do(testdb.Nothing))
		testdb.ExpireOnces(t, db, false, "lock_id = ?", "job@1/2")
		begun, goOn := make(chan bool), make(chan bool)
		ended := make(chan error, 1)
		go func() {
			ended <- db.Once("job@2", time.Hour, dbmutex.WithHolder("berta"), dbmutex.WithTTL(time.Hour)).Do(
				func(ctx context.Context) error { close(begun); <-goOn; return nil })
		}()
		<-begun

		code, stdout, stderr := run(t, d, "list", "--once")
		require.Zero(t, code, stderr)
		require.Regexp(t, `^ONCE   STATE    HOLDER  BEGUN +ENDS IN
job@1  done     anna    .*[0-9] m?s ago +(59 min [0-9]+ s|1 h)
job@2  running  berta   .*[0-9] m?s ago +(59 min [0-9]+ s|1 h)
$`, stdout)
		_, stdout, _ = run(t, d, "list", "--once", "-o", "ids", "--state", "all")
		require.Equal(t, "job@1\njob@1/2\njob@2\n", stdout)
		_, stdout, _ = run(t, d, "list", "--once", "--state", "expired")
		require.Contains(t, stdout, "\njob@1/2  no longer kept  ")
		code, stdout, _ = run(t, d, "list", "--once", "-o", "json")
		require.Zero(t, code)
		var got leaseview.Page
		require.NoError(t, json.Unmarshal([]byte(stdout), &got))
		require.Len(t, got.Leases, 2)
		require.Equal(t, []string{"done", "held"}, []string{got.Leases[0].State, got.Leases[1].State})

		code, stdout, _ = run(t, d, "show", "--once", "job@1")
		require.Zero(t, code)
		require.Regexp(t, `^once      job@1
state     done
holder    anna
begun     .*[0-9] m?s ago, at 20[0-9-]+ [0-9:]+ UTC
kept for  (59 min [0-9]+ s|1 h), until 20[0-9-]+ [0-9:]+ UTC
lease     done
$`, stdout)
		_, stdout, _ = run(t, d, "show", "--once", "job@2")
		require.Contains(t, stdout, "\nstate     running\n")
		for _, id := range []string{"job", "job@1/2"} {
			code, _, _ = run(t, d, "show", "--once", id)
			require.Equal(t, 1, code, id)
		}

		code, _, stderr = run(t, d, "forget", "job@2")
		require.Equal(t, 1, code)
		require.Contains(t, stderr, "it runs, so that there is nothing to forget")
		code, _, stderr = run(t, d, "forget", "job@1")
		require.Zero(t, code)
		require.Equal(t, "dbmutex: forgot that \"job@1\" was done by anna\n", stderr)
		code, _, stderr = run(t, d, "forget", "job@1")
		require.Equal(t, 1, code)
		require.Contains(t, stderr, `"job@1" is not done: there is nothing to forget (ids of --once-per are ID@TIME: `)
		code, stdout, _ = run(t, d, "prune")
		require.Zero(t, code)
		require.NotEqual(t, "removed 0 rows\n", stdout)
		close(goOn)
		require.NoError(t, <-ended)
	})
}

func TestReleaseOnceEndsTheRunAndSparesTheRecord(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		id := tickOfJob(t)
		release := []string{"release", "--once", id, "--force", "--yes"}
		code, _, stderr := run(t, d, release...)
		require.Equal(t, 1, code)
		require.Contains(t, stderr, "nobody runs ")
		p := begin(t, program(t, d, oncePer("echo ready; exec sleep 60", "--ttl", "15s", "--holder", "anna")...))
		require.Equal(t, "ready", p.line())
		code, _, stderr = run(t, d, "release", "--once", id, "--force")
		require.Equal(t, 2, code)
		require.Contains(t, stderr, "--yes")
		code, _, _ = run(t, d, release...)
		require.Zero(t, code)
		p.requireCode(124)
		code, _, _ = run(t, d, oncePer("true")...)
		require.Zero(t, code, "others may try")
		code, _, stderr = run(t, d, release...)
		require.Equal(t, 1, code)
		require.Contains(t, stderr, "as it is done: dbmutex forget lets it run again")
		require.NotNil(t, testdb.OnceRow(t, db, id))
	})
}

func TestWithoutTheTableOfOnce(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, db *dbmutex.DB) {
		require.NoError(t, db.Migrator().DropTable(&dbmutex.DBOnce{}))
		for args, want := range map[string]int{
			"run job -- true": 0, "run --slots 2 job -- true": 0, "run --once-per 24h job -- true": 125, "list": 0, "show job": 1,
			"list --once": 2, "show --once job": 2, "forget job": 2, "prune": 0,
		} {
			code, stdout, stderr := run(t, d, strings.Fields(args)...)
			require.Equal(t, want, code, "%s: %s%s", args, stdout, stderr)
			if want > 1 {
				require.Contains(t, stderr, `"db_onces" is missing: run dbmutex migrate`)
			}
		}
		code, stdout, _ := run(t, d, "doctor")
		require.Zero(t, code)
		require.Contains(t, stdout, "\nonce        ok: db_onces is missing, which only ")
		code, _, _ = run(t, d, "migrate")
		require.Zero(t, code)
		_, stdout, _ = run(t, d, "doctor")
		require.Contains(t, stdout, "\nonce        ok: db_onces\n")
	})
}

func TestTheTableOfOnceGoesWithThatOfMutexes(t *testing.T) {
	for mutexes, onces := range map[string]string{
		"db_mutexes": "db_onces", "app_db_mutexes": "app_db_onces", "x.db_mutex": "x.db_once", "locks": "locks_onces",
	} {
		require.Equal(t, onces, onceTable(mutexes))
	}
}
