// Package faults breaks what is between a test and its database: the network, or the server. Its own tests break everything
// that a program can see break.
package faults

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// OnNetwork runs a test on every database that is reached by a network: direct reaches it undisturbed, proxied through one
// that can be broken.
func OnNetwork(t *testing.T, test func(t *testing.T, direct, proxied *dbmutex.DB, network *proxy.Proxy)) {
	t.Helper()
	onNetworkOf(t, testdb.Remote, test)
}

func onNetworkOf(
	t *testing.T, wanted func(*testdb.Kind) bool,
	test func(t *testing.T, direct, proxied *dbmutex.DB, network *proxy.Proxy),
) {
	t.Helper()
	testdb.EachOf(t, wanted, func(t *testing.T, d *testdb.Database) {
		network := proxy.New(t, d)
		test(
			t, d.Mutexes(t, dbmutex.DefaultSettings()), network.Database.Registered(t, dbmutex.DefaultSettings()), network,
		)
	})
}

// longest is how many messages the answers have, at the most, whose every part Positions loses.
const longest = 20

// Positions runs a test once for every position at which the network may break: at each request after arm was called,
// before the server gets it, and after each message of the answer.
func Positions(t *testing.T, test func(t *testing.T, direct, proxied *dbmutex.DB, arm func(onBreak func()))) {
	t.Helper()
	PositionsOf(t, testdb.Remote, test)
}

// PositionsOf is Positions for the kinds of database that are wanted.
func PositionsOf(
	t *testing.T, wanted func(*testdb.Kind) bool,
	test func(t *testing.T, direct, proxied *dbmutex.DB, arm func(onBreak func())),
) {
	t.Helper()
	onNetworkOf(t, wanted, func(t *testing.T, direct, _ *dbmutex.DB, network *proxy.Proxy) {
		for request := 1; ; request++ {
			requests := 0
			for after := -1; after <= longest; after++ {
				requests = 0
				proxied := network.Database.Registered(t, dbmutex.DefaultSettings())
				fault, broken := &proxy.Fault{Unsent: after < 0, After: after}, ""
				test(t, direct, proxied, func(onBreak func()) {
					network.Choose(func(statement string) *proxy.Fault {
						if requests++; requests != request {
							return nil
						}
						broken = statement
						onBreak()
						return fault
					})
				})
				network.Choose(nil)
				pool, err := proxied.DB()
				require.NoError(t, err)
				require.NoError(t, pool.Close()) // the server has only so many connections
				if t.Failed() {
					t.Fatalf("with the network broken at request %d, after %d messages of its answer: %s", request, after, broken)
				}
				if requests < request || fault.Missed.Load() {
					break
				}
			}
			if requests < request {
				require.Greater(t, request, 1, "nothing was broken")
				return
			}
		}
	})
}

// OnServer runs a test on a server of its own of every kind, which it may break.
func OnServer(t *testing.T, test func(t *testing.T, s *testdb.Server, db *dbmutex.DB)) {
	t.Helper()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		s := d.NewServer(t)
		test(t, s, s.Database().Mutexes(t, dbmutex.DefaultSettings()))
	})
}

// OnCluster runs a test on a PostgreSQL server of its own, which it may break.
func OnCluster(t *testing.T, test func(t *testing.T, c *testdb.Cluster, db *dbmutex.DB), settings ...string) {
	c := testdb.NewCluster(t, settings...)
	test(t, c, testdb.PostgresAt(c.DSN()).Mutexes(t, dbmutex.DefaultSettings()))
}
