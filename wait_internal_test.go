package dbmutex

import (
	"database/sql"
	"testing"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// What wakes the head of a queue can't be seen from outside, as it also wakes by itself.
func TestWhatWakesAQueue(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		gdb := d.Open(t)
		require.NoError(t, gdb.Use(New(DefaultSettings())))
		require.NoError(t, Wrap(gdb).Migrate())
		mutex := Wrap(gdb).Mutex("job")
		head, _ := queues.join(mutex.queue, mutex)
		defer queues.leave(mutex.queue, head, nil)
		other, _ := queues.join(queueKey{pool: mutex.queue.pool, table: mutex.queue.table, id: "other"}, mutex)
		defer queues.leave(queueKey{pool: mutex.queue.pool, table: mutex.queue.table, id: "other"}, other, nil)
		woken := func() bool {
			require.Empty(t, other.wake)
			select {
			case <-head.wake:
				return true
			default:
				return false
			}
		}
		require.False(t, woken())

		lease, err := mutex.Acquire()
		require.NoError(t, err)
		require.False(t, woken())
		require.NoError(t, lease.Release())
		require.True(t, woken())
		require.NoError(t, mutex.Transaction(func(*gorm.DB) error { return nil }))
		require.True(t, woken())
		require.NoError(t, mutex.ForceRelease())
		require.True(t, woken())
		if d.Name == "postgres" {
			id := "job"
			queues.notified(mutex.queue.pool.(*sql.DB), &id)
			require.True(t, woken())
		}
	})
}
