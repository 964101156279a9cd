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

// lateAcquire gives two handles on a database. The network keeps the first request of the second one's acquire until it is
// told to deliver it.
func lateAcquire(t *testing.T) (direct, db *dbmutex.DB, network *proxy.Proxy) {
	d := testdb.Postgres(t)
	direct = open(t, d)
	network = proxy.New(t, d)
	db = openDSN(t, network.Database.DSN+" default_query_exec_mode=exec")
	require.NoError(t, db.Mutex("warm").Do(nothing))
	late := true
	network.Choose(func(statement string) *proxy.Fault {
		if late && strings.Contains(statement, "INSERT") {
			late = false
			return &proxy.Fault{Late: time.Hour}
		}
		return nil
	})
	return direct, db, network
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
			direct, db, proxy := lateAcquire(t)
			lease := acquire(t, db, "job", dbmutex.WithTTL(200*time.Millisecond))
			requireEnds(t, lease.Context())
			require.NoError(t, acquire(t, direct, "job", dbmutex.WithWait(time.Second)).Release(), "somebody else has it")
			proxy.Deliver()
			testdb.RequireTimeout(t, end(db, lease), "job", true)
		})
	}
}

func TestALateRequestDoesNotLetTransactionsOverlap(t *testing.T) {
	direct, db, proxy := lateAcquire(t)
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
			proxy.Deliver()
		})
	})
	var n int
	require.NoError(t, direct.Raw(`SELECT n FROM counter`).Scan(&n).Error)
	require.ErrorIs(t, err, dbmutex.ErrTimeout, "two committed, the counter says %d", n)
}

// A waiter whose question got no answer removes what that may have made, and goes on waiting.
func TestALateDiscardRemovesNoLiveLease(t *testing.T) {
	faults.OnNetwork(t, func(t *testing.T, direct, _ *dbmutex.DB, network *proxy.Proxy) {
		db := openDSN(t, network.Database.DSN+" default_query_exec_mode=exec").WithContext(limited(t))
		require.NoError(t, db.Mutex("warm").Do(nothing))
		held := acquire(t, direct, "job")
		next, late := "INSERT", make(chan struct{})
		network.Choose(func(statement string) *proxy.Fault {
			switch {
			case next == "" || !strings.Contains(statement, next):
				return nil
			case next == "INSERT":
				next = "DELETE"
				return &proxy.Fault{}
			}
			next = ""
			close(late)
			return &proxy.Fault{Late: time.Hour}
		})
		leases, failed := make(chan *dbmutex.Lease, 1), make(chan error, 1)
		go func() {
			lease, err := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
			leases <- lease
			failed <- err
		}()
		<-late
		require.NoError(t, held.Release())
		lease := <-leases
		require.NoError(t, <-failed)
		network.Deliver()
		requireHeld(t, direct, "job")
		require.NoError(t, lease.Renew())
		require.NoError(t, lease.Release())
	})
}
