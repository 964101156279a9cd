package dbmutex_test

import (
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

var errWork = errors.New("the work failed")

func TestDoRunsTheWorkAndReleases(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		ran := 0
		work := func(context.Context) error {
			ran++
			requireHeld(t, db, "job")
			return nil
		}
		require.NoError(t, db.Mutex("job").Do(work))
		require.NoError(t, db.Mutex("job").Do(work))
		require.Equal(t, 2, ran)
		require.Nil(t, row(t, db, "job"), "a free mutex leaves no row")
	})
}

func TestHeld(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		acquire(t, db, "job", dbmutex.WithHolder("machine-7"))
		err := db.Mutex("job").Do(nothing)
		var held *dbmutex.HeldError
		require.ErrorAs(t, err, &held)
		require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
		stored := row(t, db, "job")
		require.Equal(t, "job", held.LockID)
		require.Equal(t, "machine-7", held.Holder)
		require.True(t, held.Since.Equal(stored.CreationTime), "%v, %v", held.Since, stored.CreationTime)
		require.True(t, held.ExpiresAt.Equal(*stored.ExpiresAt))
		require.ErrorContains(t, err, `dbmutex: "job" is held by machine-7 since `)
		require.NotErrorIs(t, err, dbmutex.ErrTimeout)
	})
}

func TestOtherIDsAreFree(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		ids := []string{"job", "JOB", "job ", " job", "jöb", "jo\u0308b", "1", "01", "1.0", "'; --", "%", "@name", "?", "日本"}
		for _, id := range ids {
			acquire(t, db, id)
		}
		for _, id := range ids {
			requireHeld(t, db, id)
		}
	})
}

func TestDefaultTTL(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		acquire(t, db, "job")
		stored := row(t, db, "job")
		require.Equal(t, 30*time.Minute, dbmutex.DefaultTTL)
		require.InDelta(t, dbmutex.DefaultTTL, stored.ExpiresAt.Sub(stored.CreationTime), float64(time.Second))
	})
}

func TestCustomTTL(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		ttl := time.Hour
		db := d.Mutexes(t, dbmutex.Settings{TTL: &ttl})
		ttl = time.Nanosecond // New has its own copy
		acquire(t, db, "settings")
		acquire(t, db, "option", dbmutex.WithTTL(2*time.Hour))
		for id, want := range map[string]time.Duration{"settings": time.Hour, "option": 2 * time.Hour} {
			stored := row(t, db, id)
			require.InDelta(t, want, stored.ExpiresAt.Sub(stored.CreationTime), float64(time.Second))
		}
		testdb.Expire(t, db, "option")
		requireFree(t, db, "option")
		requireHeld(t, db, "settings")
	})
}

func TestNeverExpires(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		lease := acquire(t, db, "job", dbmutex.WithoutTTL())
		_, expires := lease.ExpiresAt()
		require.False(t, expires)
		require.Nil(t, row(t, db, "job").ExpiresAt)
		require.NoError(t, db.Exec(`UPDATE db_mutexes SET creation_time = '1999-12-31 00:00:00'`).Error)
		err := db.Mutex("job").Do(nothing)
		var held *dbmutex.HeldError
		require.ErrorAs(t, err, &held)
		require.Nil(t, held.ExpiresAt)
		require.ErrorContains(t, err, "does not expire")
		require.NoError(t, lease.Renew())
		require.NoError(t, lease.Context().Err())
		require.NoError(t, lease.Release())
		requireFree(t, db, "job")
	})
}

func TestTimedOutDuringTheWork(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		err := db.Mutex("job").Do(func(context.Context) error {
			testdb.Expire(t, db, "job")
			requireFree(t, db, "job") // somebody else takes over, and is done
			return nil
		})
		require.ErrorIs(t, err, dbmutex.ErrTimeout)

		err = db.Mutex("job").Do(func(context.Context) error {
			testdb.Expire(t, db, "job")
			acquire(t, db, "job") // somebody else takes over, and goes on
			return errWork
		})
		require.ErrorIs(t, err, dbmutex.ErrTimeout)
		require.ErrorIs(t, err, errWork)
		requireHeld(t, db, "job") // the late release leaves the successor alone
	})
}

func TestDecorate(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		type key struct{}
		calls := 0
		job := db.Mutex("job").Decorate(func(ctx context.Context) error {
			calls++
			require.Equal(t, "argument", ctx.Value(key{}))
			requireHeld(t, db, "job")
			return errWork
		})
		ctx := context.WithValue(context.Background(), key{}, "argument")
		require.Equal(t, errWork, job(ctx))
		require.Equal(t, errWork, job(ctx))
		require.Equal(t, 2, calls)

		cancelled, cancel := context.WithCancel(ctx)
		cancel()
		require.ErrorIs(t, job(cancelled), context.Canceled)
		require.Equal(t, 2, calls)
	})
}

