//go:build unix

package faults_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// galera is a cluster's database on each of its nodes.
func galera(t *testing.T) (nodes [2]*dbmutex.DB) {
	for i, server := range testdb.NewGalera(t) {
		nodes[i] = server.Database().Mutexes(t, dbmutex.DefaultSettings())
	}
	require.NoError(t, nodes[0].Exec(`CREATE TABLE made (id integer AUTO_INCREMENT PRIMARY KEY, n integer)`).Error)
	require.Eventually(t, func() bool {
		return nodes[1].Migrator().HasTable("made")
	}, time.Minute, 10*time.Millisecond)
	return nodes
}

func TestAGaleraClusterHasOneHolder(t *testing.T) {
	t.Parallel()
	nodes := galera(t)
	var holders, last, transactions atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		db := nodes[i%2].WithContext(testdb.Limited(t))
		wg.Go(func() {
			for round := range 30 {
				m := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever))
				err := m.Do(func(ctx context.Context) error {
					lease, _ := dbmutex.LeaseFrom(ctx)
					if holders.Add(1) != 1 {
						t.Error("two holders")
					}
					if before := last.Swap(lease.Token()); before >= lease.Token() {
						t.Errorf("the token %d came after %d", lease.Token(), before)
					}
					holders.Add(-1)
					return nil
				})
				if err == nil && round%3 == 0 {
					err = m.Transaction(func(tx *gorm.DB) error {
						if holders.Add(1) != 1 {
							t.Error("two holders")
						}
						defer holders.Add(-1)
						return tx.Exec(`INSERT INTO made (n) SELECT COALESCE(MAX(n), 0) + 1 FROM made`).Error
					})
					transactions.Add(1)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	var count, most int64
	require.Eventually(t, func() bool { // a node applies late what it has certified of another
		err := nodes[0].Raw(`SELECT COUNT(*), MAX(n) FROM made`).Row().Scan(&count, &most)
		return err == nil && count == transactions.Load()
	}, time.Minute, 10*time.Millisecond)
	require.Equal(t, count, most, "each saw what the one before had written")
}

// A node knows nothing of the locks on the others: what two have written only shows at the commit.
func TestWhatIsGuardedCommitsOnNoNodeAfterATakeOverOnAnother(t *testing.T) {
	t.Parallel()
	nodes := galera(t)
	rounds := 0
	for _, end := range []func(*dbmutex.Lease, *gorm.DB) error{(*dbmutex.Lease).Guard, (*dbmutex.Lease).ReleaseIn} {
		for range 25 {
			rounds++
			lease := testdb.Acquire(
				t, nodes[0], "job", dbmutex.WithTTL(20*time.Millisecond), dbmutex.WithWait(time.Minute), // for the other node's release
			)
			tx := nodes[0].Gorm.Begin()
			require.NoError(t, tx.Exec(`INSERT INTO made (n) VALUES (?)`, rounds).Error)
			require.NoError(t, end(lease, tx))
			successor, err := nodes[1].WithContext(testdb.Limited(t)).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
			require.NoError(t, err)
			require.Greater(t, successor.Token(), lease.Token())
			require.Error(t, tx.Commit().Error, "somebody else has the mutex")
			require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)
			require.NoError(t, successor.Release())
		}
	}
	err := nodes[0].Mutex("job", dbmutex.WithTTL(20*time.Millisecond)).Transaction(func(tx *gorm.DB) error {
		require.NoError(t, tx.Exec(`INSERT INTO made (n) VALUES (0)`).Error)
		_, err := nodes[1].WithContext(testdb.Limited(t)).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
		return err
	})
	require.Error(t, err)
	var n int64
	require.NoError(t, nodes[1].Raw(`SELECT COUNT(*) FROM made`).Scan(&n).Error)
	require.Zero(t, n)
}
