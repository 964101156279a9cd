//go:build unix

package faults_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/faults"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// aMinute is much longer than a release takes by itself.
const aMinute = time.Minute

// ends are all ways in which a lease is given back. Each gets the mutex that it uses, and what breaks the database.
var ends = map[string]func(m *dbmutex.Mutex, meanwhile func()) error{
	"do": func(m *dbmutex.Mutex, meanwhile func()) error {
		return m.Do(func(context.Context) error { meanwhile(); return nil })
	},
	"release": func(m *dbmutex.Mutex, meanwhile func()) error {
		lease, err := m.Acquire()
		if err != nil {
			return err
		}
		meanwhile()
		return lease.Release()
	},
	"value": func(m *dbmutex.Mutex, meanwhile func()) error {
		_, err := dbmutex.DoValue(m, func(context.Context) (int, error) { meanwhile(); return 1, nil })
		return err
	},
	"decorate": func(m *dbmutex.Mutex, meanwhile func()) error {
		return m.Decorate(func(context.Context) error { meanwhile(); return nil })(context.Background())
	},
}

// endAll ends a lease in each way while the database is broken, and requires all to be over after it was mended. Nothing is
// left running then.
func endAll(t *testing.T, db *dbmutex.DB, breaks, mend func()) {
	ready, broken, told := make(chan struct{}), make(chan struct{}), make(chan error, len(ends))
	for name, end := range ends {
		go func() {
			told <- end(db.Mutex(name, dbmutex.WithRenewal()), func() { ready <- struct{}{}; <-broken })
		}()
	}
	for range ends {
		<-ready
	}
	breaks()
	close(broken)
	start := time.Now()
	for range ends {
		require.ErrorContains(t, <-told, "it goes on in the background")
	}
	time.Sleep(time.Until(start.Add(aMinute)))
	mend()
	require.Eventually(t, func() bool {
		var left int64
		return testdb.Taken(db.Gorm).Count(&left).Error == nil && left == 0
	}, time.Minute, 100*time.Millisecond)
	// Those of tests that run side by side are counted, too.
	require.Eventually(t, func() bool { return testprocess.Goroutines("locktable.Table.later") == 0 || t.Failed() },
		5*time.Minute, 100*time.Millisecond, "something is left running")
	for name := range ends {
		requireFree(t, db, name)
	}
}

func TestReleasesOutlastAServerThatIsAwayForAMinute(t *testing.T) {
	t.Parallel()
	faults.OnServer(t, func(t *testing.T, s *testdb.Server, db *dbmutex.DB) {
		t.Parallel()
		endAll(t, db, func() { s.Stop(t, "fast") }, func() { s.Start(t) })
	})
}

func TestReleasesOutlastAFileThatIsLockedForAMinute(t *testing.T) {
	t.Parallel()
	d := testdb.SQLite(t)
	var letGo func()
	endAll(t, open(t, d), func() { letGo = d.Hang(t) }, func() { letGo() })
}

func TestReleasesOutlastAPoolThatIsStarvedForAMinute(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		db := open(t, d)
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(2)
		var kept []*gorm.DB
		endAll(t, db, func() {
			for range 2 {
				kept = append(kept, db.Gorm.Begin())
			}
		}, func() {
			for _, tx := range kept {
				require.NoError(t, tx.Rollback().Error)
			}
		})
	})
}

func TestABackgroundReleaseEndsWithItsPoolOrItsLease(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		for name, opt := range map[string]dbmutex.Option{"pool": nil, "lease": dbmutex.WithTTL(7 * time.Second)} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				own := d.Another(t)
				db := open(t, own)
				lease := acquire(t, db, "job", opt)
				letGo := own.Hang(t)
				require.ErrorContains(t, lease.Release(), "it goes on in the background")
				if name == "pool" {
					pool, err := db.DB()
					require.NoError(t, err)
					require.NoError(t, pool.Close())
				} else {
					requireEndsLater(t, lease)
				}
				letGo()
			})
		}
	})
}

// requireEndsLater waits for a lease's deadline.
func requireEndsLater(t *testing.T, lease *dbmutex.Lease) {
	expires, ok := lease.ExpiresAt()
	require.True(t, ok)
	time.Sleep(time.Until(expires))
}
