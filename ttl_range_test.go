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

// requireHeldUntil says when the database and a HeldError think that a mutex's lease ends, and gives what the database says.
func requireHeldUntil(t *testing.T, db *dbmutex.DB, id string) *dbmutex.DBMutex {
	t.Helper()
	stored, err := db.Mutex(id).Holder()
	require.NoError(t, err)
	require.NotNil(t, stored)
	require.NotNil(t, stored.ExpiresAt)
	_, err = db.Mutex(id, dbmutex.WithWait(time.Millisecond)).Acquire()
	require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
	var held *dbmutex.HeldError
	require.ErrorAs(t, err, &held)
	require.NotNil(t, held.ExpiresAt)
	require.True(t, stored.ExpiresAt.Equal(*held.ExpiresAt), "%v is not %v", held.ExpiresAt, stored.ExpiresAt)
	return stored
}

func TestLeasesOfEveryLengthLastAsLongAsTheyShould(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		other := open(t, d)
		for _, ttl := range []time.Duration{
			time.Minute, time.Minute + 1, time.Hour - time.Microsecond, 24 * time.Hour, year, 100 * year,
			math.MaxInt64 - 1, math.MaxInt64,
		} {
			t.Run(ttl.String(), func(t *testing.T) {
				id := ttl.String()
				before := time.Now()
				lease := acquire(t, db, id, dbmutex.WithTTL(ttl), dbmutex.WithMinHold(ttl))
				deadline, expires := lease.ExpiresAt()
				require.True(t, expires)
				requireLasts(t, ttl, before, time.Now(), deadline)
				first := requireHeldUntil(t, other, id)
				requireLasts(t, ttl, first.CreationTime, first.CreationTime.Add(time.Minute), *first.ExpiresAt)

				before = time.Now()
				require.NoError(t, lease.Renew())
				deadline, _ = lease.ExpiresAt()
				requireLasts(t, ttl, before, time.Now(), deadline)
				require.False(t, requireHeldUntil(t, other, id).ExpiresAt.Before(*first.ExpiresAt))
				require.NoError(t, lease.Context().Err())

				require.NoError(t, lease.Release()) // which leaves the mutex to its MinHold
				requireLasts(t, ttl, first.CreationTime, first.CreationTime, *requireHeldUntil(t, other, id).ExpiresAt)
				require.NoError(t, db.Mutex(id).ForceRelease())
				requireFree(t, other, id)
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
				id := ttl.String()
				before := time.Now()
				lease, err := db.Mutex(id, dbmutex.WithTTL(ttl)).Acquire()
				require.NoError(t, err)
				deadline, _ := lease.ExpiresAt()
				require.False(t, deadline.Before(before.Add(ttl)))
				next, err := other.Mutex(id, dbmutex.WithWait(dbmutex.Forever)).Acquire()
				require.NoError(t, err)
				requireEnds(t, lease.Context())
				requireTimeout(t, lease.Release(), id, true)
				require.Greater(t, next.Token(), lease.Token())
				require.NoError(t, next.Release())
			})
		}
	})
}
