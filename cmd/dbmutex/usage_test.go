//go:build unix

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// asking are commands, but run and migrate, that ask the database.
var asking = []string{"list", "show job", "watch", "release job --lease x", "release job --force --yes", "prune", "doctor",
	"list --once", "show --once job", "forget job"}

func TestWrongUseExits2(t *testing.T) {
	d, _ := file(t)
	for _, args := range []string{
		"bogus", "--bogus", "list a b", "list --state none", "list --order none", "list -o xml", "list --limit 0",
		"list --limit -1", "list --limit x", "list --after a --order oldest", "show", "show a b", "show a -o ids", "release",
		"release job", "release a b --force --yes", "release job --lease x --force", "release job --yes", "release job --lease=",
		"prune a", "release --once job --lease x", "release --once job", "forget", "forget a b", "show --once",
		"list --after-slot 1", "list --after a --after-slot -1", "migrate a", "migrate --bogus", "doctor a",
		"watch a b", "watch --interval 0", "watch --interval x", "man",
		"completion", "completion tcsh", "list -q -v", "list --timeout 0", "list --log-format xml", "list --dsn oracle://x",
		"list --dsn postgres://u@127.0.0.1:1/x", "list --dsn mysql://u@127.0.0.1:1/x", "list --table nothing",
		"migrate --dsn sqlite::memory:", "migrate --dsn file:x?mode=memory",
	} {
		code, stdout, stderr := run(t, d, strings.Fields(args)...)
		require.Equal(t, 2, code, args)
		require.Empty(t, stdout, args)
		require.Regexp(t, `^dbmutex: .+\n$`, stderr, args)
	}
}

func TestOnlyMigrateMakesASQLiteFile(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "none.db")
	for _, dsn := range []string{"sqlite:" + name, "file:" + name, "file://" + name + "?cache=private"} {
		for _, args := range append(asking, "run job -- true") {
			cmd := program(t, testdb.At("sqlite", name), strings.Fields(args)...)
			cmd.Env = append(cmd.Env, "DBMUTEX_DSN="+dsn)
			p := begin(t, cmd)
			code, stdout := p.code()
			require.Equal(t, map[bool]int{true: 125, false: 2}[strings.HasPrefix(args, "run")], code)
			require.Empty(t, stdout)
			require.Equal(t, "dbmutex: there is no file "+name+": dbmutex migrate makes it\n", p.stderr.String())
			require.NoFileExists(t, name)
		}
	}
	code, _, stderr := run(t, testdb.At("sqlite", name), "migrate")
	require.Zero(t, code)
	require.Equal(t, "dbmutex: the tables db_mutexes and db_onces are ready\n", stderr)
	require.FileExists(t, name)
}

func TestADatabaseThatDoesNotAnswerExits2(t *testing.T) {
	frozen(t, func(t *testing.T, network *proxy.Proxy, _ *dbmutex.DB) {
		network.Freeze()
		for _, args := range append(asking, "migrate") {
			code, _, stderr := run(t, network.Database, append(strings.Fields(args), "--timeout", "100ms")...)
			require.Equal(t, 2, code, args)
			require.Contains(t, stderr, "no answer within 100ms", args)
		}
	})
}

func TestWhereTheDatabaseAndTheTableComeFrom(t *testing.T) {
	t.Parallel()
	d := testdb.SQLite(t)
	dsn, wrong := "sqlite:"+d.DSN, "oracle:"
	code, _, stderr := run(t, d, "migrate", "--table", "others")
	require.Zero(t, code, stderr)
	for name, tc := range map[string]struct {
		args string
		env  []string
	}{
		"flags":        {"--dsn " + dsn + " --table others", []string{"DBMUTEX_DSN=" + wrong, "DBMUTEX_TABLE=wrong"}},
		"DBMUTEX_DSN":  {"", []string{"DBMUTEX_DSN=" + dsn, "DATABASE_URL=" + wrong, "DBMUTEX_TABLE=others"}},
		"DATABASE_URL": {"", []string{"DBMUTEX_DSN=", "DATABASE_URL=" + dsn, "DBMUTEX_TABLE=others"}},
		"SQLite's":     {"", []string{"DBMUTEX_DSN=file:" + d.DSN, "DBMUTEX_TABLE=others"}},
	} {
		for args, want := range map[string]int{"run job -- true": 0, "show job": 1} {
			cmd := program(t, d, append(strings.Fields(tc.args), strings.Fields(args)...)...)
			cmd.Env = append(cmd.Env, tc.env...)
			p := begin(t, cmd)
			p.requireCode(want)
			require.Empty(t, p.stderr.String(), name)
		}
	}
	cmd := program(t, d, "list")
	cmd.Env = append(cmd.Env, "DBMUTEX_DSN=", "DATABASE_URL=")
	p := begin(t, cmd)
	p.requireCode(2)
	require.Contains(t, p.stderr.String(), "no database: set DBMUTEX_DSN")
}

