package dbmutex_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// permit must be there; it is released when the test ends.
func permit(t testing.TB, s *dbmutex.Semaphore) *dbmutex.Lease {
	t.Helper()
	lease, err := s.Acquire()
	require.NoError(t, err)
	t.Cleanup(func() { _ = lease.Release() })
	return lease
}

// full must be so.
func requireFull(t testing.TB, s *dbmutex.Semaphore) *dbmutex.HeldError {
	t.Helper()
	_, err := s.Acquire()
	require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
	var held *dbmutex.HeldError
	require.ErrorAs(t, err, &held)
	return held
}

func TestASemaphoreHasSoManyLeases(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		for _, n := range []int{1, 3, 256} {
			id := strings.Repeat("i", n/2+1)
			s := db.Semaphore(id, n)
			slots := map[int]*dbmutex.Lease{}
			for range n {
				lease := permit(t, s)
				require.Equal(t, id, lease.LockID())
				require.Positive(t, lease.Token())
				require.True(t, lease.Slot() >= 1 && lease.Slot() <= n, lease.Slot())
				require.NotContains(t, slots, lease.Slot())
				slots[lease.Slot()] = lease
			}
			require.Equal(t, id, requireFull(t, s).LockID)
			holders, err := s.Holders()
			require.NoError(t, err)
			require.Len(t, holders, n)
			for i, info := range holders {
				require.Equal(t, i+1, info.Slot)
				require.Equal(t, id, info.LockID)
			}
			require.NoError(t, slots[n].Renew())
			before := slots[n].Token()
			require.NoError(t, slots[n].Release())
			again := permit(t, s)
			require.Equal(t, n, again.Slot(), "it is the one that is free")
			require.Greater(t, again.Token(), before)
			require.Zero(t, acquire(t, db, id).Slot(), "a mutex of the same id is another thing")
		}
	})
}

func TestASemaphoresVerbs(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		s := db.Semaphore("api", 2)
		require.NoError(t, s.Do(func(ctx context.Context) error {
			lease, ok := dbmutex.LeaseFrom(ctx)
			require.True(t, ok)
			require.Positive(t, lease.Slot())
			return nil
		}))
		require.NoError(t, s.Transaction(func(tx *gorm.DB) error {
			lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
			require.Positive(t, lease.Slot())
			return nil
		}))
		short, err := db.Semaphore("api", 1, dbmutex.WithTTL(time.Millisecond)).Acquire()
		require.NoError(t, err)
		lease, err := db.Semaphore("api", 1, dbmutex.WithWait(dbmutex.Forever)).Acquire()
		require.NoError(t, err)
		require.Greater(t, lease.Token(), short.Token())
		requireTimeout(t, short.Release(), "api", true)
		require.NoError(t, s.ForceRelease())
		requireTimeout(t, lease.Release(), "api", true)
		holders, err := s.Holders()
		require.NoError(t, err)
		require.Empty(t, holders)
	})
}