func TestSkipHeld(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out := &logs{}
		db := open(t, d)
		skipping := dbmutex.Wrap(db.Gorm.Session(&gorm.Session{Logger: out.logger(logger.Warn)}))
		acquire(t, db, "job")
		mutex := skipping.Mutex("job", dbmutex.WithSkipHeld())
		require.NoError(t, mutex.Do(func(context.Context) error { return errWork }))
		require.Contains(t, out.String(), `"job" is held by`)
		require.NoError(t, mutex.Decorate(func(context.Context) error { return errWork })(context.Background()))

		require.Equal(
			t, errWork, skipping.Mutex("free", dbmutex.WithSkipHeld()).Do(func(context.Context) error { return errWork }),
		)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		require.ErrorIs(t, skipping.WithContext(ctx).Mutex("job", dbmutex.WithSkipHeld()).Do(nothing), context.Canceled)

		_, err := mutex.Acquire()
		require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
		_, err = dbmutex.DoValue(mutex, func(context.Context) (int, error) { return 1, nil })
		require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
		require.ErrorIs(t, mutex.Transaction(nil), dbmutex.ErrInvalidSettings)
	})
}

func TestDoValue(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		mutex := db.Mutex("job")
		value, err := dbmutex.DoValue(mutex, func(ctx context.Context) (string, error) {
			_, err := dbmutex.DoValue(mutex, func(context.Context) (int, error) { return 1, nil })
			require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
			return "done", errWork
		})
		require.Equal(t, errWork, err)
		require.Equal(t, "done", value)
	})
}

func TestPanicAndGoexitRelease(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
		require.PanicsWithValue(t, "boom", func() {
			_ = db.Mutex("job").Do(func(context.Context) error { panic("boom") })
		})
		requireFree(t, db, "job")
		require.PanicsWithValue(t, "boom", func() {
			_ = db.Mutex("job").Transaction(func(tx *dbmutex.Gorm) error {
				require.NoError(t, tx.Exec(`INSERT INTO made VALUES (1)`).Error)
				panic("boom")
			})
		})
		var n int
		require.NoError(t, db.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
		require.Zero(t, n)
		requireFree(t, db, "job")

		for _, exit := range []func() error{
			func() error { return db.Mutex("job").Do(func(context.Context) error { runtime.Goexit(); return nil }) },
			func() error {
				return db.Mutex("job").Transaction(func(*gorm.DB) error { runtime.Goexit(); return nil })
			},
		} {
			done := make(chan bool)
			go func() {
				defer close(done)
				_ = exit()
			}()
			<-done
			requireFree(t, db, "job")
		}
	})
}

func TestDoesNotRunWithADoneContext(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		ctx, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
		defer cancel()
		for _, wait := range []time.Duration{0, time.Hour, dbmutex.Forever} {
			err := db.WithContext(ctx).Mutex("job", dbmutex.WithWait(wait)).Do(func(context.Context) error { return errWork })
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
		}
		require.Nil(t, row(t, db, "job"))
	})
}

func TestHolder(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		mutex := db.Mutex("job")
		holder, err := mutex.Holder()
		require.NoError(t, err)
		require.Nil(t, holder)

		acquire(t, db, "job", dbmutex.WithHolder("me"))
		holder, err = mutex.Holder()
		require.NoError(t, err)
		stored := row(t, db, "job")
		require.Equal(t, "me", holder.Holder)
		require.Equal(t, stored.ID, holder.ID)
		require.Equal(t, stored.LeaseID, holder.LeaseID)
		require.True(t, stored.ExpiresAt.Equal(*holder.ExpiresAt))

		testdb.Expire(t, db, "job")
		holder, err = mutex.Holder()
		require.NoError(t, err)
		require.Nil(t, holder)
	})
}

func TestForceReleaseSparesASuccessor(t *testing.T) {
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		acquire(t, db, "job")
		var successor *dbmutex.Lease
		pool.after("release", func() error {
			successor = acquire(t, db, "job")
			return io.ErrUnexpectedEOF
		})
		require.NoError(t, db.Mutex("job").ForceRelease())
		require.NoError(t, successor.Renew())
		requireHeld(t, db, "job")
	})
}

func TestForceReleaseFollowsALeaseThatChangesHands(t *testing.T) {
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		lease := acquire(t, db, "job", dbmutex.WithMinHold(time.Minute))
		released := false
		pool.setLose(func(statement string) error {
			if strings.HasPrefix(statement, "SELECT") && !released { // it has been read
				released = true
				pool.mu.Unlock()
				defer pool.mu.Lock()
				require.NoError(t, lease.Release()) // and leaves the row, with another lease_id
			}
			return nil
		})
		require.NoError(t, db.Mutex("job").ForceRelease())
		require.True(t, released)
		require.Nil(t, row(t, db, "job"))
	})
}

