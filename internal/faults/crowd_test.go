//go:build unix

package faults_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/faults"
	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// The tests of this file break statements that many calls share. They do not run beside other tests.

const crowdSize = 4

func crowdID(i int) string { return fmt.Sprint("crowd ", i) }

// combines is for databases on a network on which calls share statements.
func combines(k *testdb.Kind) bool { return k.Combines && k.Remote }

// together makes calls that share one statement, if that is their first.
func together(t *testing.T, call func(i int) error) {
	t.Helper()
	locktable.Gather("crowd", crowdSize)
	defer locktable.Gather("", 0)
	errs := make([]error, crowdSize)
	var calls sync.WaitGroup
	for i := range crowdSize {
		calls.Go(func() { errs[i] = call(i) })
	}
	calls.Wait()
	for i, err := range errs {
		require.NoError(t, err, crowdID(i))
	}
}

func TestTheAcquiresOfACrowdAreSettledWhereverTheyBreak(t *testing.T) {
	last := make([]int64, crowdSize)
	faults.PositionsOf(t, combines, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		requireFree(t, proxied, "warm")
		other := acquire(t, direct, "crowd 0", dbmutex.WithHolder("other"))
		leases := make([]*dbmutex.Lease, crowdSize)
		arm(func() {})
		together(t, func(i int) (err error) {
			if i == 0 {
				requireHeld(t, proxied, crowdID(i))
				return nil
			}
			leases[i], err = proxied.Mutex(crowdID(i)).Acquire()
			return err
		})
		require.NoError(t, other.Release())
		for i, lease := range leases[1:] {
			require.Greater(t, lease.Token(), last[1+i])
			last[1+i] = lease.Token()
			requireHeld(t, direct, crowdID(1+i))
			require.NoError(t, lease.Renew())
			require.NoError(t, lease.Release())
			require.Nil(t, row(t, direct, crowdID(1+i)))
		}
	})
}

func TestTheReleasesOfACrowdAreSettledWhereverTheyBreak(t *testing.T) {
	faults.PositionsOf(t, combines, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		leases := make([]*dbmutex.Lease, crowdSize)
		for i := range leases {
			leases[i] = acquire(t, proxied, crowdID(i))
		}
		arm(func() {})
		together(t, func(i int) error { return leases[i].Release() })
		for i := range leases {
			require.Nil(t, row(t, direct, crowdID(i)), "no loss is reported that was none")
		}
	})
}

// A request of a crowd that arrives late must not give the leases back to holders that have lost them, nor lock anybody out.
func TestALateRequestOfACrowdRevivesNoLease(t *testing.T) {
	for _, known := range []bool{true, false} {
		faults.OnNetwork(t, func(t *testing.T, direct, db *dbmutex.DB, network *proxy.Proxy) {
			requireFree(t, db, "warm")
			if known { // an answer that is lost, and not the preparation of the statement
				together(t, func(i int) error { return db.Mutex(crowdID(i)).Do(nothing) })
			}
			late := true
			network.Choose(func(statement string) *proxy.Fault {
				if late && does(network, statement, "acquire") {
					late = false
					return &proxy.Fault{Late: time.Hour}
				}
				return nil
			})
			leases := make([]*dbmutex.Lease, crowdSize)
			together(t, func(i int) (err error) {
				leases[i], err = db.Mutex(crowdID(i), dbmutex.WithTTL(time.Hour)).Acquire()
				return err
			})
			require.False(t, late)
			network.Choose(nil)
			for i := range leases {
				testdb.Expire(t, direct, crowdID(i))
				require.NoError(t, acquire(t, direct, crowdID(i)).Release(), "somebody else has it")
			}
			network.Deliver()
			for i, lease := range leases {
				testdb.RequireTimeout(t, lease.Release(), crowdID(i), true)
				require.Eventually(t, func() bool { return row(t, direct, crowdID(i)) == nil }, time.Minute, 10*time.Millisecond)
			}
		})
	}
}

// What a crowd acquires survives a crash, also if the database commits asynchronously. What it releases need not.
func TestACrowdSurvivesACrashOfTheServer(t *testing.T) {
	testdb.EachOf(t, combines, func(t *testing.T, d *testdb.Database) {
		s := d.NewServer(t, d.Unhurried...)
		open(t, s.Database())
		db := s.Database().With(d.AsyncCommit[0], d.AsyncCommit[1]).Registered(t, dbmutex.DefaultSettings())
		requireFree(t, db, "warm")
		leases := make([]*dbmutex.Lease, crowdSize)
		together(t, func(i int) (err error) {
			leases[i], err = db.Mutex(crowdID(i)).Acquire()
			return err
		})
		crash(t, s)
		for i := range leases {
			requireHeldAfterRestart(t, db, crowdID(i))
		}
		committing := s.Database().Registered(t, dbmutex.DefaultSettings()) // and waiting for it, if nothing else is said
		for i := range leases {
			require.NoError(t, leases[i].Release())
			leases[i] = acquire(t, committing, crowdID(i))
		}
		together(t, func(i int) error { return leases[i].Release() })
		crash(t, s)
		for i := range leases {
			require.NotNil(t, rowAfterRestart(t, committing, crowdID(i)), "its release was lost, which costs a TTL at the most")
		}
	})
}

func TestACrowdBehindPgBouncer(t *testing.T) {
	faults.OnCluster(t, func(t *testing.T, c *testdb.Cluster, db *dbmutex.DB) {
		pooler := c.PgBouncer(t)
		for _, mode := range []string{"exec", "simple_protocol"} {
			pooled := openDSN(t, withSetting(pooler, "default_query_exec_mode", mode))
			asked := questions(t, pooled)
			requireFree(t, pooled, "warm")
			asked.Store(0)
			leases := make([]*dbmutex.Lease, crowdSize)
			together(t, func(i int) (err error) {
				leases[i], err = pooled.Mutex(crowdID(i), dbmutex.WithHolder(`\ "it's" {,}`)).Acquire()
				return err
			})
			require.EqualValues(t, 1, asked.Load())
			require.Equal(t, `\ "it's" {,}`, row(t, db, crowdID(0)).Holder)
			together(t, func(i int) error { return leases[i].Release() })
			for range 20 {
				var settings string
				require.NoError(t, pooled.Raw(`SELECT current_setting('lock_timeout') || ' ' || current_setting('synchronous_commit')`).
					Scan(&settings).Error)
				require.Equal(t, "0 on", settings, "of other clients of the same session")
			}
		}
	})
}
