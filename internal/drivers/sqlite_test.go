package drivers_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const root = "github.com/gorm-dbmutex/dbmutex"

// packages are those whose tests are the suite, with the package of their tests.
var packages = map[string]string{root: "dbmutex_test", root + "/internal/faults": "faults_test"}

// added is the file that each gets in addition: it chooses the driver, and shows that it was chosen.
const added = `package %s

import (
	"testing"

	_ "github.com/gorm-dbmutex/dbmutex/internal/drivers/%s"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestDriver(t *testing.T) {
	pool, err := testdb.SQLite(t).Open(t).DB()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the driver is %%T", pool.Driver())
}
`

// TestSuiteOnSQLiteDrivers runs the root module's own tests on every other SQLite driver, by "go test" of its packages from
// this module, whose go.mod has the drivers. The go command's -overlay adds one file to each package, without writing
// there: so the suite is the same for all drivers, new tests are part of it at once, and nothing of the root knows of
// them.
func TestSuiteOnSQLiteDrivers(t *testing.T) {
	// go test's cache heeds only the files that a test reads below its own module: this path looks like one. Without it a
	// change of the root's tests would not be seen here.
	here, err := os.Getwd()
	require.NoError(t, err)
	_, err = os.ReadDir(here + "/../..")
	require.NoError(t, err)

	files := map[string]string{} // by the package
	for path := range packages {
		folder, err := exec.Command("go", "list", "-f", "{{.Dir}}", path).Output()
		require.NoError(t, err)
		files[path] = filepath.Join(strings.TrimSpace(string(folder)), "driver_test.go")
		require.NoFileExists(t, files[path])
	}

	for name, driver := range map[string]string{
		"glebarez": "*sqlite.Driver",
		"ncruces":  "*driver.SQLite",
	} {
		t.Run(name, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), "go", arguments(t, files, name)...).CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Equal(t, len(packages), strings.Count(string(out), "the driver is "+driver))
		})
	}
}

// arguments are those of the go command.
func arguments(t *testing.T, files map[string]string, name string) []string {
	replace := map[string]string{}
	for path, file := range files {
		replace[file] = filepath.Join(t.TempDir(), "driver_test.go")
		require.NoError(t, os.WriteFile(replace[file], fmt.Appendf(nil, added, packages[path], name), 0o600))
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	require.NoError(t, err)
	list := filepath.Join(t.TempDir(), "overlay.json")
	require.NoError(t, os.WriteFile(list, overlay, 0o600))

	args := []string{"test", "-count=1", "-shuffle=on", "-v", "-overlay=" + list,
		// PostgreSQL's subtests and the examples run the same with every driver. The clock of one in pure Go is not the C
		// library's, which that test sets; and every process of one in WebAssembly compiles it first, which can take a minute.
		// (A pattern that may match a subtest hides those behind it, so the whole tests come first.)
		"-skip=^Example|^TestStepsOfSQLitesClock$|^Test(AHolder|ATransaction)That|^TestNoProcessStarves$|/^postgres$|//^postgres$",
		// The name that mattn's driver has in database/sql, by default.
		"-ldflags=-X github.com/ncruces/go-sqlite3/driver.driverName=ncruces"}
	if info, ok := debug.ReadBuildInfo(); ok &&
		slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race")
	}
	return slices.AppendSeq(args, maps.Keys(packages))
}
