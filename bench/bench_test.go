//go:build unix

package bench_test

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/report"
	"github.com/gorm-dbmutex/dbmutex/bench/scenario"
	"github.com/gorm-dbmutex/dbmutex/bench/server"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

var (
	full      = flag.Bool("full", false, "run the benchmark and write RESULTS.md and results.svg")
	quick     = flag.Bool("quick", false, "run a try-out of the benchmark")
	scenarios = flag.String("scenarios", "", "some of the scenarios, with commas between; all of them if empty")
	out       = flag.String("out", "", "the folder for the results; by default this one with -full of all scenarios, else none")

	rounds         = flag.Int("rounds", 0, "blocks of each contender")
	heldCount      = flag.Int("held", 0, "locks that others hold, in the scenario held")
	longCycles     = flag.Int("cycles", 0, "cycles on one id, in the scenario long")
	snapshotCycles = flag.Int("snapshot-cycles", 0, "cycles on one id, in the scenario snapshot")
)

func TestMain(m *testing.M) {
	scenario.RunJob()
	m.Run()
}

func TestBench(t *testing.T) {
	if !*full && !*quick {
		t.Skip("runs with -args -full or -args -quick")
	}
	e := newEnv(t)
	e.MySQL = newMySQL(t)
	e.Size = sizeOf()
	r := &report.Report{Facts: facts(e), Notes: notes()}
	r.Caption = fmt.Sprintf("%s; %s; PostgreSQL %s", time.Now().Format(time.DateOnly), report.Machine(), e.Postgres.Version)
	chosen := strings.Split(*scenarios, ",")
	for _, s := range scenario.All {
		if *scenarios != "" && !slices.Contains(chosen, s.Name) {
			continue
		}
		start := time.Now()
		tables, err := s.Run(e, t.Context())
		require.NoError(t, err, s.Name)
		t.Logf("%s: %v", s.Name, time.Since(start).Round(100*time.Millisecond))
		r.Tables = append(r.Tables, tables...)
	}
	require.NotEmpty(t, r.Tables, "no scenario is called %q", *scenarios)
	require.NoError(t, r.WriteText(os.Stdout))
	if *out == "" && *full && *scenarios == "" {
		*out = "."
	}
	if *out != "" {
		const chart = "results.svg"
		write(t, "RESULTS.md", func(w io.Writer) error { return r.WriteMarkdown(w, chart) })
		write(t, chart, r.WriteSVG)
	}
}

func TestFairnessMeasuresALoneWaiterAtEveryDistance(t *testing.T) {
	e := newEnv(t)
	e.Size.Rivals, e.Size.Lone = []int{2}, 100*time.Millisecond
	e.Size.Distances = []time.Duration{0, 20 * time.Millisecond}
	i := slices.IndexFunc(scenario.All, func(s scenario.Scenario) bool { return s.Name == "fairness" })

	tables, err := scenario.All[i].Run(e, t.Context())

	require.NoError(t, err)
	require.Len(t, tables, 2)
	for i, want := range []string{
		"[0 µs 2] [20.00 ms 2]", // all are as far
		"[20.00 ms 2]",          // the lone waiter is far
	} {
		var cells []string
		for _, row := range tables[i].Rows {
			require.Len(t, row, len(tables[i].Columns))
			if row[0] == "dbmutex with pgnotify" {
				cells = append(cells, fmt.Sprint(row[1:3]))
			}
		}
		require.Equal(t, want, strings.Join(cells, " "))
		require.Len(t, tables[i].Chart.Points, len(tables[i].Rows)/strings.Count(want, "["), "that of the last cell")
		for _, point := range tables[i].Chart.Points {
			require.GreaterOrEqual(t, point.P99, 2*20.0, "there and back: %s", point.Name)
		}
	}
}

func TestWhatIsDoneOnceSemaphoresAndLeadersAreMeasured(t *testing.T) {
	e := newEnv(t)
	e.Size = scenario.Size{Rounds: 1, Block: 3, Permits: 1000, TakeOvers: 1, HandOvers: 2}
	for name, rows := range map[string][]int{
		"once":      {len(contender.OnceOnPostgres()), len(contender.OnceOnPostgres()) - 1},
		"semaphore": {2*4 + 3*len(e.Redis)}, // on PostgreSQL and SQLite
		"lead":      {3},                    // the same, and with pgnotify
	} {
		i := slices.IndexFunc(scenario.All, func(s scenario.Scenario) bool { return s.Name == name })
		tables, err := scenario.All[i].Run(e, t.Context())
		require.NoError(t, err, name)
		require.Len(t, tables, len(rows), name)
		for n, table := range tables {
			require.Len(t, table.Rows, rows[n], table.Title)
			for _, row := range table.Rows {
				require.Len(t, row, len(table.Columns), table.Title)
				if table.Columns[len(row)-1] == "WAL" && strings.HasPrefix(row[0], "dbmutex") {
					require.Equal(t, "0 bytes", row[len(row)-1], "%s: %s", table.Title, row[0])
				}
			}
		}
	}
}

func write(t *testing.T, name string, content func(io.Writer) error) {
	file, err := os.Create(filepath.Join(*out, name))
	require.NoError(t, err)
	require.NoError(t, content(file))
	require.NoError(t, file.Close())
}

