package faults_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/faults"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// onLateNetwork runs a test on every database that is reached by a network: with a mutex that was never locked, and with one
// that was, which may have left a row. The network keeps the first request that acquires it by the second handle.
func onLateNetwork(t *testing.T, test func(t *testing.T, direct, db *dbmutex.DB, network *proxy.Proxy)) {
	t.Helper()
	for _, known := range []bool{false, true} {
		t.Run(map[bool]string{false: "a new mutex", true: "a known mutex"}[known], func(t *testing.T) {
			faults.OnNetwork(t, func(t *testing.T, direct, db *dbmutex.DB, network *proxy.Proxy) {
				requireFree(t, db, "warm")
				if known {
					requireFree(t, direct, "job")
				}
				late := true
				network.Choose(func(statement string) *proxy.Fault {
					if late && does(network, statement, "acquire") {
						late = false
						return &proxy.Fault{Late: time.Hour}
					}
					return nil
				})
				test(t, direct, db, network)
				require.False(t, late)
			})
		})
	}
}

// A request of an acquire that arrives late must not give the lease back to a holder that has lost it.
func TestALateRequestDoesNotReviveALostLease(t *testing.T) {
	for name, end := range map[string]func(db *dbmutex.DB, lease *dbmutex.Lease) error{
		"Guard": func(db *dbmutex.DB, lease *dbmutex.Lease) error {
			return db.Gorm.Transaction(func(tx *gorm.DB) error { return lease.Guard(tx) })
		},
		"Release": func(_ *dbmutex.DB, lease *dbmutex.Lease) error {
			return lease.Release()
		},
	} {
		t.Run(name, func(t *testing.T) {
			onLateNetwork(t, func(t *testing.T, direct, db *dbmutex.DB, network *proxy.Proxy) {
				lease := acquire(t, db, "job", dbmutex.WithTTL(200*time.Millisecond))
				requireEnds(t, lease.Context())
				require.NoError(t, acquire(t, direct, "job", dbmutex.WithWait(time.Second)).Release(), "somebody else has it")
				network.Deliver()
				testdb.RequireTimeout(t, end(db, lease), "job", true)
			})
		})
	}
}

func TestALateRequestDoesNotLetTransactionsOverlap(t *testing.T) {
	onLateNetwork(t, func(t *testing.T, direct, db *dbmutex.DB, network *proxy.Proxy) {
		require.NoError(t, direct.Exec(`CREATE TABLE counter AS SELECT 0 AS n`).Error)
		raise := func(tx *gorm.DB, between func()) error {
			var n int
			if err := tx.Raw(`SELECT n FROM counter`).Scan(&n).Error; err != nil {
				return err
			}
			between()
			return tx.Exec(`UPDATE counter SET n = ?`, n+1).Error
		}
		// The deadline of the work's context does not matter here: a slow statement between two looks has the same effect.
		err := db.Mutex("job", dbmutex.WithTTL(200*time.Millisecond)).Transaction(func(tx *gorm.DB) error {
			return raise(tx, func() {
				require.NoError(t, direct.Mutex("job", dbmutex.WithWait(time.Second)).Transaction(func(tx *gorm.DB) error {
					return raise(tx, func() {})
				}))
				network.Deliver()
			})
		})
		var n int
		require.NoError(t, direct.Raw(`SELECT n FROM counter`).Scan(&n).Error)
		require.ErrorIs(t, err, dbmutex.ErrTimeout, "two committed, the counter says %d", n)
	})
}

// A waiter whose request got no answer, while somebody else acquired the mutex, removes what that request may have made, and
// goes on waiting. Each request that it sends then may be late, among them the one that removes.
func TestALateDiscardRemovesNoLiveLease(t *testing.T) {
	faults.OnNetwork(t, func(t *testing.T, direct, db *dbmutex.DB, network *proxy.Proxy) {
		db = db.WithContext(limited(t))
		requireFree(t, db, "warm")
		for which := 1; which <= 6; which++ {
			held, heldErr := (*dbmutex.Lease)(nil), error(nil)
			requests, late := 0, make(chan struct{})
			network.Choose(func(statement string) *proxy.Fault {
				switch {
				case strings.HasPrefix(statement, "PREPARE "):
				case held != nil:
					if requests++; requests == which {
						close(late)
						return &proxy.Fault{Late: time.Hour}
					}
				case does(network, statement, "acquire"):
					held, heldErr = direct.Mutex("job").Acquire()
					return &proxy.Fault{Unsent: true}
				}
				return nil
			})
			leases, failed := make(chan *dbmutex.Lease, 1), make(chan error, 1)
			go func() {
				lease, err := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
				leases <- lease
				failed <- err
			}()
			select {
			case <-late:
			case err := <-failed:
				require.Fail(t, "the waiter ended", "%v", err)
			}
			require.NoError(t, heldErr)
			require.NoError(t, held.Release())
			lease := <-leases
			require.NoError(t, <-failed)
			network.Choose(nil)
			network.Deliver()
			requireHeld(t, direct, "job")
			require.NoError(t, lease.Renew())
			require.NoError(t, lease.Release())
		}
	})
}
