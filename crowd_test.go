package dbmutex_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/wake"
)

// gather lets the next n calls for ids that begin with "crowd" run as one statement, once all have come.
func gather(t *testing.T, n int) {
	locktable.Gather("crowd", n)
	t.Cleanup(func() { locktable.Gather("", 0) })
}

// atOnce makes n calls at the same time.
func atOnce(n int, call func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { call(i) })
	}
	wg.Wait()
}

func crowdID(i int) string { return fmt.Sprintf("crowd %d %s", i, `{"a,b"} \ 'ü' NULL`) }

// crowdLeases are leases of as many mutexes, which were acquired at once.
func crowdLeases(t *testing.T, db *dbmutex.DB, n int) []*dbmutex.Lease {
	t.Helper()
	leases, errs := make([]*dbmutex.Lease, n), make([]error, n)
	atOnce(n, func(i int) { leases[i], errs[i] = db.Mutex(crowdID(i)).Acquire() })
	for _, err := range errs {
		require.NoError(t, err)
	}
	return leases
}

// statements counts those that do a verb of the lock's. The handle must not have been used.
func statements(t *testing.T, db *dbmutex.DB, d *testdb.Database, verb string) *atomic.Int32 {
	n := &atomic.Int32{}
	count := func(tx *gorm.DB) {
		if d.Verb(tx.Statement.SQL.String()) == verb {
			n.Add(1)
		}
	}
	require.NoError(t, db.Callback().Row().Register("count "+verb, count))
	require.NoError(t, db.Callback().Raw().Register("count "+verb, count))
	return n
}

// alone gives the mutexes on which a verb was done by statements for one.
func alone(t *testing.T, db *dbmutex.DB, d *testdb.Database, verb string) func() []string {
	var mu sync.Mutex
	var ids []string
	note := func(tx *gorm.DB) {
		if text := tx.Statement.SQL.String(); d.Verb(text) == verb && !strings.Contains(text, "ROWS FROM") {
			mu.Lock()
			defer mu.Unlock()
			ids = append(ids, tx.Statement.Vars[0].(string))
		}
	}
	require.NoError(t, db.Callback().Row().Register("alone "+verb, note))
	require.NoError(t, db.Callback().Raw().Register("alone "+verb, note))
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return ids
	}
}

// before runs a function before each statement for many of a verb.
func before(t *testing.T, db *dbmutex.DB, d *testdb.Database, verb string, run func(tx *gorm.DB)) {
	require.NoError(t, db.Callback().Row().Before("gorm:row").Register("before "+verb, func(tx *gorm.DB) {
		if text := tx.Statement.SQL.String(); d.Verb(text) == verb && strings.Contains(text, d.Shared) {
			run(tx)
		}
	}))
}

// awaitMembers waits until so many calls wait for others.
func awaitMembers(t *testing.T, db *dbmutex.DB, n int) {
	require.Eventually(t, func() bool { return dbmutex.Members(db.Mutex("crowd")) == n }, time.Minute, time.Millisecond)
}

const crowdSize = 6

// manyWriters are databases where a row may be pinned while others are written.
func manyWriters(k *testdb.Kind) bool { return !k.OneWriter }

// combining runs a test on the databases on which calls are combined. The table has been looked at.
func combining(t *testing.T, test func(t *testing.T, db *dbmutex.DB, d *testdb.Database)) {
	combiningOf(t, func(*testdb.Kind) bool { return true }, test)
}

// combiningOf is combining on some of them.
func combiningOf(
	t *testing.T, wanted func(*testdb.Kind) bool, test func(t *testing.T, db *dbmutex.DB, d *testdb.Database),
) {
	testdb.EachOf(t, func(k *testdb.Kind) bool { return k.Combines && wanted(k) }, func(t *testing.T, d *testdb.Database) {
		db := open(t, d)
		requireFree(t, db, "warm")
		test(t, db, d)
	})
}

