package faults_test

import (
	"context"
	"crypto/rand"
	"database/sql/driver"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/faults"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// The tests of this file break the network between the package and a database server.

func TestAnAcquireIsSettledWhereverItBreaks(t *testing.T) {
	t.Parallel()
	again := func() string { return "job" }
	for name, test := range map[string]struct {
		id   func() string
		opts []dbmutex.Option
	}{
		"TTL":         {again, nil},
		"no TTL":      {again, []dbmutex.Option{dbmutex.WithoutTTL()}},
		"a new mutex": {rand.Text, nil},
	} {
		t.Run(name, func(t *testing.T) {
			last := map[string]int64{}
			faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
				id := test.id()
				mutex := proxied.Mutex(id, test.opts...)
				arm(func() {})
				lease, err := mutex.Acquire()
				require.NoError(t, err, "it is not locked out by a row of its own")
				require.Greater(t, lease.Token(), last[id])
				last[id] = lease.Token()
				requireHeld(t, direct, id)
				require.NoError(t, lease.Release())
				require.Nil(t, row(t, direct, id))
			})
		})
	}
}

func TestATakeOverIsSettledWhereverItBreaks(t *testing.T) {
	t.Parallel()
	faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		crashed := acquire(t, direct, "job")
		testdb.Expire(t, direct, "job")
		arm(func() {})
		lease, err := proxied.Mutex("job").Acquire()
		require.NoError(t, err)
		require.Greater(t, lease.Token(), crashed.Token())
		require.ErrorIs(t, crashed.Release(), dbmutex.ErrTimeout)
		require.NoError(t, lease.Release())
	})
}

func TestARenewalIsSettledWhereverItBreaks(t *testing.T) {
	t.Parallel()
	faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		lease := acquire(t, proxied, "job")
		before := row(t, direct, "job")
		arm(func() {})
		require.NoError(t, lease.Renew())
		require.True(t, row(t, direct, "job").ExpiresAt.After(*before.ExpiresAt))
		require.NoError(t, lease.Release())
	})
}

func TestAReleaseIsSettledWhereverItBreaks(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		opts []dbmutex.Option
		held bool // afterwards
	}{
		"TTL":     {},
		"no TTL":  {opts: []dbmutex.Option{dbmutex.WithoutTTL()}},
		"MinHold": {opts: []dbmutex.Option{dbmutex.WithMinHold(10 * time.Minute)}, held: true},
	} {
		t.Run(name, func(t *testing.T) {
			faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
				lease := acquire(t, proxied, "job", test.opts...)
				arm(func() {})
				require.NoError(t, lease.Release(), "no loss is reported that was none")
				require.Equal(t, test.held, row(t, direct, "job") != nil)
				require.NoError(t, direct.Mutex("job").ForceRelease())
			})
		})
	}
}

func TestForceReleaseIsSettledWhereverItBreaks(t *testing.T) {
	t.Parallel()
	faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		lease := acquire(t, direct, "job")
		arm(func() {})
		require.NoError(t, proxied.Mutex("job").ForceRelease())
		require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)
	})
}

func TestADoIsSettledWhereverItBreaks(t *testing.T) {
	t.Parallel()
	faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		ran := 0
		arm(func() {})
		require.NoError(t, proxied.Mutex("job").Do(func(ctx context.Context) error {
			ran++
			requireHeld(t, direct, "job")
			return ctx.Err()
		}))
		require.Equal(t, 1, ran)
		require.Nil(t, row(t, direct, "job"))
	})
}

func TestACancelledAcquireLeavesNothingWhereverItBreaks(t *testing.T) {
	t.Parallel()
	faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		ctx, cancel := context.WithCancel(limited(t))
		mutex := proxied.WithContext(ctx).Mutex("job", dbmutex.WithoutTTL())
		arm(cancel)
		lease, err := mutex.Acquire()
		if err == nil { // nothing broke
			require.NoError(t, lease.Release())
		} else {
			require.ErrorIs(t, err, context.Canceled)
		}
		require.Nil(t, row(t, direct, "job"))
		cancel()
	})
}

