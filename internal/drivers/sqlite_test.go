package drivers_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// TestMain lets the tests run side by side.
func TestMain(m *testing.M) { testprocess.Main(m, nil) }

// packages are those with tests on SQLite, and the names of them.
var packages = map[string]string{
	"github.com/gorm-dbmutex/dbmutex":                 "dbmutex",
	"github.com/gorm-dbmutex/dbmutex/internal/faults": "faults",
}

// added is the file that each package gets in addition: it chooses the driver, and shows that it was chosen.
const added = `package %s_test

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
// there: so the suite is the same for all drivers, new tests are part of it at once, and the packages do not know of them.
func TestSuiteOnSQLiteDrivers(t *testing.T) {
	t.Parallel()
	// go test's cache heeds only the files that a test reads below its own module: this path looks like one. Without it a
	// change of the root's tests would not be seen here.
	here, err := os.Getwd()
	require.NoError(t, err)
	_, err = os.ReadDir(here + "/../..")
	require.NoError(t, err)

	for name, driver := range map[string]string{
		"glebarez": "*sqlite.Driver",
		"ncruces":  "*driver.SQLite",
	} {
		t.Run(name, func(t *testing.T) {
			suite := exec.CommandContext(t.Context(), "go", arguments(t, name)...)
			// The servers' tests run the same with every driver.
			suite.Env = append(os.Environ(), "DBMUTEX_TEST_POSTGRES=none", "DBMUTEX_TEST_MYSQL=none")
			out, err := suite.CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Equal(t, len(packages), strings.Count(string(out), "the driver is "+driver), "%s", out)
		})
	}
}

// arguments are those of the go command.
func arguments(t *testing.T, driver string) []string {
	replace := map[string]string{}
	for path, name := range packages {
		folder, err := exec.Command("go", "list", "-f", "{{.Dir}}", path).Output()
		require.NoError(t, err)
		file := filepath.Join(strings.TrimSpace(string(folder)), "driver_test.go")
		require.NoFileExists(t, file)
		replace[file] = filepath.Join(t.TempDir(), "driver_test.go")
		require.NoError(t, os.WriteFile(replace[file], fmt.Appendf(nil, added, name, driver), 0o600))
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	require.NoError(t, err)
	list := filepath.Join(t.TempDir(), "overlay.json")
	require.NoError(t, os.WriteFile(list, overlay, 0o600))

	// Without the race detector, whatever this test has: it looks at the same code in the root module's own run.
	args := []string{"test", "-count=1", "-shuffle=on", "-v", "-overlay=" + list,
		// The examples run the same with every driver. The clock of one in pure Go is not the C library's, which that test
		// sets. Every process of one in WebAssembly compiles it first, which can take a minute.
		"-skip=^Example|^TestStepsOfSQLitesClock$|^Test(AHolder|ATransaction)That(IsKilled|Pauses)|^TestNoProcessStarves$" +
			"|^TestEachTick|^Test(AOnceWhoseProcessIsKilledRunsAgain|WaitersOfOtherProcessesGetTheRecord|NoMoreThanNHaveAPermit)$",
		// The name that mattn's driver has in database/sql, by default.
		"-ldflags=-X github.com/ncruces/go-sqlite3/driver.driverName=ncruces"}
	return slices.AppendSeq(args, maps.Keys(packages))
}
