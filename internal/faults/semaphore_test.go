package faults_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/faults"
)

// taken is how many permits there are.
func taken(t *testing.T, s *dbmutex.Semaphore) int {
	t.Helper()
	holders, err := s.Holders()
	require.NoError(t, err)
	return len(holders)
}

// settles waits until so many permits are there: a request whose connection broke may still have taken another one when the
// next landed, which is given back after a second.
func settles(t *testing.T, s *dbmutex.Semaphore, want int) {
	t.Helper()
	require.Eventually(t, func() bool { return taken(t, s) == want }, time.Minute, 10*time.Millisecond)
}

func TestAPermitIsSettledWhereverItBreaks(t *testing.T) {
	t.Parallel()
	faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		s := proxied.Semaphore("api", 3)
		arm(func() {})
		lease, err := s.Acquire()
		require.NoError(t, err)
		settles(t, direct.Semaphore("api", 3), 1)
		require.NoError(t, lease.Renew())
		require.NoError(t, lease.Release())
		require.Zero(t, taken(t, direct.Semaphore("api", 3)))
	})
}

// The only slot may bear the request's own lease, or that of a holder that crashed.
func TestTheOnlyPermitIsSettledWhereverItBreaks(t *testing.T) {
	t.Parallel()
	faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		_, err := direct.Semaphore("api", 1, dbmutex.WithTTL(time.Millisecond)).Acquire()
		require.NoError(t, err)
		time.Sleep(10 * time.Millisecond)
		ran := 0
		arm(func() {})
		require.NoError(t, proxied.Semaphore("api", 1).Do(func(ctx context.Context) error {
			ran++
			require.Equal(t, 1, taken(t, direct.Semaphore("api", 1)))
			return ctx.Err()
		}))
		require.Equal(t, 1, ran)
		require.Zero(t, taken(t, direct.Semaphore("api", 1)))
	})
}

func TestACancelledPermitLeavesNothingWhereverItBreaks(t *testing.T) {
	t.Parallel()
	faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		ctx, cancel := context.WithCancel(limited(t))
		s := proxied.WithContext(ctx).Semaphore("api", 3, dbmutex.WithoutTTL())
		arm(cancel)
		lease, err := s.Acquire()
		if err == nil { // nothing broke
			require.NoError(t, lease.Release())
		} else {
			require.ErrorIs(t, err, context.Canceled)
		}
		settles(t, direct.Semaphore("api", 3), 0)
		cancel()
	})
}

func TestTheForcedEndOfAPermitIsSettledWhereverItBreaks(t *testing.T) {
	t.Parallel()
	faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		s := direct.Semaphore("api", 2)
		for range 2 {
			_, err := s.Acquire()
			require.NoError(t, err)
		}
		arm(func() {})
		require.NoError(t, proxied.Semaphore("api", 2).ForceRelease())
		require.Equal(t, 1, taken(t, s), "it ends one, and no more")
		require.NoError(t, s.ForceRelease())
	})
}
