package dbmutex_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// Every snippet of the README is a part of a file that is compiled and run.
func TestREADMESnippetsAreCompiled(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	files, err := filepath.Glob("examples/*/main.go")
	require.NoError(t, err)
	var compiled strings.Builder
	for _, file := range append(files, "example_test.go") {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		compiled.Write(text)
	}
	snippets := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, snippets)
	for _, snippet := range snippets {
		require.True(t, strings.Contains(compiled.String(), snippet[1]), "not compiled:\n%s", snippet[1])
	}
}

// Every test that the documentation names is there.
func TestDocumentedTestsExist(t *testing.T) {
	pages, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	var named [][]string
	for _, page := range pages {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		named = append(named, regexp.MustCompile("`(Test[A-Za-z]+)`").FindAllStringSubmatch(string(text), -1)...)
	}
	var tests strings.Builder
	for _, folder := range []string{".", "pgnotify", "internal/faults", "internal/drivers"} {
		files, err := filepath.Glob(folder + "/*_test.go")
		require.NoError(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			tests.Write(text)
		}
	}
	require.NotEmpty(t, named)
	for _, name := range named {
		require.True(t, strings.Contains(tests.String(), "func "+name[1]+"(t *testing.T)"), "there is no %s", name[1])
	}
}

// The program of the page about operating says who holds a mutex, and ends the lease that was seen.
func TestTheProgramOfThePageAboutOperating(t *testing.T) {
	t.Parallel()
	d := testdb.Postgres(t)
	page, err := os.ReadFile("docs/operating.md")
	require.NoError(t, err)
	_, after, _ := strings.Cut(string(page), "```go\n")
	source, _, _ := strings.Cut(after, "```")
	file, program := filepath.Join(t.TempDir(), "stuck.go"), filepath.Join(t.TempDir(), "stuck")
	require.NoError(t, os.WriteFile(file, []byte(source), 0o600))
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	run := func(args ...string) string {
		t.Helper()
		command := exec.CommandContext(t.Context(), program, args...)
		command.Env = append(os.Environ(), "DSN="+d.DSN)
		out, err := command.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}

	db := d.Mutexes(t, dbmutex.DefaultSettings())
	acquire(t, db, "nightly-report", dbmutex.WithHolder("machine-7/123"))
	leaseID := row(t, db, "nightly-report").LeaseID
	for _, said := range []string{run("nightly-report"), run()} {
		require.Regexp(t, `^"nightly-report" held by "machine-7/123" for .*, lease `+leaseID+
			`, expires true, left 29m.*, expired false, resting false\n$`, said)
	}
	require.Equal(t, "released: false\n", run("nightly-report", "another"))
	require.Contains(t, run("nightly-report", leaseID), "released: true\n")
	holder, err := db.Mutex("nightly-report").Holder()
	require.NoError(t, err)
	require.Nil(t, holder)
}