func TestACancelledAcquireIsUndoneOnAnotherConnection(t *testing.T) {
	faults.OnNetwork(t, func(t *testing.T, direct, proxied *dbmutex.DB, network *proxy.Proxy) {
		requireFree(t, proxied, "warm")
		ctx, cancel := context.WithCancel(context.Background())
		broken := false
		network.Choose(func(statement string) *proxy.Fault {
			switch {
			case does(network, statement, "acquire"):
				cancel()
			case does(network, statement, "release") && !broken:
				broken = true
				return &proxy.Fault{Unsent: true}
			}
			return nil
		})
		_, err := proxied.WithContext(ctx).Mutex("job", dbmutex.WithoutTTL()).Acquire()
		require.ErrorIs(t, err, context.Canceled)
		require.True(t, broken)
		require.Nil(t, row(t, direct, "job"))
	})
}

func TestATransactionIsSettledWhereverItBreaks(t *testing.T) {
	t.Parallel()
	var committed, rolledBack int
	faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		require.NoError(t, direct.Exec(`CREATE TABLE IF NOT EXISTS made (id integer)`).Error)
		require.NoError(t, direct.Exec(`DELETE FROM made`).Error)
		mutex := proxied.Mutex("job")
		arm(func() {})
		err := mutex.Transaction(func(tx *gorm.DB) error { return tx.Exec(`INSERT INTO made VALUES (1)`).Error })
		var n int
		require.NoError(t, direct.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
		if err == nil {
			require.Equal(t, 1, n)
			committed++
		} else {
			require.Zero(t, n)
			require.NotErrorIs(t, err, dbmutex.ErrTimeout)
			require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
			require.NotContains(t, err.Error(), "unknown")
			rolledBack++
		}
		require.Nil(t, row(t, direct, "job"))
	})
	if committed+rolledBack > 0 {
		require.Positive(t, rolledBack, "some statements of the transaction were lost")
	}
}

func TestReleaseInIsSettledWhereverItBreaks(t *testing.T) {
	t.Parallel()
	faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		err := proxied.Mutex("job").Do(func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			arm(func() {})
			return proxied.Gorm.Transaction(func(tx *gorm.DB) error { return lease.ReleaseIn(tx) })
		})
		require.NotErrorIs(t, err, dbmutex.ErrTimeout, "whether it committed or not, nobody overlapped")
		require.Nil(t, row(t, direct, "job"))
	})
}

