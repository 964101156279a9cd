package dbmutex_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/ends"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// TestTheEndOfALeaseInAUsersTestWakesAWaiter, which would else ask by the end that it has seen.
func TestTheEndOfALeaseInAUsersTestWakesAWaiter(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		for name, end := range map[string]func(lease any) error{"run out": ends.RunOut, "lost": ends.Lose} {
			lease := acquire(t, db, name)
			woken := dbmutex.HeadOf(t, db.Mutex(name))
			require.NoError(t, end(lease), name)
			require.True(t, woken(), name)
			require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout, name)
		}
	})
}