func TestForceRelease(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.NoError(t, db.Mutex("job").ForceRelease(), "a free mutex")
		err := db.Mutex("job", dbmutex.WithoutTTL()).Do(func(context.Context) error {
			require.NoError(t, db.Mutex("job").ForceRelease())
			requireFree(t, db, "job")
			return nil
		})
		require.ErrorIs(t, err, dbmutex.ErrTimeout)
	})
}

func TestForceReleaseLeaseEndsExactlyTheLeaseThatWasSeen(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		mutex := db.Mutex("job", dbmutex.WithoutTTL())
		seen := func() string {
			info, err := mutex.Inspect()
			require.NoError(t, err)
			return info.LeaseID
		}
		force := func(leaseID string, want bool) {
			t.Helper()
			released, err := mutex.ForceReleaseLease(leaseID)
			require.NoError(t, err)
			require.Equal(t, want, released)
		}
		force("nobody's", false)
		first := acquire(t, db, "job", dbmutex.WithoutTTL())
		acquire(t, db, "another")
		force(row(t, db, "another").LeaseID, false)
		force("nobody's", false)
		require.NoError(t, first.Renew())
		old := seen()
		force(old, true)
		force(old, false)
		require.ErrorIs(t, first.Release(), dbmutex.ErrTimeout)

		successor := acquire(t, db, "job", dbmutex.WithoutTTL())
		force(old, false)
		require.NoError(t, successor.Renew())
		require.NoError(t, successor.Release())

		acquire(t, db, "job")
		testdb.Expire(t, db, "job")
		force(seen(), true) // it ran out, and its row was there
		require.Nil(t, row(t, db, "job"))
		require.NotNil(t, row(t, db, "another"))
	})
}

func TestForceReleaseLeaseSparesASuccessorWhenItsAnswerIsLost(t *testing.T) {
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		acquire(t, db, "job")
		var successor *dbmutex.Lease
		pool.after("release", func() error {
			successor = acquire(t, db, "job")
			return io.ErrUnexpectedEOF
		})
		released, err := db.Mutex("job").ForceReleaseLease(row(t, db, "job").LeaseID)
		require.NoError(t, err)
		require.True(t, released)
		require.NoError(t, successor.Renew())
	})
}

func TestAForcedReleaseWakesWaiters(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		db = db.WithContext(limited(t))
		for _, force := range []func(leaseID string) error{
			func(string) error { return db.Mutex("job").ForceRelease() },
			func(leaseID string) error { _, err := db.Mutex("job").ForceReleaseLease(leaseID); return err },
		} {
			acquire(t, db, "job", dbmutex.WithoutTTL())
			next := make(chan error, 1)
			go func() { next <- db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing) }()
			require.NoError(t, force(row(t, db, "job").LeaseID))
			require.NoError(t, <-next)
		}
	})
}

func TestTheLogSaysWhoForcedARelease(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out := &logs{}
		db := open(t, d, &gorm.Config{Logger: out.logger(logger.Warn)})
		operator := db.Mutex("job", dbmutex.WithHolder("anna"))
		require.NoError(t, operator.ForceRelease())
		_, err := operator.ForceReleaseLease("nobody's")
		require.NoError(t, err)
		require.Empty(t, out.String(), "nothing was released")
		for range 2 {
			acquire(t, db, "job", dbmutex.WithHolder("worker\n7"))
			require.NoError(t, operator.ForceRelease())
			acquire(t, db, "job", dbmutex.WithHolder("worker\n7"))
			_, err = operator.ForceReleaseLease(row(t, db, "job").LeaseID)
			require.NoError(t, err)
		}
		require.Equal(t, 4, strings.Count(out.String(), `dbmutex: anna forced the release of "job", held by "worker\n7" since `))
	})
}

func TestMinHold(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		lease := acquire(t, db, "job", dbmutex.WithMinHold(10*time.Minute), dbmutex.WithHolder("me"))
		before := row(t, db, "job")
		require.NoError(t, lease.Release())
		require.ErrorIs(t, context.Cause(lease.Context()), context.Canceled)
		after := row(t, db, "job")
		require.NotEqual(t, before.LeaseID, after.LeaseID)
		require.InDelta(t, 10*time.Minute, after.ExpiresAt.Sub(after.CreationTime), float64(time.Millisecond))
		requireHeld(t, db, "job")
		require.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout)
		testdb.Expire(t, db, "job")
		requireFree(t, db, "job")

		require.NoError(t, db.Mutex("short", dbmutex.WithMinHold(time.Microsecond)).Do(func(context.Context) error {
			time.Sleep(time.Millisecond)
			return nil
		}))
		require.Nil(t, row(t, db, "short"), "the time was over")

		require.NoError(t, db.Mutex("tx", dbmutex.WithMinHold(time.Minute)).Transaction(func(*dbmutex.Gorm) error { return nil }))
		requireHeld(t, db, "tx")
	})
}
