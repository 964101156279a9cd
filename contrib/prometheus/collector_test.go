package prommutex_test

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	prommutex "github.com/gorm-dbmutex/dbmutex/contrib/prometheus"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// always asks the database at every scrape, and waits for it for long.
var always = prommutex.CollectorOptions{Timeout: time.Minute, MaxAge: 1}

// collect makes a registry of a collector.
func collect(t *testing.T, db *dbmutex.DB, o prommutex.CollectorOptions) *prometheus.Registry {
	t.Helper()
	collector, err := prommutex.NewCollector(db, o)
	require.NoError(t, err)
	r := prometheus.NewRegistry()
	require.NoError(t, r.Register(collector))
	return r
}

// each runs a test on every database.
func each(t *testing.T, test func(t *testing.T, db *dbmutex.DB)) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		test(t, d.Mutexes(t, dbmutex.DefaultSettings()))
	})
}

// asked counts what is asked of the table.
func asked(t *testing.T, db *dbmutex.DB, do func()) *atomic.Int32 {
	t.Helper()
	var n atomic.Int32
	require.NoError(t, db.Callback().Row().Before("gorm:row").Register("asked", func(tx *gorm.DB) {
		if strings.Contains(tx.Statement.SQL.String(), "expires_at") {
			n.Add(1)
			do()
		}
	}))
	return &n
}

var away = []string{"up 0"}

func TestTheCollectorTellsWhatIsInTheTable(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		r := collect(t, db, always)
		empty := []string{
			"table_leases{expired} 0", "table_leases{held} 0", "table_leases_without_expiry 0",
			"table_oldest_lease_seconds 0", "up 1",
		}
		require.Equal(t, empty, values(t, r))

		const oldest = "first"
		lease := testdb.Acquire(t, db, oldest)
		testdb.Acquire(t, db, "ran out")
		testdb.Expire(t, db, "ran out")
		testdb.Acquire(t, db, "never ends", dbmutex.WithoutTTL())
		time.Sleep(10 * time.Millisecond)
		got := values(t, r)
		require.Equal(t, []string{"table_leases{expired} 1", "table_leases{held} 2", "table_leases_without_expiry 1"}, got[:3])
		require.Positive(t, number(t, got[3], "table_oldest_lease_seconds "))
		require.Equal(t, "up 1", got[4])

		require.NoError(t, lease.Release())
		got = values(t, collect(t, db, prommutex.CollectorOptions{Timeout: time.Minute, MaxAge: 1, PerMutex: 5}))
		require.Positive(t, number(t, got[0], "table_lease_age_seconds{never ends} "))
		require.Equal(t, []string{"table_leases{expired} 1", "table_leases{held} 1", "table_leases_without_expiry 1"}, got[1:4])
	})
}

// number is that of a line.
func number(t *testing.T, line, name string) float64 {
	t.Helper()
	require.True(t, strings.HasPrefix(line, name), line)
	n, err := strconv.ParseFloat(strings.TrimPrefix(line, name), 64)
	require.NoError(t, err)
	return n
}

func TestTheOldestMutexesAreNamed(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		for range 2 { // it is named once
			_, err := db.Semaphore("api", 2).Acquire()
			require.NoError(t, err)
			time.Sleep(5 * time.Millisecond)
		}
		for _, id := range []string{"z", "y", "x"} {
			testdb.Acquire(t, db, id)
			time.Sleep(5 * time.Millisecond) // the database's clock goes on
		}
		var named []string
		for _, line := range values(t, collect(t, db, prommutex.CollectorOptions{PerMutex: 3, Timeout: time.Minute})) {
			if label := regexp.MustCompile(`^table_lease_age_seconds\{(.*)\}`).FindStringSubmatch(line); label != nil {
				named = append(named, label[1])
			}
		}
		slices.Sort(named)
		require.Equal(t, []string{"api", "y", "z"}, named)
	})
}

func TestASemaphoreIsOneMutexWithTheAgeOfItsOldestLease(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		oldest, err := db.Semaphore("slots", 3).Acquire()
		require.NoError(t, err)
		time.Sleep(30 * time.Millisecond) // the database's clock goes on
		for range 2 {
			_, err := db.Semaphore("slots", 3).Acquire()
			require.NoError(t, err)
		}
		testdb.Acquire(t, db, "slots")
		testdb.Acquire(t, db, "job")
		got := values(t, collect(t, db, prommutex.CollectorOptions{PerMutex: 2, Timeout: time.Minute}))
		require.Len(t, got, 7)
		require.True(t, strings.HasPrefix(got[0], "table_lease_age_seconds{job} "), got[0])
		require.Equal(t, "table_leases{held} 5", got[3])
		age := number(t, got[1], "table_lease_age_seconds{slots} ")
		require.GreaterOrEqual(t, age, number(t, got[5], "table_oldest_lease_seconds "), "it was asked for later")
		require.NoError(t, oldest.Release())
		got = values(t, collect(t, db, prommutex.CollectorOptions{PerMutex: 1, Timeout: time.Minute}))
		require.True(t, strings.HasPrefix(got[0], "table_lease_age_seconds{slots} "), got)
		require.Len(t, got, 6)
	})
}

