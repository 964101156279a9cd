package dbmutex_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// placesOf are leases as "id slot".
func placesOf(leases []dbmutex.LeaseInfo) (places []string) {
	for _, lease := range leases {
		places = append(places, fmt.Sprintf("%s %d", lease.LockID, lease.Slot))
	}
	return places
}

func TestEveryPageFollowsTheOneBeforeAmongSlots(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		var want []string
		for _, id := range []string{"a", "a\x01", "a ", "a1", "b"} {
			acquire(t, db, id)
			want = append(want, id+" 0")
		}
		for id, n := range map[string]int{"a": 11, "a1": 2} {
			for _, lease := range permits(t, db.Semaphore(id, n), n) {
				want = append(want, fmt.Sprintf("%s %d", id, lease.Slot()))
			}
		}
		for _, limit := range []int{1, 3, 100} {
			var seen []string
			for q := (dbmutex.LeaseQuery{Limit: limit}); ; {
				page, err := db.Leases(q)
				require.NoError(t, err)
				seen = append(seen, placesOf(page)...)
				if len(page) < limit {
					break
				}
				last := page[len(page)-1]
				q.After, q.AfterSlot = last.LockID, last.Slot
			}
			require.ElementsMatch(t, want, seen)
			for _, order := range []dbmutex.LeaseOrder{dbmutex.ByLockID, dbmutex.OldestFirst, dbmutex.EndingFirst} {
				var all []dbmutex.LeaseInfo
				for lease, err := range db.AllLeases(dbmutex.LeaseQuery{Limit: limit, Order: order}) {
					require.NoError(t, err)
					all = append(all, lease)
				}
				require.ElementsMatch(t, want, placesOf(all))
			}
		}
		page, err := db.Leases(dbmutex.LeaseQuery{Prefix: "a1"})
		require.NoError(t, err)
		require.ElementsMatch(t, []string{"a1 0", "a1 1", "a1 2"}, placesOf(page))
		stats, err := db.LeaseStats()
		require.NoError(t, err)
		require.EqualValues(t, len(want), stats.Held)
	})
}

func TestAnOperatorSeesAndEndsPermits(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		first, second := permit(t, db.Semaphore("api", 5)), permit(t, db.Semaphore("api", 5))
		stats, err := db.LeaseStats()
		require.NoError(t, err)
		require.Equal(t, "api", stats.Oldest.LockID)
		require.Contains(t, []int{first.Slot(), second.Slot()}, stats.Oldest.Slot)
		for lease, err := range db.AllLeases(dbmutex.LeaseQuery{}) {
			require.NoError(t, err)
			released, err := db.Semaphore(lease.LockID, 1).ForceReleaseLease(lease.LeaseID)
			require.NoError(t, err)
			require.True(t, released)
		}
		requireTimeout(t, first.Release(), "api", true)
		expireSlot(t, db, permit(t, db.Semaphore("api", 5)))
		page, err := db.Leases(dbmutex.LeaseQuery{State: dbmutex.LeasesExpired})
		require.NoError(t, err)
		require.Len(t, page, 1)
		require.Positive(t, page[0].Slot)
		_, err = db.Prune()
		require.NoError(t, err)
		require.Zero(t, countRows(t, db))
	})
}

func TestTheMarkOfASlotIsNoPartOfAQuery(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		for _, q := range []dbmutex.LeaseQuery{
			{Prefix: "api\x1f"}, {After: "api\x1f1"}, {AfterSlot: 1}, {After: "api", AfterSlot: -1}, {After: "api", AfterSlot: 257},
			{After: "api", AfterSlot: 1, Order: dbmutex.OldestFirst},
		} {
			_, err := db.Leases(q)
			require.ErrorIs(t, err, dbmutex.ErrInvalidSettings, "%+v", q)
		}
		_, err := db.Leases(dbmutex.LeaseQuery{Holder: "\x1f"})
		require.NoError(t, err)
	})
}