func TestEachOfACrowdHasItsOwnLease(t *testing.T) {
	combining(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		acquires, releases := statements(t, db, d, "acquire"), statements(t, db, d, "release")
		leases, errs := make([]*dbmutex.Lease, crowdSize), make([]error, crowdSize)
		last := make([]int64, crowdSize)
		for round := range 3 {
			gather(t, crowdSize)
			acquires.Store(0)
			releases.Store(0)
			ttl := func(i int) time.Duration { return time.Duration(i+1) * time.Hour }
			holder := func(i int) string { return fmt.Sprintf(`"holder", \ %d`, i) }
			atOnce(crowdSize, func(i int) {
				options := []dbmutex.Option{dbmutex.WithHolder(holder(i)), dbmutex.WithTTL(ttl(i))}
				leases[i], errs[i] = db.Mutex(crowdID(i), options...).Acquire()
			})
			tokens := map[int64]bool{}
			for i, lease := range leases {
				require.NoError(t, errs[i])
				require.Greater(t, lease.Token(), last[i], "tokens grow")
				ordered := i == 0 || lease.Token() > leases[i-1].Token()
				require.True(t, ordered || d.OneWriter, "they are drawn in the order of the ids")
				last[i], tokens[lease.Token()] = lease.Token(), true
				is := row(t, db, crowdID(i))
				require.Equal(t, holder(i), is.Holder)
				deadline, _ := lease.ExpiresAt()
				require.InDelta(t, ttl(i), time.Until(deadline), float64(time.Minute))
				require.InDelta(t, ttl(i), is.ExpiresAt.Sub(is.CreationTime), float64(time.Second))
				require.False(t, is.ExpiresAt.Before(deadline.Add(-time.Second)))
				require.NoError(t, lease.Renew(), "the row is the lease's")
			}
			require.Len(t, tokens, crowdSize)
			require.EqualValues(t, 1, acquires.Load())
			gather(t, crowdSize)
			atOnce(crowdSize, func(i int) { errs[i] = leases[i].Release() })
			for i, err := range errs {
				require.NoError(t, err)
				require.Nil(t, row(t, db, crowdID(i)), "round %d", round)
			}
			require.EqualValues(t, 1, releases.Load())
		}
	})
}

func TestEachOfACrowdIsToldWhatBecameOfItsMutex(t *testing.T) {
	combining(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		for _, i := range []int{1, 3} {
			acquire(t, db, crowdID(i), dbmutex.WithHolder(fmt.Sprint("other ", i)), dbmutex.WithTTL(time.Duration(i)*time.Hour))
		}
		crashed := acquire(t, db, crowdID(2))
		testdb.Expire(t, db, crowdID(2))
		gather(t, crowdSize)
		leases, errs := make([]*dbmutex.Lease, crowdSize), make([]error, crowdSize)
		own := [crowdSize][]dbmutex.Option{4: {dbmutex.WithoutTTL()}}
		atOnce(crowdSize, func(i int) { leases[i], errs[i] = db.Mutex(crowdID(i), own[i]...).Acquire() })
		for i := range crowdSize {
			if i == 1 || i == 3 {
				var held *dbmutex.HeldError
				require.ErrorAs(t, errs[i], &held)
				require.Equal(t, fmt.Sprint("other ", i), held.Holder)
				require.Equal(t, crowdID(i), held.LockID)
				is := row(t, db, crowdID(i))
				require.WithinDuration(t, *is.ExpiresAt, *held.ExpiresAt, time.Millisecond)
				continue
			}
			require.NoError(t, errs[i])
		}
		require.Greater(t, leases[2].Token(), crashed.Token(), "it took over")
		require.Nil(t, row(t, db, crowdID(4)).ExpiresAt)
		for _, lease := range leases {
			if lease != nil {
				require.NoError(t, lease.Release())
			}
		}
	})
}