func TestCollectorsMetricsFollowPrometheusConventions(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		testdb.Acquire(t, db, "job")
		problems, err := testutil.GatherAndLint(collect(t, db, prommutex.CollectorOptions{PerMutex: 1, Timeout: time.Minute}))
		require.NoError(t, err)
		require.Empty(t, problems)
	})
}

func TestFiguresAreKeptForMaxAge(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		times := asked(t, db, func() {})
		cached := collect(t, db, prommutex.CollectorOptions{MaxAge: time.Hour, Timeout: time.Minute})
		before := values(t, cached)
		once := times.Load()
		require.Positive(t, once)
		testdb.Acquire(t, db, "job")
		times.Store(0)
		require.Equal(t, before, values(t, cached))
		require.Zero(t, times.Load())

		fresh := collect(t, db, always)
		for range 2 {
			require.Contains(t, values(t, fresh), "table_leases{held} 1")
		}
		require.Equal(t, 2*once, times.Load())
	})
}

func TestOneScrapeAtATimeAsks(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		r := collect(t, db, prommutex.CollectorOptions{MaxAge: time.Hour, Timeout: time.Minute})
		_, err := db.LeaseStats() // the table has been looked at
		require.NoError(t, err)
		asks, goOn := make(chan bool), make(chan bool)
		times := asked(t, db, func() {
			asks <- true
			<-goOn
		})
		var scrapes sync.WaitGroup
		scrape := func() {
			scrapes.Go(func() {
				families, err := r.Gather()
				if err != nil || len(families) != 4 {
					t.Error(len(families), err)
				}
			})
		}
		scrape()
		<-asks
		for range 5 {
			scrape()
		}
		time.Sleep(20 * time.Millisecond)
		goOn <- true
		scrapes.Wait()
		require.EqualValues(t, 1, times.Load())
	})
}

func TestADatabaseThatIsAwayHasNoFigures(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		testdb.Acquire(t, db, "job")
		o := always
		o.PerMutex = 5
		r := collect(t, db, o)
		require.Contains(t, values(t, r), "up 1")
		require.NoError(t, db.Migrator().DropTable(&dbmutex.DBMutex{}))
		require.Equal(t, away, values(t, r))
		require.NoError(t, db.Migrate())
		require.Contains(t, values(t, r), "table_leases{held} 0")

		ctx, cancel := context.WithCancel(t.Context())
		ended := collect(t, db.WithContext(ctx), always)
		require.Contains(t, values(t, ended), "up 1")
		cancel()
		require.Equal(t, away, values(t, ended))

		pool, err := db.DB()
		require.NoError(t, err)
		require.NoError(t, pool.Close())
		require.Equal(t, away, values(t, r))
		require.Equal(t, away, values(t, collect(t, db, always)), "a collector can be made meanwhile")
	})
}

func TestNothingIsToldOfATableThatWasReadInPart(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB) {
		_, err := db.LeaseStats() // the table has been looked at
		require.NoError(t, err)
		statements := 0
		require.NoError(t, db.Callback().Row().Before("gorm:row").Register("fail", func(tx *gorm.DB) {
			if statements++; statements == 2 {
				_ = tx.AddError(errors.New("the connection broke"))
			}
		}))
		o := always
		o.PerMutex = 5
		require.Equal(t, away, values(t, collect(t, db, o)))
		require.Equal(t, 2, statements)
	})
}

func TestADatabaseThatDoesNotAnswerIsAway(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		network := proxy.New(t, d)
		db := network.Database.Mutexes(t, dbmutex.DefaultSettings())
		r := collect(t, db, prommutex.CollectorOptions{Timeout: 500 * time.Millisecond, MaxAge: 1})
		require.Eventually(t, func() bool { return slices.Contains(values(t, r), "up 1") }, time.Minute, time.Millisecond)
		network.Freeze()
		require.Equal(t, away, values(t, r))
		network.Thaw()
		require.Eventually(t, func() bool { return slices.Contains(values(t, r), "up 1") }, time.Minute, time.Millisecond)
		network.Refuse()
		require.Equal(t, away, values(t, r))
		network.Admit()
		require.Eventually(t, func() bool { return slices.Contains(values(t, r), "up 1") }, time.Minute, time.Millisecond)
	})
}

func TestWhatNewCollectorRefuses(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		db := d.Registered(t, dbmutex.DefaultSettings())
		statements := asked(t, db, func() {})
		for _, o := range []prommutex.CollectorOptions{{Timeout: -1}, {MaxAge: -1}, {PerMutex: -1}, {PerMutex: 1001}} {
			_, err := prommutex.NewCollector(db, o)
			require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
		}
		for _, nothing := range []*dbmutex.DB{nil, {}, dbmutex.Wrap(&gorm.DB{}), dbmutex.Wrap(d.Open(t))} {
			_, err := prommutex.NewCollector(nothing, prommutex.CollectorOptions{})
			require.ErrorIs(t, err, dbmutex.ErrNotRegistered)
		}
		_, err := prommutex.NewCollector(db.Session(&gorm.Session{DryRun: true}), prommutex.CollectorOptions{})
		require.ErrorIs(t, err, dbmutex.ErrDryRun)
		_, err = prommutex.NewCollector(db, prommutex.CollectorOptions{PerMutex: 1000}) // though the table is missing
		require.NoError(t, err)
		require.Zero(t, statements.Load())
	})
}