// cutting has goroutines compete for a mutex, and runs cut at some moment of every Do or after it. A Do fails only if it
// could not connect.
func cutting(t *testing.T, direct, proxied *dbmutex.DB, cut func() error) {
	require.NoError(t, direct.Exec(`CREATE TABLE counters (n integer)`).Error)
	require.NoError(t, direct.Exec(`INSERT INTO counters VALUES (0)`).Error)
	ctx := limited(t)
	var ran atomic.Int32
	var work, cuts sync.WaitGroup
	for range 3 {
		work.Go(func() {
			for range 40 {
				err := proxied.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(func(context.Context) error {
					var n int
					err := direct.Raw(`SELECT n FROM counters`).Scan(&n).Error
					time.Sleep(time.Millisecond)
					ran.Add(1)
					cuts.Go(func() {
						time.Sleep(time.Duration(mathrand.N(4000)) * time.Microsecond)
						if err := cut(); err != nil {
							t.Error(err)
						}
					})
					return errors.Join(err, direct.Exec(`UPDATE counters SET n = ?`, n+1).Error)
				})
				unconnected := errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn) ||
					err != nil && strings.HasPrefix(err.Error(), `dbmutex: acquire "job": failed to connect`)
				if err != nil && !unconnected {
					t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	cuts.Wait()
	var n int32
	require.NoError(t, direct.Raw(`SELECT n FROM counters`).Scan(&n).Error)
	require.Equal(t, ran.Load(), n)
	require.Nil(t, row(t, direct, "job"))
}

func TestConnectionsThatAreReset(t *testing.T) {
	t.Parallel()
	faults.OnNetwork(t, func(t *testing.T, direct, proxied *dbmutex.DB, network *proxy.Proxy) {
		cutting(t, direct, proxied, func() error { network.Reset(); return nil })
	})
}

func TestConnectionsThatAreTerminated(t *testing.T) {
	t.Parallel()
	faults.OnNetwork(t, func(t *testing.T, direct, _ *dbmutex.DB, network *proxy.Proxy) {
		victims, kill := network.Database.Victims(t)
		cutting(t, direct, victims.Registered(t, dbmutex.DefaultSettings()), kill)
	})
}

func TestANetworkThatDrags(t *testing.T) {
	faults.OnNetwork(t, func(t *testing.T, _, proxied *dbmutex.DB, network *proxy.Proxy) {
		network.Drag(5 * time.Millisecond)
		exercise(t, proxied)
	})
}

func TestTheHolderKnowsInTimeWhileTheNetworkIsFrozen(t *testing.T) {
	faults.OnNetwork(t, func(t *testing.T, direct, proxied *dbmutex.DB, network *proxy.Proxy) {
		var next *dbmutex.Lease
		err := proxied.Mutex("job", dbmutex.WithTTL(time.Second), dbmutex.WithRenewal()).Do(func(ctx context.Context) (err error) {
			lease, _ := dbmutex.LeaseFrom(ctx)
			network.Freeze()
			requireEnds(t, ctx)
			require.ErrorIs(t, context.Cause(ctx), dbmutex.ErrTimeout)
			deadline, _ := lease.ExpiresAt()
			require.False(t, time.Now().Before(deadline))
			next, err = direct.WithContext(limited(t)).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
			require.False(t, time.Now().Before(deadline), "nobody gets it before the holder knows")
			network.Thaw()
			return err
		})
		require.ErrorIs(t, err, dbmutex.ErrTimeout)
		require.NoError(t, next.Release(), "the late holder leaves its successor alone")
	})
}

func TestAReleaseOnAFrozenNetworkTellsOfTheLoss(t *testing.T) {
	t.Parallel()
	faults.OnNetwork(t, func(t *testing.T, direct, proxied *dbmutex.DB, network *proxy.Proxy) {
		ttl := dbmutex.WithTTL(300 * time.Millisecond)
		err := proxied.Mutex("late", ttl).Do(func(ctx context.Context) error {
			network.Freeze()
			requireEnds(t, ctx)
			return nil
		})
		require.ErrorContains(t, err, "not done within 5s")
		require.ErrorIs(t, err, dbmutex.ErrTimeout, "the lease ended first, and whether anybody overlapped is not known")
		network.Thaw()

		err = proxied.Mutex("in time", dbmutex.WithTTL(time.Hour)).Do(func(context.Context) error {
			network.Freeze()
			return nil
		})
		require.ErrorContains(t, err, "not done within 5s")
		require.NotErrorIs(t, err, dbmutex.ErrTimeout, "the work ended before the lease")
		network.Thaw()
	})
}

func TestAFreezeShorterThanTheLeaseIsNoLoss(t *testing.T) {
	t.Parallel()
	faults.OnNetwork(t, func(t *testing.T, _, proxied *dbmutex.DB, network *proxy.Proxy) {
		require.NoError(
			t,
			proxied.Mutex("job", dbmutex.WithTTL(10*time.Second), dbmutex.WithRenewal()).Do(func(ctx context.Context) error {
				lease, _ := dbmutex.LeaseFrom(ctx)
				first, _ := lease.ExpiresAt()
				network.Freeze()
				time.Sleep(4 * time.Second) // a renewal is under way
				network.Thaw()
				require.Eventually(
					t, func() bool { now, _ := lease.ExpiresAt(); return now.After(first) }, time.Minute, time.Millisecond,
				)
				return ctx.Err()
			}),
		)
	})
}

func TestAContextEndsAnAcquireOnAFrozenNetwork(t *testing.T) {
	faults.OnNetwork(t, func(t *testing.T, direct, proxied *dbmutex.DB, network *proxy.Proxy) {
		network.Freeze()
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_, err := proxied.WithContext(ctx).Mutex("job", dbmutex.WithTTL(time.Second)).Acquire()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		network.Thaw() // and what was under way arrives
		lease, err := direct.WithContext(limited(t)).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
		require.NoError(t, err, "no later than after a TTL")
		require.NoError(t, lease.Release())
	})
}

// The server's own limits, if somebody locks the whole table for a while.
func TestTheServersTimeLimits(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		for _, limit := range d.StatementLimits(t) {
			t.Run(limit.Name, func(t *testing.T) {
				direct := open(t, d)
				hasty := d.With(limit.Name, limit.Value).Registered(t, dbmutex.DefaultSettings())
				renewed, released := acquire(t, hasty, "renewed"), acquire(t, hasty, "released")

				unlock := d.Hang(t)
				err := hasty.Mutex("job").Do(func(context.Context) error { panic("ran") })
				require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
				require.ErrorContains(t, err, limit.Error)
				outcomes := make(chan error, 2)
				go func() { outcomes <- renewed.Renew() }()
				go func() { outcomes <- released.Release() }()
				time.Sleep(1500 * time.Millisecond)
				unlock()
				require.NoError(t, <-outcomes, "a holder goes on trying")
				require.NoError(t, <-outcomes)
				require.Nil(t, row(t, direct, "job"))
				require.Nil(t, row(t, direct, "released"))
			})
		}
		for _, limit := range d.IdleLimits(t) {
			t.Run(limit.Name, func(t *testing.T) {
				direct := open(t, d)
				require.NoError(t, direct.Exec(`CREATE TABLE made (id integer)`).Error)
				hasty := d.With(limit.Name, limit.Value).Registered(t, dbmutex.DefaultSettings())
				err := hasty.Mutex("job").Transaction(func(tx *gorm.DB) error {
					require.NoError(t, tx.Exec(`INSERT INTO made VALUES (1)`).Error)
					time.Sleep(1500 * time.Millisecond)
					return nil
				})
				require.Error(t, err)
				require.NotErrorIs(t, err, dbmutex.ErrTimeout)
				require.NotContains(t, err.Error(), "unknown")
				require.Nil(t, row(t, direct, "job"))
				var n int
				require.NoError(t, direct.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
				require.Zero(t, n)
			})
		}
	})
}

// The work keeps the only connection, so that no renewal gets one.
func TestAPoolThatTheWorkStarves(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1)
		mutex := db.Mutex("job", dbmutex.WithTTL(1500*time.Millisecond), dbmutex.WithRenewal())
		timeout := timeoutOf(t, mutex.Do(func(ctx context.Context) error {
			return db.Connection(func(*gorm.DB) error {
				requireEnds(t, ctx)
				require.ErrorIs(t, context.Cause(ctx), dbmutex.ErrTimeout)
				lease, _ := dbmutex.LeaseFrom(ctx)
				require.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout) // after the renewal that is under way
				return nil
			})
		}), "job", false)
		require.ErrorContains(t, timeout.Err, `renew "job"`)
		require.Nil(t, row(t, db, "job"))
	})
}

func TestErrorsOfABrokenNetworkTellWhatFailed(t *testing.T) {
	t.Parallel()
	faults.OnNetwork(t, func(t *testing.T, _, proxied *dbmutex.DB, network *proxy.Proxy) {
		network.Choose(func(string) *proxy.Fault { return &proxy.Fault{Unsent: true} })
		err := proxied.Mutex("job").Do(func(context.Context) error { panic("ran") })
		require.ErrorContains(t, err, fmt.Sprintf("dbmutex: acquire %q: ", "job"))
		require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
		require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		require.False(t, strings.Contains(err.Error(), "context"), err.Error())
	})
}
