package dbmutextest_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/dbmutextest"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// each runs a test on the database of Open, and on all that dbmutex knows.
func each(t *testing.T, test func(t *testing.T, db *dbmutex.DB)) {
	t.Run("Open", func(t *testing.T) { test(t, dbmutextest.Open(t)) })
	testdb.Each(t, func(t *testing.T, d *testdb.Database) { test(t, d.Mutexes(t, dbmutex.DefaultSettings())) })
}

// fake is a test that may fail.
type fake struct {
	testing.TB
	failures, fatal []string
	cleanups        []func()
}

func (f *fake) Helper()                {}
func (f *fake) Cleanup(cleanup func()) { f.cleanups = append(f.cleanups, cleanup) }
func (f *fake) Errorf(format string, args ...any) {
	f.failures = append(f.failures, fmt.Sprintf(format, args...))
}

func (f *fake) Fatalf(format string, args ...any) {
	f.fatal = append(f.fatal, fmt.Sprintf(format, args...))
	panic(f)
}

// fatal is what ends a test.
func fatal(t *testing.T, test func(t testing.TB)) string {
	f := &fake{TB: t}
	func() {
		defer func() { require.Equal(t, any(f), recover(), "the test goes on") }()
		test(f)
	}()
	require.Len(t, f.fatal, 1)
	require.True(t, strings.HasPrefix(f.fatal[0], "dbmutextest: "), f.fatal[0])
	require.Empty(t, f.failures)
	return f.fatal[0]
}

func TestOpenIsATestsOwn(t *testing.T) {
	db, other := dbmutextest.Open(t), dbmutextest.Open(t)
	testdb.Exercise(t, db)
	dbmutextest.Hold(t, db, "job")
	testdb.RequireFree(t, other, "job")
}

func TestOpenLeavesNothing(t *testing.T) {
	var db *dbmutex.DB
	var file string
	t.Run("inner", func(t *testing.T) {
		db = dbmutextest.Open(t)
		require.NoError(t, db.Raw(`SELECT file FROM pragma_database_list`).Scan(&file).Error)
		require.FileExists(t, file)
		dbmutextest.Hold(t, db, "job")
	})
	require.NoFileExists(t, file)
	require.ErrorContains(t, db.Exec(`SELECT 1`).Error, "closed")
}

func TestHold(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		require.False(t, dbmutextest.Held(t, db, "job"))
		release := dbmutextest.Hold(t, db, "job")
		require.True(t, dbmutextest.Held(t, db, "job"))
		require.False(t, dbmutextest.Held(t, db, "another job"))
		var held *dbmutex.HeldError
		require.ErrorAs(t, db.Mutex("job").Do(testdb.Nothing), &held)
		require.Equal(t, "somebody else", held.Holder)
		release()
		require.False(t, dbmutextest.Held(t, db, "job"))
		release()
		testdb.RequireFree(t, db, "job")
	})
}

func TestHoldEndsWithTheTest(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		t.Run("inner", func(t *testing.T) {
			dbmutextest.Hold(t, db, "job")
			dbmutextest.Hold(t, db, "taken away")
			require.NoError(t, db.Mutex("taken away").ForceRelease())
		})
		require.False(t, dbmutextest.Held(t, db, "job"))
	})
}

// TestHoldHasItsOwnSettings and its own context.
func TestHoldHasItsOwnSettings(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		done, cancel := context.WithCancel(context.Background())
		cancel()
		ttl := time.Millisecond
		db := d.Mutexes(t, dbmutex.Settings{TTL: &ttl, MinHold: ttl, SkipHeld: true}).WithContext(done)
		release := dbmutextest.Hold(t, db, "job")
		time.Sleep(10 * time.Millisecond)
		require.True(t, dbmutextest.Held(t, db, "job"))
		release()
		require.False(t, dbmutextest.Held(t, db, "job"))
	})
}

func TestAWaiterGetsWhatWasHeld(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		release := dbmutextest.Hold(t, db, "job")
		ran := make(chan error, 1)
		go func() { ran <- db.Mutex("job", dbmutex.WithWait(time.Minute)).Do(testdb.Nothing) }()
		release()
		require.NoError(t, <-ran)
	})
}

func TestRunOut(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		for _, opts := range [][]dbmutex.Option{nil, {dbmutex.WithRenewal()}} {
			err := db.Mutex("job", opts...).Do(func(ctx context.Context) error {
				lease, _ := dbmutex.LeaseFrom(ctx)
				dbmutextest.RunOut(t, lease)
				require.ErrorIs(t, ctx.Err(), context.Canceled)
				require.ErrorIs(t, context.Cause(ctx), dbmutex.ErrTimeout)
				require.False(t, dbmutextest.Held(t, db, "job"))
				require.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout)
				dbmutextest.RunOut(t, lease) // it did before
				return nil
			})
			testdb.RequireTimeout(t, err, "job", false)
		}
	})
}

