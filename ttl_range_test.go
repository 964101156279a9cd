package dbmutex_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

const year = 365 * 24 * time.Hour

// requireLasts says that a lease ends ttl after a moment between first and last, give or take what rounding adds.
func requireLasts(t *testing.T, ttl time.Duration, first, last, ends time.Time) {
	t.Helper()
	require.False(t, ends.Before(first.Add(ttl)), "%v is less than %v after %v", ends, ttl, first)
	require.False(t, ends.After(last.Add(ttl).Add(time.Millisecond)), "%v is more than %v after %v", ends, ttl, last)
}

func TestLeasesOfEveryLengthLastAsLongAsTheyShould(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		other := open(t, d)
		var stored *dbmutex.DBMutex
		requireHeldUntilThen := func() {
			t.Helper()
			_, err := other.Mutex("job", dbmutex.WithWait(time.Millisecond)).Acquire()
			require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
			var held *dbmutex.HeldError
			require.ErrorAs(t, err, &held)
			require.NotNil(t, held.ExpiresAt)
			require.True(t, stored.ExpiresAt.Equal(*held.ExpiresAt), "%v is not %v", held.ExpiresAt, stored.ExpiresAt)
		}
		for _, ttl := range []time.Duration{
			time.Minute, time.Minute + 1, time.Hour - time.Microsecond, 24 * time.Hour, year, 100 * year,
			math.MaxInt64 - 1, math.MaxInt64,
		} {
			t.Run(ttl.String(), func(t *testing.T) {
				before := time.Now()
				lease := acquire(t, db, "job", dbmutex.WithTTL(ttl), dbmutex.WithMinHold(ttl))
				deadline, expires := lease.ExpiresAt()
				require.True(t, expires)
				requireLasts(t, ttl, before, time.Now(), deadline)
				stored = row(t, db, "job")
				requireLasts(t, ttl, stored.CreationTime, stored.CreationTime.Add(time.Minute), *stored.ExpiresAt)
				requireHeldUntilThen()

				before = time.Now()
				require.NoError(t, lease.Renew())
				renewed, _ := lease.ExpiresAt()
				requireLasts(t, ttl, before, time.Now(), renewed)
				require.True(t, renewed.After(deadline))
				again := row(t, db, "job")
				require.False(t, again.ExpiresAt.Before(*stored.ExpiresAt))
				stored = again
				requireHeldUntilThen()
				require.NoError(t, lease.Context().Err())

				require.NoError(t, lease.Release()) // which leaves the mutex to its MinHold
				stored = row(t, db, "job")
				requireLasts(t, ttl, stored.CreationTime, stored.CreationTime, *stored.ExpiresAt)
				requireHeldUntilThen()
				require.NoError(t, db.Mutex("job").ForceRelease())
				requireFree(t, other, "job")
			})
		}
	})
}

func TestTheShortestLeasesEndAndAreTakenOver(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		other := open(t, d).WithContext(limited(t))
		for _, ttl := range []time.Duration{
			time.Millisecond, time.Millisecond + 1, 2*time.Millisecond - 1, 10 * time.Millisecond,
		} {
			t.Run(ttl.String(), func(t *testing.T) {
				before := time.Now()
				lease, err := db.Mutex("job", dbmutex.WithTTL(ttl)).Acquire()
				require.NoError(t, err)
				deadline, _ := lease.ExpiresAt()
				require.False(t, deadline.Before(before.Add(ttl)))
				requireFree(t, other, "another")
				next, err := other.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
				require.NoError(t, err)
				requireEnds(t, lease.Context())
				requireTimeout(t, lease.Release(), "job", true)
				require.Greater(t, next.Token(), lease.Token())
				require.NoError(t, next.Release())
			})
		}
	})
}