func TestATableInASchema(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		var schema string
		current := map[string]string{"postgres": "SELECT current_schema()", "mysql": "SELECT DATABASE()"}[d.Name]
		require.NoError(t, d.Open(t).Raw(current).Scan(&schema).Error)
		for _, step := range []struct {
			args string
			want int
		}{{"migrate", 0}, {"run job -- true", 0}, {"show job", 1}, {"doctor", 0}} {
			code, stdout, stderr := run(t, d, append([]string{"--table", schema + ".others"}, strings.Fields(step.args)...)...)
			require.Equal(t, step.want, code, stdout+stderr)
		}
		require.True(t, d.Open(t).Migrator().HasTable("others"))
	})
}

func TestQuietAndJSONAreForAllCommands(t *testing.T) {
	d, _ := file(t)
	_, _, stderr := run(t, d, "list", "-q")
	require.Empty(t, stderr)
	_, _, stderr = run(t, d, "list", "--log-format", "json")
	require.Regexp(t, `^\{"time":.*"level":"INFO","msg":"nothing is held"\}\n$`, stderr)
	_, _, stderr = run(t, d, "release", "job", "--lease", "x", "-q", "--log-format", "json")
	require.Regexp(t, `^\{"time":.*"level":"ERROR","msg":"that lease had ended: nothing was released"\}\n$`, stderr)
}

func TestNothingIsColoured(t *testing.T) {
	d, db := file(t)
	leased(t, db)
	for _, args := range []string{"list", "show b", "doctor", "--help", "run --help", "list nothing"} {
		_, stdout, stderr := run(t, d, strings.Fields(args)...)
		require.NotContains(t, stdout+stderr, "\x1b")
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	d := testdb.At("sqlite", "none")
	code, stdout, _ := run(t, d, "--version")
	require.Zero(t, code)
	require.Regexp(t, `^dbmutex version .+ \(go1\..+, .+/.+\)\n$`, stdout)
	code, stdout, _ = run(t, d, "--help")
	require.Zero(t, code)
	for _, name := range []string{
		"run", "list", "show", "release", "forget", "prune", "watch", "migrate", "schema", "doctor", "serve", "completion",
		"DBMUTEX_DSN",
		"DATABASE_URL", "DBMUTEX_TABLE", "NO_COLOR", "(ps)", "with 1 if the answer is no",
	} {
		require.Contains(t, stdout, name)
	}
	require.NotContains(t, stdout, "\n  man ")
	code, stdout, _ = run(t, d, "run", "--help")
	require.Zero(t, code)
	for _, text := range []string{"macOS", "Windows", "Linux", "75 ", "124 ", "125 ", "126, 127", "128+n", "DBMUTEX_TOKEN",
		"DBMUTEX_SLOT", "--once-per PERIOD", "noon"} {
		require.Contains(t, stdout, text)
	}
}

func TestEveryCommandHelps(t *testing.T) {
	t.Parallel()
	d := testdb.At("sqlite", "none")
	for _, name := range []string{
		"run", "list", "ls", "show", "release", "forget", "prune", "watch", "migrate", "schema", "doctor", "serve", "completion",
		"man",
	} {
		code, stdout, _ := run(t, d, name, "--help")
		require.Zero(t, code)
		require.Contains(t, stdout, "Usage:\n  dbmutex ")
		for line := range strings.Lines(stdout) {
			require.LessOrEqual(t, len(line), 160, line)
		}
	}
}

func TestManualPagesAreWritten(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "man")
	code, _, stderr := run(t, testdb.At("sqlite", "none"), "man", folder)
	require.Zero(t, code, stderr)
	for page, text := range map[string]string{
		"dbmutex.1": "DBMUTEX_DSN", "dbmutex-run.1": "DBMUTEX_TOKEN", "dbmutex-list.1": "next_slot",
		"dbmutex-forget.1": "ID@TIME", "dbmutex-doctor.1": "clocks",
	} {
		content, err := os.ReadFile(filepath.Join(folder, page))
		require.NoError(t, err)
		require.Contains(t, string(content), text)
	}
}

func TestTheBinaryIsSmall(t *testing.T) {
	t.Parallel()
	small := filepath.Join(t.TempDir(), "dbmutex")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", small, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	info, err := os.Stat(small)
	require.NoError(t, err)
	require.Less(t, info.Size(), int64(25_000_000))
}

func TestEveryShellHasItsCompletion(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		code, stdout, stderr := run(t, testdb.At("sqlite", "none"), "completion", shell)
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, "dbmutex")
		require.Greater(t, len(stdout), 1000)
	}
}
