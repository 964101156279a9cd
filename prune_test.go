package dbmutex_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestPruneRemovesWhatRanOutAndNothingElse(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		insertLeases(t, db, 1700)
		_, err := db.Prune() // the row of a mutex that is free may be there
		require.NoError(t, err)
		var want []string
		for i := range 1700 {
			if id := fmt.Sprintf("many-%04d", i); i%3 == 0 {
				want = append(want, id)
			}
		}
		testdb.ExpireAll(t, db, "lock_id NOT IN ?", want)
		removed, err := db.Prune()
		require.NoError(t, err)
		require.EqualValues(t, 1700-len(want), removed)
		require.Equal(t, want, listAll(t, db, dbmutex.LeaseQuery{State: dbmutex.LeasesAll}))
		removed, err = db.Prune()
		require.NoError(t, err)
		require.Zero(t, removed)
	})
}

func TestPruneLeavesNoRowOfAFreeMutex(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		require.NoError(t, acquire(t, db, "free").Release())
		lease := acquire(t, db, "held")
		_, err := db.Prune()
		require.NoError(t, err)
		var rows []string
		require.NoError(t, db.Model(&dbmutex.DBMutex{}).Pluck("lock_id", &rows).Error)
		require.Equal(t, []string{"held"}, rows)
		require.NoError(t, lease.Renew())
	})
}

func TestTokensGrowAfterPrune(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		last := int64(0)
		for range 5 {
			for _, end := range []func(*dbmutex.Lease){
				func(l *dbmutex.Lease) { testdb.Expire(t, db, "job") },
				func(l *dbmutex.Lease) { require.NoError(t, l.Release()) },
				func(l *dbmutex.Lease) { require.NoError(t, db.Mutex("job").ForceRelease()) },
			} {
				lease := acquire(t, db, "job")
				require.Greater(t, lease.Token(), last)
				last = lease.Token()
				end(lease)
				_, err := db.Prune()
				require.NoError(t, err)
			}
		}
	})
}

// The record that a transaction leaves in a row that MinHold keeps outlasts a Prune.
func TestPruneForgetsNoTransactionOfALeaseWithMinHold(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		lease := acquire(t, db, "job", dbmutex.WithTTL(2*time.Second), dbmutex.WithMinHold(1900*time.Millisecond))
		require.NoError(t, db.Gorm.Transaction(lease.ReleaseIn))
		deadline, _ := lease.ExpiresAt()
		time.Sleep(time.Until(deadline) + 10*time.Millisecond)
		_, err := db.Prune()
		require.NoError(t, err)
		require.NoError(t, lease.Release())
	})
}

func TestPrunePassesARowThatIsPinned(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.ManyWriters, func(t *testing.T, d *testdb.Database) {
		db := open(t, d).WithContext(limited(t))
		for _, id := range []string{"a", "pinned", "z"} {
			acquire(t, db, id)
		}
		lease := acquire(t, db, "guarded")
		for _, id := range []string{"a", "guarded", "pinned", "z"} {
			testdb.Expire(t, db, id)
		}
		tx := d.Open(t).Begin()
		require.NoError(t, lease.Guard(tx))
		start := time.Now()
		removed, err := db.Prune()
		require.NoError(t, err)
		require.EqualValues(t, 3, removed)
		require.Less(t, time.Since(start), 5*time.Second) // it would wait until the test's end
		require.NotNil(t, row(t, db, "guarded"))
		require.NoError(t, tx.Commit().Error)
		removed, err = db.Prune()
		require.NoError(t, err)
		require.EqualValues(t, 1, removed)
	})
}

func TestAHolderWhoseRowIsPrunedLearnsThatItsLeaseWasLost(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		err := db.Mutex("job", dbmutex.WithTTL(50*time.Millisecond)).Do(func(ctx context.Context) error {
			<-ctx.Done()
			require.Eventually(t, func() bool {
				removed, err := db.Prune()
				require.NoError(t, err)
				return removed == 1
			}, time.Minute, 10*time.Millisecond)
			return nil
		})
		requireTimeout(t, err, "job", true)
	})
}

// Leases of a few milliseconds run out, are renewed, released and taken over while others prune.
func TestPruneNeverRemovesALiveLease(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		ctx, cancel := context.WithCancel(limited(t))
		var pruners, workers sync.WaitGroup
		var pruned int64
		pruners.Go(func() {
			for ctx.Err() == nil {
				removed, err := db.WithContext(ctx).Prune()
				if !errors.Is(err, context.Canceled) {
					require.NoError(t, err)
				}
				pruned += removed
			}
		})
		for worker := range 3 {
			other := open(t, d)
			workers.Go(func() {
				for i := range 60 {
					ttl := dbmutex.WithTTL(2 * time.Millisecond)
					if (i+worker)%2 == 0 {
						ttl = dbmutex.WithTTL(time.Hour)
					}
					lease, err := other.Mutex(fmt.Sprint("job", i%2), ttl, dbmutex.WithWait(dbmutex.Forever)).Acquire()
					require.NoError(t, err)
					if (i+worker)%2 == 0 {
						require.NoError(t, lease.Renew())
						require.NoError(t, lease.Release())
					}
				}
			})
		}
		workers.Wait()
		cancel()
		pruners.Wait()
		t.Log("pruned", pruned)
	})
}

func TestPruneEndsWithItsContext(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		insertLeases(t, db, 1200)
		_, err := db.Prune() // the row of a mutex that is free may be there
		require.NoError(t, err)
		testdb.ExpireAll(t, db, "1 = 1")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		batches := 0
		cancelAtSecond := func(tx *gorm.DB) {
			if strings.Contains(tx.Statement.SQL.String(), "DELETE") {
				if batches++; batches == 2 {
					cancel()
				}
			}
		}
		require.NoError(t, db.Callback().Row().Before("gorm:row").Register("cancel", cancelAtSecond))
		require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("cancel", cancelAtSecond))
		removed, err := db.WithContext(ctx).Prune()
		require.ErrorIs(t, err, context.Canceled)
		require.Positive(t, removed)
		require.Less(t, removed, int64(1200))
		require.Len(t, listAll(t, db, dbmutex.LeaseQuery{State: dbmutex.LeasesAll}), 1200-int(removed))
	})
}

// Once Prune has seen that a lease ran out, its row becomes a live one: by a take-over, or as the clock is set back.
func TestPruneLooksAgainBeforeItRemoves(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		acquire(t, db, "job")
		testdb.Expire(t, db, "job")
		other, pruning, revived := open(t, d), true, false
		require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("revive", func(tx *gorm.DB) {
			if pruning && strings.HasPrefix(tx.Statement.SQL.String(), "DELETE") {
				revived = true
				require.NoError(t, other.Exec(`UPDATE db_mutexes SET expires_at = NULL`).Error)
			}
		}))
		removed, err := db.Prune()
		pruning = false
		require.NoError(t, err)
		if !revived { // it looks and removes at once
			require.EqualValues(t, 1, removed)
			return
		}
		require.Zero(t, removed)
		requireHeld(t, other, "job")
	})
}