// A lease that is another's by now is not released by a crowd.
func TestACrowdReleasesItsOwnLeasesAlone(t *testing.T) {
	combining(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		leases := crowdLeases(t, db, crowdSize)
		testdb.Expire(t, db, crowdID(1))
		next := acquire(t, db, crowdID(1))
		gather(t, crowdSize)
		errs := make([]error, crowdSize)
		atOnce(crowdSize, func(i int) { errs[i] = leases[i].Release() })
		for i, err := range errs {
			if i == 1 {
				requireTimeout(t, err, crowdID(1), true)
				continue
			}
			require.NoError(t, err)
			require.Nil(t, row(t, db, crowdID(i)))
		}
		require.NoError(t, next.Release())
	})
}

// What the database refuses one of a crowd fails nobody else.
func TestABadIDFailsNobodyElseOfACrowd(t *testing.T) {
	combining(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		for _, statement := range d.RefuseOne {
			require.NoError(t, db.Exec(statement).Error)
		}
		gather(t, crowdSize)
		errs := make([]error, crowdSize)
		atOnce(crowdSize, func(i int) { _, errs[i] = db.Mutex(crowdID(i)).Acquire() })
		for i, err := range errs {
			if i == 1 {
				require.ErrorContains(t, err, "never")
				require.Nil(t, row(t, db, crowdID(i)))
				continue
			}
			require.NoError(t, err)
			require.NotNil(t, row(t, db, crowdID(i)))
		}
	})
}

func TestAPinnedRowDelaysNobodyElseOfACrowd(t *testing.T) {
	t.Run("with pgnotify", pinnedRowDelaysNobodyElse)
	t.Run("without", func(t *testing.T) {
		listen := wake.Listen
		wake.Listen = nil
		t.Cleanup(func() { wake.Listen = listen })
		pinnedRowDelaysNobodyElse(t)
	})
}

func pinnedRowDelaysNobodyElse(t *testing.T) {
	combiningOf(t, manyWriters, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		leases := crowdLeases(t, db, crowdSize)
		pin := db.Begin()
		require.NoError(t, leases[1].Guard(pin))
		own := alone(t, db, d, "release")
		gather(t, crowdSize)
		others, pinned := make(chan error, crowdSize), make(chan error, 1)
		for i := range crowdSize {
			go func() {
				if err := leases[i].Release(); i == 1 {
					pinned <- err
				} else {
					others <- err
				}
			}()
		}
		for range crowdSize - 1 {
			require.NoError(t, <-others, "while the row is pinned")
		}
		require.NotNil(t, row(t, db, crowdID(1)))
		require.NoError(t, pin.Commit().Error)
		require.NoError(t, <-pinned)
		require.Nil(t, row(t, db, crowdID(1)))
		for _, id := range own() {
			require.Equal(t, crowdID(1), id, "nobody else had to try again")
		}
	})
}

func TestAStrangersInsertDelaysNobodyElseOfACrowd(t *testing.T) {
	combiningOf(t, manyWriters, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		stranger := db.Begin()
		require.NoError(t, stranger.Exec(`INSERT INTO db_mutexes (lock_id, creation_time, expires_at, holder, lease_id)
			VALUES (?, now(), now() + interval '1 hour', 'stranger', 'x')`, crowdID(1)).Error)
		gather(t, crowdSize)
		ended := make(chan string, 1)
		after(t, db, d, "acquire", func(tx *gorm.DB) { ended <- codeOf(tx.Error) })
		others, kept := make(chan error, crowdSize), make(chan error, 1)
		for i := range crowdSize {
			go func() {
				if _, err := db.Mutex(crowdID(i)).Acquire(); i == 1 {
					kept <- err
				} else {
					others <- err
				}
			}()
		}
		for range crowdSize - 1 {
			require.NoError(t, <-others, "while the stranger's transaction goes on")
		}
		require.NoError(t, stranger.Commit().Error)
		require.ErrorIs(t, <-kept, dbmutex.ErrNotAcquired)
		require.Equal(t, "55P03", <-ended, "the server ended the wait: nobody is in doubt")
	})
}

