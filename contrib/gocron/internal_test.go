package gocronmutex

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// TestALateUnlock calls what gocron calls, in the order of two runs of which the first has lost its lease.
func TestALateUnlock(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		db := d.Mutexes(t, dbmutex.DefaultSettings())
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

// TestUnlockLogsWhatTheRunHasNotTold calls what gocron calls.
func TestUnlockLogsWhatTheRunHasNotTold(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		db := d.Mutexes(t, dbmutex.DefaultSettings())
		handle, lines := Logged(db)
		locker, err := NewLocker(handle, dbmutex.WithMinHold(time.Microsecond))
		require.NoError(t, err)
		ctx := context.Background()
		for _, c := range []struct {
			lost, begins, panics bool
			logged               int
		}{
			{lost: false, begins: true, panics: true, logged: 0},
			{lost: true, begins: true, panics: false, logged: 0},
			{lost: true, begins: true, panics: true, logged: 1},
			{lost: true, begins: false, panics: false, logged: 1},
		} {
			j := &job{locker: locker, name: "job", fn: func(context.Context) error {
				if c.panics {
					panic("the job's own")
				}
				return nil
			}}
			lock, err := j.Lock(ctx, "job")
			require.NoError(t, err)
			if c.lost {
				require.NoError(t, db.Mutex("job").ForceRelease())
			}
			switch {
			case c.panics:
				require.Panics(t, func() { _ = j.run(ctx) })
			case c.begins:
				require.ErrorIs(t, j.run(ctx), dbmutex.ErrTimeout)
			}
			err = lock.Unlock(ctx)
			require.Equal(t, c.lost, err != nil, "%+v", c)
			require.Len(t, lines, c.logged, "%+v", c)
			if c.logged > 0 {
				require.Equal(t, err.Error(), <-lines)
			}
		}
	})
}

// TestATickThatNeverBegins is released without a word.
func TestATickThatNeverBegins(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		handle, lines := Logged(d.Mutexes(t, dbmutex.DefaultSettings()))
		locker, err := NewTickLocker(handle, time.Hour)
		require.NoError(t, err)
		j := &job{locker: locker, name: "job", fn: func(context.Context) error { return nil }}
		for range 2 {
			lock, err := j.Lock(t.Context(), "job")
			require.NoError(t, err)
			require.NoError(t, lock.Unlock(t.Context()))
		}
		require.Empty(t, lines)
	})
}

// Logged is a handle for which lines get what goes to its logger's Error.
func Logged(db *dbmutex.DB) (handle *dbmutex.DB, lines chan string) {
	lines = make(chan string, 100)
	return db.Session(&gorm.Session{Logger: errorLog{logger.Discard, lines}}), lines
}

// At is a Locker of NewTickLocker's by another clock.
func At(l *Locker, now func() time.Time) *Locker {
	return &Locker{db: l.db, opts: l.opts, every: l.every, now: now}
}

type errorLog struct {
	logger.Interface
	lines chan string
}

func (l errorLog) Error(_ context.Context, format string, args ...any) {
	l.lines <- fmt.Sprintf(format, args...)
}

// TestALeadershipEndsByTheClock asks at once when the lease has run out, perhaps before the timer of its context had its
// turn.
func TestALeadershipEndsByTheClock(t *testing.T) {
	db := testdb.SQLite(t).Mutexes(t, dbmutex.DefaultSettings())
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
		var timeout *dbmutex.TimeoutError
		require.ErrorAs(t, err, &timeout)
		require.True(t, timeout.Lost, "nobody can know yet")
		require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)
	}
}