func sizeOf() scenario.Size {
	size := scenario.Size{
		Rounds: 30, Block: 200,
		HandOffRounds: 2, HandOff: 5 * time.Second,
		Held: 1_000_000, LongCycles: 50_000, SnapshotCycles: 10_000,
		Waiters: 1_000, Waiting: 2 * time.Second,
		CrowdRounds: 8, Crowd: 160 * time.Millisecond,
		Permits: 300_000, TakeOvers: 15, HandOvers: 50,
		Rivals: []int{1, 2, 4, 8}, Lone: 10 * time.Second,
		Distances: []time.Duration{0, 15 * time.Millisecond, 40 * time.Millisecond},
	}
	if *quick {
		size = scenario.Size{
			Rounds: 4, Block: 20,
			HandOffRounds: 1, HandOff: 300 * time.Millisecond,
			Held: 10_000, LongCycles: 400, SnapshotCycles: 400,
			Waiters: 1_000, Waiting: 150 * time.Millisecond,
			CrowdRounds: 2, Crowd: 40 * time.Millisecond,
			Permits: 10_000, TakeOvers: 1, HandOvers: 4,
			Rivals: []int{4}, Lone: 500 * time.Millisecond,
			Distances: []time.Duration{0, 15 * time.Millisecond},
		}
	}
	for flagged, of := range map[*int]*int{
		rounds: &size.Rounds, heldCount: &size.Held, longCycles: &size.LongCycles, snapshotCycles: &size.SnapshotCycles,
	} {
		if *flagged > 0 {
			*of = *flagged
		}
	}
	return size
}

// newEnv starts the servers. They end with the test.
func newEnv(t testing.TB) *scenario.Env {
	t.Helper()
	cluster := testdb.NewCluster(t, "shared_preload_libraries = 'pg_stat_statements'", "max_connections = 500")
	ctx := context.Background()
	postgres, err := server.NewPostgres(ctx, cluster.DSN())
	require.NoError(t, err)
	t.Cleanup(postgres.Close)
	e := &scenario.Env{Postgres: postgres, Redis: map[contender.Store]*server.Redis{}, Folder: t.TempDir()}
	for _, store := range []contender.Store{contender.DurableRedis, contender.VolatileRedis} {
		redis, err := server.StartRedis(ctx, store == contender.DurableRedis)
		if err != nil {
			t.Logf("without %s: %v", store, err)
			continue
		}
		t.Cleanup(redis.Close)
		e.Redis[store] = redis
	}
	return e
}

// newMySQL starts a server that waits for the disk twice at each commit: for InnoDB's log, and for the binary log.
func newMySQL(t testing.TB) *server.MySQL {
	t.Helper()
	mysql, err := server.NewMySQL(t.Context(), testdb.At("mysql", "").NewServer(t, "log-bin", "sync-binlog = 1").DSN())
	require.NoError(t, err)
	t.Cleanup(mysql.Close)
	return mysql
}

//go:embed go.mod
var goMod string

// facts are what a reader has to know about the run.
func facts(e *scenario.Env) []report.Fact {
	facts := []report.Fact{
		{Name: "date", Value: time.Now().Format(time.DateOnly)},
		{Name: "machine", Value: report.Machine()},
		{Name: "Go", Value: runtime.Version()},
		{Name: "PostgreSQL", Value: e.Postgres.Version + ": " + e.Postgres.Settings},
		{Name: "MySQL", Value: e.MySQL.Version + ": " + e.MySQL.Settings},
	}
	for _, store := range []contender.Store{contender.DurableRedis, contender.VolatileRedis} {
		value := "not there: its contenders are left out"
		if redis := e.Redis[store]; redis != nil {
			value = redis.Version
		}
		facts = append(facts, report.Fact{Name: string(store), Value: value})
	}
	facts = append(facts, report.Fact{
		Name:  "all alike",
		Value: fmt.Sprintf("%d connections, TTL %v, one server on loopback for each store", contender.Pool, contender.TTL),
	})
	facts = append(facts, report.Fact{
		Name: "how",
		Value: fmt.Sprintf("%d rounds of a block of %d operations of each, in an order drawn anew for every round; a ratio is "+
			"the median of the rounds' ratios, with their quartiles", e.Size.Rounds, e.Size.Block),
	})
	var modules []string
	for _, c := range contender.All() {
		if c.Module != "" && !c.Own && !slices.Contains(modules, c.Module) {
			modules = append(modules, c.Module)
		}
	}
	modules = append(modules, "github.com/jackc/pgx/v5", "github.com/lib/pq", "github.com/redis/go-redis/v9",
		"github.com/mattn/go-sqlite3", "github.com/go-sql-driver/mysql", "gorm.io/gorm")
	for i, module := range modules {
		version := regexp.MustCompile(`(?m)^\t` + regexp.QuoteMeta(module) + ` (\S+)`).FindString(goMod)
		modules[i] = strings.TrimSpace(version)
	}
	return append(facts, report.Fact{Name: "versions", Value: strings.Join(modules, ", ")})
}

func notes() (notes []report.Fact) {
	known := map[string]bool{}
	all := slices.Concat(contender.All(), contender.CrowdOnSQLite(), contender.OnMySQL(), contender.OnceOnPostgres(),
		contender.OnceOnMySQL(), []contender.Contender{contender.RedisSemaphore(contender.DurableRedis, 4)})
	for _, c := range all {
		name := c.Name
		if c.Store == contender.SQLite || c.Store == contender.MySQL {
			name += " (" + string(c.Store) + ")"
		}
		if !known[name] {
			notes = append(notes, report.Fact{Name: name, Value: c.Note})
		}
		known[name] = true
	}
	return notes
}