// Who is refused needs no writer to end; who is not waits for it as if alone.
func TestAWriterDelaysNobodyWhoIsRefusedInACrowd(t *testing.T) {
	oneWriter := func(k *testdb.Kind) bool { return k.OneWriter }
	combiningOf(t, oneWriter, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		leases := map[int]*dbmutex.Lease{1: acquire(t, db, crowdID(1)), 3: acquire(t, db, crowdID(3))}
		letGo := d.Hang(t)
		gather(t, crowdSize)
		refused, others := make(chan error, crowdSize), make(chan error, crowdSize)
		for i := range crowdSize {
			go func() {
				if _, err := db.Mutex(crowdID(i)).Acquire(); leases[i] != nil {
					refused <- err
				} else {
					others <- err
				}
			}()
		}
		for range leases {
			require.ErrorIs(t, <-refused, dbmutex.ErrNotAcquired, "while the writer goes on")
		}
		require.Empty(t, others)
		letGo()
		for range crowdSize - len(leases) {
			require.NoError(t, <-others)
		}
		for i := range crowdSize {
			require.NotNil(t, row(t, db, crowdID(i)))
		}

		letGo = d.Hang(t)
		gather(t, len(leases))
		released := make(chan error, len(leases))
		for _, lease := range leases {
			go func() { released <- lease.Release() }()
		}
		time.Sleep(300 * time.Millisecond) // the statement for both is locked out
		require.Empty(t, released)
		letGo()
		for range leases {
			require.NoError(t, <-released)
		}
		for i := range leases {
			require.Nil(t, row(t, db, crowdID(i)))
		}
	})
}

func TestOneOfACrowdThatLeavesTakesNobodyAlong(t *testing.T) {
	combining(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		gather(t, crowdSize)
		type key struct{}
		ctx, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, "first"))
		first := make(chan error, 1)
		flights, acquires := 0, statements(t, db, d, "acquire")
		before(t, db, d, "acquire", func(tx *gorm.DB) {
			if flights++; flights == 1 {
				if tx.Statement.Context.Value(key{}) != "first" {
					t.Error("it has the values of its first member's context")
				}
				cancel()
				time.Sleep(10 * time.Millisecond)
			}
		})
		go func() {
			_, err := db.WithContext(ctx).Mutex(crowdID(0)).Acquire()
			first <- err
		}()
		awaitMembers(t, db, 1)
		errs := make([]error, crowdSize)
		leases := make([]*dbmutex.Lease, crowdSize)
		atOnce(crowdSize-1, func(i int) { leases[i], errs[i] = db.Mutex(crowdID(i + 1)).Acquire() })
		for i := range crowdSize - 1 {
			require.NoError(t, errs[i])
		}
		require.ErrorIs(t, <-first, context.Canceled)
		require.Nil(t, row(t, db, crowdID(0)), "what it won is gone")
		require.Equal(t, 1, flights)
		require.EqualValues(t, 1, acquires.Load(), "nobody had to try again")
	})
}

// A statement that goes on for long after one of its members has left.
func TestOneWhoLeavesASlowCrowdLeavesNoLease(t *testing.T) {
	combining(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		gather(t, crowdSize)
		ctx, cancel := context.WithCancel(context.Background())
		before(t, db, d, "acquire", func(*gorm.DB) {
			cancel()
			time.Sleep(1200 * time.Millisecond)
		})
		errs := make([]error, crowdSize)
		atOnce(crowdSize, func(i int) {
			own := db
			if i == 1 {
				own = db.WithContext(ctx)
			}
			_, errs[i] = own.Mutex(crowdID(i)).Acquire()
		})
		for i, err := range errs {
			if i == 1 {
				require.ErrorIs(t, err, context.Canceled)
				continue
			}
			require.NoError(t, err)
			require.NotNil(t, row(t, db, crowdID(i)))
		}
		require.Eventually(t, func() bool { return row(t, db, crowdID(1)) == nil }, time.Minute, 10*time.Millisecond)
	})
}

