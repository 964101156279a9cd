package dbmutex_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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

// Every verb of the README's table stands in an example that is run.
func TestREADMEsVerbsAreCompiled(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	examples, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	section := regexp.MustCompile("(?s)\n## Which verb .*?\n## ").FindString(string(readme))
	verbs := regexp.MustCompile("(?m)^\\|.* \\| `(db\\..*)` \\|$").FindAllStringSubmatch(section, -1)
	require.NotEmpty(t, verbs)
	for _, verb := range verbs {
		require.True(t, strings.Contains(string(examples), "\t"+verb[1]+",\n"), "not compiled: %s", verb[1])
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
	for _, folder := range []string{".", "pgnotify", "cmd/dbmutex", "internal/faults", "internal/drivers", "dbmutextest"} {
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
