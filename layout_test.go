package dbmutex_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The tests of this file keep docs/architecture.md true.

const module = "github.com/gorm-dbmutex/dbmutex"

// texts are a file's string literals, but for import paths and struct tags.
func texts(t *testing.T, file string) (found []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	require.NoError(t, err)
	skip := map[*ast.BasicLit]bool{}
	ast.Inspect(parsed, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			skip[n.Path] = true
		case *ast.Field:
			skip[n.Tag] = true
		case *ast.BasicLit:
			if n.Kind == token.STRING && !skip[n] {
				text, err := strconv.Unquote(n.Value)
				require.NoError(t, err)
				found = append(found, text)
			}
		}
		return true
	})
	return found
}

// goFiles are all Go files of the tree, also those of modules within it.
func goFiles(t *testing.T) (files []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") {
			files = append(files, filepath.ToSlash(path))
		}
		return err
	}))
	return files
}

func TestThePageOfTheArchitectureNamesEveryFile(t *testing.T) {
	page, err := os.ReadFile("docs/architecture.md")
	require.NoError(t, err)
	for _, pattern := range []string{"*.go", "internal/locktable/*.go"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, file := range files {
			if name := filepath.Base(file); !strings.HasSuffix(name, "_test.go") && name != "doc.go" {
				require.Contains(t, string(page), name)
			}
		}
	}
}

var statement = regexp.MustCompile(`(?i)\b(SELECT\s|INSERT\s+(OR\s+\w+\s+)?INTO|UPDATE\s+\S+\s+SET|DELETE\s+FROM|` +
	`ALTER\s+TABLE|CREATE\s+(TABLE|INDEX)|PRAGMA\b|WITH\s+\w+\s+AS|ROLLBACK|SAVEPOINT|LISTEN\s|NOTIFY\s)`)

func TestTheRootPackageHasNoSQL(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, text := range texts(t, file) {
			require.NotRegexp(t, statement, text, file)
		}
	}
}

// mayKnow are the files that know databases apart: one a database, and programs that open any of them. internal/drivers and
// bench are about drivers and other locks, which are each for one database. The queue's test needs any that notifies.
var mayKnow = regexp.MustCompile(`^(internal/(locktable|proxy|testdb|torture)/(dialect|mysql|postgres|sqlite)(_\w+)?\.go|` +
	`(internal/drivers|bench|cmd/dbmutex|examples)/.*|queue_internal_test\.go)$`)

func TestNobodyElseKnowsDatabasesApart(t *testing.T) {
	names := regexp.MustCompile(`^(mysql|postgres|sqlite|sqlite3)$`)
	for _, file := range goFiles(t) {
		if mayKnow.MatchString(file) {
			continue
		}
		for _, text := range texts(t, file) {
			require.NotRegexp(t, names, text, file)
		}
	}
}

// floors say what each package may import of this module, of GORM and of its drivers. The standard library is free.
var floors = map[string][]string{
	"":                    {"/internal/ends", "/internal/locktable", "/internal/wake", "gorm.io/gorm"},
	"/internal/ends":      {},
	"/internal/leaseview": {module},
	"/internal/locktable": {"gorm.io/gorm"},
	"/internal/schema":    {},
	"/internal/wake":      {},
	"/pgnotify":           {"/internal/wake", "github.com/jackc/pgx/v5"},
}

func TestEachFloorImportsWhatIsBelow(t *testing.T) {
	for floor, may := range floors {
		out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, module+floor).Output()
		require.NoError(t, err)
		for _, path := range strings.Fields(string(out)) {
			if !strings.Contains(strings.Split(path, "/")[0], ".") {
				continue
			}
			allowed := false
			for _, prefix := range may {
				if strings.HasPrefix(prefix, "/") {
					prefix = module + prefix
				}
				allowed = allowed || path == prefix || strings.HasPrefix(path, prefix+"/")
			}
			require.True(t, allowed, "%s imports %s", module+floor, path)
		}
	}
}

// The queue has neither the database's clock nor a statement: it does not even import GORM.
func TestTheQueueKnowsNoGORM(t *testing.T) {
	for _, file := range []string{"queue.go", "fairness.go", "announce.go", "handon.go", "wait.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		require.NoError(t, err)
		for _, spec := range parsed.Imports {
			require.NotContains(t, spec.Path.Value, "gorm.io", file)
		}
	}
}
