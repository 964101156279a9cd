package dbmutex_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// What wakes the head of a queue cannot be seen from outside, as the head also wakes by itself.
func TestWhatWakesAQueue(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		mutex := db.Mutex("job")
		woken, otherWoken := dbmutex.HeadOf(t, mutex), dbmutex.HeadOf(t, db.Mutex("other"))
		requireWoken := func(want bool) {
			t.Helper()
			require.Equal(t, want, woken())
			require.False(t, otherWoken())
		}
		requireWoken(false)

		lease, err := mutex.Acquire()
		require.NoError(t, err)
		requireWoken(false)
		require.NoError(t, lease.Release())
		requireWoken(true)
		require.NoError(t, mutex.Transaction(func(*gorm.DB) error { return nil }))
		requireWoken(true)
		require.NoError(t, mutex.ForceRelease())
		requireWoken(true)
		if d.Notifies {
			dbmutex.Notify(mutex)
			requireWoken(true)
		}
	})
}