func TestALeaseThatRanOutIsTakenOver(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		lease := testdb.Acquire(t, db, "job")
		waiting := make(chan error, 1)
		go func() { waiting <- db.Mutex("job", dbmutex.WithWait(time.Minute)).Do(testdb.Nothing) }()
		dbmutextest.RunOut(t, lease)
		require.NoError(t, <-waiting)
		testdb.RequireTimeout(t, lease.Release(), "job", true)
	})
}

func TestLose(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		for _, opts := range [][]dbmutex.Option{nil, {dbmutex.WithRenewal()}, {dbmutex.WithoutTTL()}} {
			err := db.Mutex("job", opts...).Do(func(ctx context.Context) error {
				lease, _ := dbmutex.LeaseFrom(ctx)
				dbmutextest.Lose(t, lease)
				require.ErrorIs(t, context.Cause(ctx), dbmutex.ErrTimeout)
				require.True(t, lease.Lost())
				testdb.RequireFree(t, db, "job")
				return nil
			})
			testdb.RequireTimeout(t, err, "job", true)
		}
	})
}

func TestALeaseThatRanOutIsLost(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		lease := testdb.Acquire(t, db, "job")
		dbmutextest.RunOut(t, lease)
		dbmutextest.Lose(t, lease)
		testdb.RequireTimeout(t, lease.Release(), "job", true)
	})
}

func TestFailuresEndTheTest(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		dbmutextest.Hold(t, db, "held")
		require.Contains(t, fatal(t, func(t testing.TB) { dbmutextest.Hold(t, db, "held") }), "is held by somebody else")
		require.Contains(t, fatal(t, func(t testing.TB) { dbmutextest.Hold(t, nil, "job") }), "the handle is nil")
		require.Contains(t, fatal(t, func(t testing.TB) { dbmutextest.Hold(t, db, "") }), "invalid lock id")
		require.Contains(t, fatal(t, func(t testing.TB) { dbmutextest.Held(t, nil, "job") }), "the handle is nil")
		dry := db.Session(&gorm.Session{DryRun: true})
		require.Contains(t, fatal(t, func(t testing.TB) { dbmutextest.Held(t, dry, "job") }), "DryRun")

		released, lost, never := testdb.Acquire(t, db, "released"), testdb.Acquire(t, db, "lost"),
			testdb.Acquire(t, db, "never expires", dbmutex.WithoutTTL())
		require.NoError(t, released.Release())
		require.NoError(t, db.Mutex("lost").ForceRelease())
		for name, end := range map[string]func(testing.TB, *dbmutex.Lease){
			"RunOut": dbmutextest.RunOut, "Lose": dbmutextest.Lose,
		} {
			require.Contains(t, fatal(t, func(t testing.TB) { end(t, nil) }), "not from Acquire", name)
			require.Contains(t, fatal(t, func(t testing.TB) { end(t, new(dbmutex.Lease)) }), "not from Acquire", name)
			require.Contains(t, fatal(t, func(t testing.TB) { end(t, released) }), "had been released", name)
			require.Contains(t, fatal(t, func(t testing.TB) { end(t, lost) }), "had gone", name)
		}
		require.Contains(t, fatal(t, func(t testing.TB) { dbmutextest.RunOut(t, never) }), "never runs out")
	})
}

func TestAReleaseThatFailsMakesTheTestFail(t *testing.T) {
	f := &fake{TB: t}
	db := dbmutextest.Open(t)
	release := dbmutextest.Hold(f, db, "job")
	pool, err := db.DB()
	require.NoError(t, err)
	require.NoError(t, pool.Close())
	release()
	require.Len(t, f.failures, 1)
	require.Contains(t, f.failures[0], `somebody else's release of "job"`)
	require.Len(t, f.cleanups, 1)
}

// Every snippet of the page is a part of the recipes' file.
func TestThePagesSnippetsAreCompiled(t *testing.T) {
	page, err := os.ReadFile("../docs/testing.md")
	require.NoError(t, err)
	recipes, err := os.ReadFile("recipes_test.go")
	require.NoError(t, err)
	snippets := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	require.Len(t, snippets, 4)
	for _, snippet := range snippets {
		require.True(t, strings.Contains(string(recipes), snippet[1]), "not compiled:\n%s", snippet[1])
	}
}
