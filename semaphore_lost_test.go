package dbmutex_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// The answer to an acquire is lost, and the next try may land in any slot.

func TestATryAfterALostAnswerFindsItsOwnPermit(t *testing.T) {
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		s := db.Semaphore("api", 8)
		for round := range 3 { // in the first there are no rows, then this process has freed some
			tries := pool.loseFirst("acquire", pool.Errors.Killed)
			lease := permit(t, s)
			require.Greater(t, tries.Load(), int32(1))
			require.Equal(t, []int{lease.Slot()}, slotsOf(t, s), "round %d: it has taken two", round)
			require.NoError(t, lease.Renew())
			require.NoError(t, lease.Release())
			require.Empty(t, slotsOf(t, s))
			for _, other := range permits(t, s, 4) {
				require.NoError(t, other.Release())
			}
		}
	})
}

func TestACancelledTryLeavesNoPermit(t *testing.T) {
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		permit(t, db.Semaphore("api", 8))
		for _, lost := range []error{nil, pool.Errors.Killed} {
			ctx, cancel := context.WithCancel(context.Background())
			pool.after("acquire", func() error {
				cancel()
				return lost
			})
			_, err := db.WithContext(ctx).Semaphore("api", 8, dbmutex.WithoutTTL()).Acquire()
			require.ErrorIs(t, err, context.Canceled)
			require.Len(t, slotsOf(t, db.Semaphore("api", 8)), 1)
		}
	})
}

// SQLite's look names one lease alone. The request's own comes before that which ends first.
func TestAPermitWhoseCommitHadNoAnswerIsFoundAmongOthers(t *testing.T) {
	t.Parallel()
	d := testdb.SQLite(t)
	direct := open(t, d)
	db, pool := openFaulty(t, d)
	other := permit(t, direct.Semaphore("api", 2, dbmutex.WithTTL(time.Hour)))
	for _, cancelled := range []bool{false, true} {
		ctx, cancel := context.WithCancel(limited(t))
		lost := false
		pool.setLose(func(statement string) error {
			if lost || statement != "COMMIT" || countRows(t, direct) < 2 {
				return nil
			}
			lost = true
			if cancelled {
				cancel()
			}
			return context.Canceled
		})
		lease, err := db.WithContext(ctx).Semaphore("api", 2, dbmutex.WithTTL(2*time.Hour)).Acquire()
		require.True(t, lost)
		if cancelled {
			require.ErrorIs(t, err, context.Canceled)
		} else {
			require.NoError(t, err)
			require.NoError(t, lease.Renew())
			require.NoError(t, lease.Release())
		}
		require.Equal(t, []int{other.Slot()}, slotsOf(t, direct.Semaphore("api", 2)))
		cancel()
	}
}

// The network delivers the first request after the second, which has then another slot. The permit of the first is given
// back, and the other stays.
func TestALateRequestLeavesNoSecondPermit(t *testing.T) {
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		s := db.Semaphore("api", 2)
		direct := open(t, pool.Database)
		taken := func() []string {
			var ids []string
			require.NoError(t, testdb.Taken(direct.Gorm).Order("lock_id").Pluck("lock_id", &ids).Error)
			return ids
		}
		var first string
		pool.after("acquire", func() error {
			first = taken()[0]
			require.NoError(t, direct.Exec(`UPDATE db_mutexes SET lock_id = 'late' WHERE lock_id = ?`, first).Error)
			return pool.Errors.Killed
		})
		lease := permit(t, s)
		other := map[int]string{1: "api\x1f2", 2: "api\x1f1"}[lease.Slot()]
		require.NoError(t, direct.Exec(`DELETE FROM db_mutexes WHERE lock_id = ?`, other).Error)
		require.NoError(t, direct.Exec(`UPDATE db_mutexes SET lock_id = ? WHERE lock_id = 'late'`, other).Error)
		require.Len(t, slotsOf(t, s), 2)
		require.Eventually(t, func() bool { return len(taken()) == 1 }, time.Minute, 10*time.Millisecond)
		require.NoError(t, lease.Renew())
		require.Equal(t, []int{lease.Slot()}, slotsOf(t, s))
		require.NoError(t, lease.Release())
		require.Empty(t, taken())
	})
}
