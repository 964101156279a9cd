package gocronmutex

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// TestALateUnlock calls what gocron calls, in the order of two runs of which the first has lost its lease.
func TestALateUnlock(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		gdb := d.Open(t)
		require.NoError(t, gdb.Use(dbmutex.New(dbmutex.DefaultSettings())))
		db := dbmutex.Wrap(gdb)
		require.NoError(t, db.Migrate())
		locker, err := NewLocker(db, dbmutex.WithMinHold(time.Microsecond))
		require.NoError(t, err)
		ctx := context.Background()
		j := &job{locker: locker, name: "job", fn: func(context.Context) error { return nil }}

		first, err := j.Lock(ctx, "job")
		require.NoError(t, err)
		require.NoError(t, j.run(ctx))
		second, err := j.Lock(ctx, "job")
		require.NoError(t, err)
		require.NoError(t, first.Unlock(ctx))
		require.NoError(t, j.run(ctx), "it has the second lease")
		require.NoError(t, second.Unlock(ctx))
	})
}

// TestALeadershipEndsByTheClock asks at once when the lease has run out, perhaps before the timer of its context had its turn.
func TestALeadershipEndsByTheClock(t *testing.T) {
	gdb := testdb.SQLite(t).Open(t)
	require.NoError(t, gdb.Use(dbmutex.New(dbmutex.DefaultSettings())))
	db := dbmutex.Wrap(gdb)
	require.NoError(t, db.Migrate())
	for range 20 {
		lease, err := db.Mutex("leader", dbmutex.WithTTL(20*time.Millisecond)).Acquire()
		require.NoError(t, err)
		e := new(Elector)
		e.set(lease, nil)
		deadline, expires := lease.ExpiresAt()
		require.True(t, expires)
		for time.Now().Before(deadline) {
		}
		err = e.IsLeader(context.Background())
		require.ErrorIs(t, err, ErrNotLeader)
		require.ErrorIs(t, err, dbmutex.ErrTimeout)
		require.NoError(t, lease.Release())
	}
}