func TestOneWhoWaitsForACrowdLeavesAtOnce(t *testing.T) {
	combining(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		gather(t, crowdSize)
		ctx, cancel := context.WithCancel(context.Background())
		left := make(chan error, 1)
		go func() {
			_, err := db.WithContext(ctx).Mutex(crowdID(0)).Acquire()
			left <- err
		}()
		awaitMembers(t, db, 1)
		cancel()
		require.ErrorIs(t, <-left, context.Canceled)
		gather(t, crowdSize)
		leases := crowdLeases(t, db, crowdSize) // the same id among them
		require.Len(t, leases, crowdSize)
	})
}

func TestTwoOfACrowdThatWantTheSame(t *testing.T) {
	combining(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		gather(t, 2)
		joined := make(chan error, 1)
		go func() {
			_, err := db.Mutex("crowd").Acquire()
			joined <- err
		}()
		awaitMembers(t, db, 1)
		alone := acquire(t, db, "crowd")
		requireFree(t, db, "crowd of its own")
		require.ErrorIs(t, <-joined, dbmutex.ErrNotAcquired)
		require.NoError(t, alone.Release())

		gather(t, crowdSize)
		var got, held atomic.Int32
		atOnce(crowdSize+3, func(i int) {
			if _, err := db.Mutex(crowdID(min(i, crowdSize-1))).Acquire(); err != nil {
				require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
				held.Add(1)
				return
			}
			got.Add(1)
		})
		require.EqualValues(t, crowdSize, got.Load())
		require.EqualValues(t, 3, held.Load())
	})
}

// A program that uses few mutexes at once has the statements for one.
func TestAFewCallsAreNotCombined(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out := &logs{}
		db := open(t, d, &gorm.Config{Logger: out.logger(logger.Info)})
		for range 20 {
			requireFree(t, db, "crowd")
		}
		atOnce(4, func(i int) {
			for range 20 {
				if err := db.Mutex(crowdID(i)).Do(nothing); err != nil {
					t.Error(err)
				}
			}
		})
		if d.Combines {
			require.NotContains(t, out.String(), d.Shared)
		}
	})
}

func TestACrowdsStatementThatPanics(t *testing.T) {
	combining(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		var panics atomic.Int32
		before(t, db, d, "acquire", func(*gorm.DB) {
			panics.Add(1)
			if panics.Load() == 1 {
				panic("a callback's")
			}
			runtime.Goexit()
		})
		for range 2 {
			gather(t, crowdSize)
			for _, lease := range crowdLeases(t, db, crowdSize) {
				require.NoError(t, lease.Renew())
				require.NoError(t, lease.Release())
			}
		}
		require.EqualValues(t, 2, panics.Load())
	})
}

// Many goroutines with mutexes of their own and some that they share, on few connections.
func TestACrowdKeepsThePromises(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(16)
		combined := &atomic.Int32{}
		if d.Combines {
			before(t, db, d, "acquire", func(*gorm.DB) { combined.Add(1) })
		}
		const workers, rounds = 32, 6
		var inside [8]atomic.Int32
		var tokens [workers + 8]atomic.Int64
		work := func(slot int) func(ctx context.Context) error {
			return func(ctx context.Context) error {
				lease, _ := dbmutex.LeaseFrom(ctx)
				if before := tokens[slot].Swap(lease.Token()); before >= lease.Token() {
					t.Errorf("the token %d came after %d", lease.Token(), before)
				}
				return nil
			}
		}
		own := db.WithContext(limited(t))
		atOnce(workers, func(i int) {
			for round := range rounds {
				if err := own.Mutex(fmt.Sprint("own ", i)).Do(work(8 + i)); err != nil {
					t.Error(err)
				}
				slot := (i + round) % 8
				err := own.Mutex(fmt.Sprint("shared ", slot), dbmutex.WithWait(dbmutex.Forever)).Do(func(ctx context.Context) error {
					if inside[slot].Add(1) != 1 {
						t.Error("two at once")
					}
					defer inside[slot].Add(-1)
					return work(slot)(ctx)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
		var left int64
		require.NoError(t, testdb.Taken(db.Gorm).Count(&left).Error)
		require.Zero(t, left)
		require.Equal(t, d.Combines, combined.Load() > 0)
		requireNoFlight(t)
	})
}
