package gocronmutex_test

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	gormlock "github.com/go-co-op/gocron-gorm-lock/v2"
	"github.com/go-co-op/gocron/v2"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// The tests of this file compare this package with github.com/go-co-op/gocron-gorm-lock/v2, another gocron.Locker.

// TestTicksInDifferentSeconds are those of schedulers whose clocks differ a little, at the end of a second. gocron-gorm-lock
// knows a tick by the second in which it comes.
func TestTicksInDifferentSeconds(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		db := open()
		hold := []dbmutex.Option{dbmutex.WithTTL(time.Hour), dbmutex.WithMinHold(time.Hour)}
		over := func() { expire(t, db, "job") }
		require.Equal(t, 4, fourTicks(t, nextSecond, over, newLocker(t, open(), hold...), newLocker(t, open(), hold...)))
		require.Equal(t, 8, fourTicks(t, nextSecond, nextSecond, newRival(t, open(), "a"), newRival(t, open(), "b")))
	})
}

func nextSecond() {
	for now := time.Now(); time.Now().Truncate(time.Second).Equal(now.Truncate(time.Second)); {
		time.Sleep(time.Until(now.Truncate(time.Second).Add(time.Second)))
	}
}

func newRival(t *testing.T, db *dbmutex.DB, worker string, options ...gormlock.LockOption) *gormlock.GormLocker {
	t.Helper()
	require.NoError(t, db.Migrate(&gormlock.CronJobLock{}))
	locker, err := gormlock.NewGormLocker(db.Gorm, worker, options...)
	require.NoError(t, err)
	t.Cleanup(locker.Close)
	return locker
}

// always makes gocron-gorm-lock lock all the runs of a job, and not only those of one second.
var always = gormlock.WithJobIdentifier(func(context.Context, string) string { return "always" })

// lockAndStay is a process that locks a job, and is killed.
func lockAndStay(locker gocron.Locker, stdin io.Reader) error {
	if _, err := locker.Lock(context.Background(), "job"); err != nil {
		return err
	}
	fmt.Println("locked")
	_, err := io.Copy(io.Discard, stdin)
	return err
}

// TestAWorkerDies while it has the lock. gocron-gorm-lock never frees what a worker has not.
func TestAWorkerDies(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, open func() *dbmutex.DB) {
		db := open()
		rival := newRival(
			t, db, "this", always, gormlock.WithTTL(time.Millisecond), gormlock.WithCleanInterval(10*time.Millisecond),
		)
		for _, task := range []string{"lock", "lock as a rival"} {
			p := testprocess.Start(t, d, task)
			require.Equal(t, "locked", p.Line(t))
			p.Kill(t)
		}
		lock, err := newLocker(t, open(), briefly, dbmutex.WithWait(dbmutex.Forever)).Lock(context.Background(), "job")
		require.NoError(t, err)
		require.NoError(t, lock.Unlock(context.Background()))

		// By now the rival's lock has been dead for its TTL, too.
		other, err := rival.Lock(context.Background(), "another job")
		require.NoError(t, err)
		require.NoError(t, other.Unlock(context.Background()))
		var names []string
		eventually(t, func() bool { // until it has cleaned up
			require.NoError(t, db.Model(&gormlock.CronJobLock{}).Pluck("job_name", &names).Error)
			return len(names) == 1
		})
		require.Equal(t, []string{"job"}, names)
		_, err = rival.Lock(context.Background(), "job")
		require.Error(t, err)
	})
}
