package dbmutex_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// permit must be there; it is released when the test ends.
func permit(t testing.TB, s *dbmutex.Semaphore) *dbmutex.Lease {
	t.Helper()
	lease, err := s.Acquire()
	require.NoError(t, err)
	t.Cleanup(func() { _ = lease.Release() })
	return lease
}

// permits are so many.
func permits(t testing.TB, s *dbmutex.Semaphore, n int) (leases []*dbmutex.Lease) {
	t.Helper()
	for range n {
		leases = append(leases, permit(t, s))
	}
	return leases
}

// requireFull says what others see of a semaphore, and returns the error.
func requireFull(t testing.TB, s *dbmutex.Semaphore) *dbmutex.HeldError {
	t.Helper()
	_, err := s.Acquire()
	require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
	var held *dbmutex.HeldError
	require.ErrorAs(t, err, &held)
	return held
}

// slotsOf are the slots that are taken.
func slotsOf(t testing.TB, s *dbmutex.Semaphore) (slots []int) {
	t.Helper()
	holders, err := s.Holders()
	require.NoError(t, err)
	for _, info := range holders {
		slots = append(slots, info.Slot)
	}
	return slots
}

// expireSlot makes the row of a lease run out now.
func expireSlot(t testing.TB, db *dbmutex.DB, lease *dbmutex.Lease) {
	t.Helper()
	testdb.Expire(t, db, fmt.Sprintf("%s\x1f%d", lease.LockID(), lease.Slot()))
}

func TestASemaphoreHasSoManyLeases(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.LessOrEqual(t, permit(t, db.Semaphore(strings.Repeat("ö", 252), 256)).Slot(), 256) // the most that may be
		for _, n := range []int{1, 3, 12} {
			id := strings.Repeat("ö", n)
			s := db.Semaphore(id, n)
			bySlot := map[int]*dbmutex.Lease{}
			for range n {
				lease := permit(t, s)
				require.Equal(t, id, lease.LockID())
				require.True(t, lease.Slot() >= 1 && lease.Slot() <= n, lease.Slot())
				require.NotContains(t, bySlot, lease.Slot())
				bySlot[lease.Slot()] = lease
			}
			require.Equal(t, id, requireFull(t, s).LockID)
			holders, err := s.Holders()
			require.NoError(t, err)
			require.Len(t, holders, n)
			for i, info := range holders {
				require.Equal(t, i+1, info.Slot)
				require.Equal(t, id, info.LockID)
			}
			require.NoError(t, bySlot[n].Release())
			require.Equal(t, n, permit(t, s).Slot(), "it is the one that is free")
			require.Zero(t, acquire(t, db, id).Slot(), "a mutex of the same id is another thing")
		}
	})
}

func TestASemaphoreIsRefusedBeforeAnySQL(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		pool, err := db.DB()
		require.NoError(t, err)
		require.NoError(t, pool.Close())
		for _, n := range []int{0, -1, 257} {
			requireAllRefused(t, db.Semaphore("api", n), dbmutex.ErrInvalidSettings)
		}
		for _, id := range []string{"", "\xff", "a\x00", "api\x1f1", "\x1f", strings.Repeat("ö", 253)} {
			requireAllRefused(t, db.Semaphore(id, 2), dbmutex.ErrInvalidLockID)
		}
		require.ErrorIs(t, db.Mutex("api\x1f1").Do(nothing), dbmutex.ErrInvalidLockID)
		requireAllRefused(t, db.Semaphore("api", 2, dbmutex.WithWait(-2)), dbmutex.ErrInvalidSettings)
		requireAllRefused(t, dbmutex.Wrap(d.Open(t)).Semaphore("api", 2), dbmutex.ErrNotRegistered)
		requireAllRefused(t, nil, dbmutex.ErrNotRegistered)
		requireAllRefused(t, &dbmutex.Semaphore{}, dbmutex.ErrNotRegistered)
		_, err = db.Semaphore("api", 2, dbmutex.WithSkipHeld()).Acquire()
		require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
		_, err = db.Semaphore("api", 2).ForceReleaseLease("")
		require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
		require.ErrorIs(t, db.Semaphore("api", 2).Do(nil), dbmutex.ErrInvalidSettings)
	})
}

func requireAllRefused(t *testing.T, s *dbmutex.Semaphore, want error) {
	t.Helper()
	_, acquired := s.Acquire()
	_, listed := s.Holders()
	_, released := s.ForceReleaseLease("any")
	for _, err := range []error{
		s.Do(nothing), s.Decorate(nothing)(context.Background()), acquired, listed, released, s.ForceRelease(),
		s.Transaction(func(*gorm.DB) error { return nil }),
	} {
		require.ErrorIs(t, err, want)
		require.NotContains(t, err.Error(), "\x1f")
	}
}

func TestEveryVerbTakesAPermit(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		s := db.Semaphore("api", 2)
		one := permit(t, s)
		inside := func(ctx context.Context) error {
			lease, found := dbmutex.LeaseFrom(ctx)
			require.True(t, found)
			require.Equal(t, 3-one.Slot(), lease.Slot())
			require.NoError(t, lease.Renew())
			_ = requireFull(t, s)
			require.Equal(t, []int{1, 2}, slotsOf(t, s))
			return errWork
		}
		require.ErrorIs(t, s.Do(inside), errWork)
		require.ErrorIs(t, s.Decorate(inside)(context.Background()), errWork)
		require.NoError(t, s.Transaction(func(tx *gorm.DB) error {
			lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
			require.Equal(t, 3-one.Slot(), lease.Slot())
			return nil
		}))
		require.Equal(t, []int{one.Slot()}, slotsOf(t, s))
		permit(t, s)
		ran := false
		skip := db.Semaphore("api", 2, dbmutex.WithSkipHeld())
		require.NoError(t, skip.Do(func(context.Context) error { ran = true; return nil }))
		require.False(t, ran)
	})
}

// What a transaction does under a permit, it does as under a mutex.
func TestAPermitGoesWithTransactions(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		s := db.Semaphore("api", 2)
		lost, kept := permit(t, s), permit(t, s)
		require.NoError(t, db.Gorm.Transaction(kept.Guard))
		released, err := s.ForceReleaseLease(leaseIn(t, s, lost.Slot()).LeaseID)
		require.NoError(t, err)
		require.True(t, released)
		requireTimeout(t, db.Gorm.Transaction(lost.Guard), "api", true)
		requireTimeout(t, lost.Release(), "api", true)
		failing := func(tx *gorm.DB) error { return errors.Join(kept.ReleaseIn(tx), errWork) }
		require.ErrorIs(t, db.Gorm.Transaction(failing), errWork)
		require.Equal(t, []int{kept.Slot()}, slotsOf(t, s), "it was rolled back")
		require.NoError(t, db.Gorm.Transaction(kept.ReleaseIn))
		require.Empty(t, slotsOf(t, s))
		require.NoError(t, kept.Release())
		if d.OneWriter {
			return
		}
		requireTimeout(t, s.Transaction(func(*gorm.DB) error { return s.ForceRelease() }), "api", true)
	})
}

// leaseIn is the lease that holds a slot.
func leaseIn(t testing.TB, s *dbmutex.Semaphore, slot int) dbmutex.LeaseInfo {
	t.Helper()
	holders, err := s.Holders()
	require.NoError(t, err)
	for _, info := range holders {
		if info.Slot == slot {
			return info
		}
	}
	require.Fail(t, "the slot is free")
	return dbmutex.LeaseInfo{}
}

// A pinned slot keeps nobody from another one that ran out.
func TestAPermitThatRanOutIsTakenOverUnlessItIsPinned(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.ManyWriters, func(t *testing.T, d *testdb.Database) {
		db := open(t, d)
		s := db.Semaphore("api", 3)
		leases := permits(t, s, 3)
		for _, lease := range leases {
			expireSlot(t, db, lease)
		}
		tx := db.Gorm.Begin()
		require.NoError(t, leases[0].Guard(tx))
		require.NoError(t, leases[1].Guard(tx))
		next := permit(t, s)
		require.Equal(t, leases[2].Slot(), next.Slot())
		require.Zero(t, requireFull(t, s).Holder, "nobody is named whose lease has ended")
		requireTimeout(t, leases[2].Release(), "api", true)
		require.NoError(t, tx.Rollback().Error)
		permits(t, s, 2)
		_ = requireFull(t, s)
	})
}

func TestTheTokensOfASlotGrow(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		s := db.Semaphore("api", 3)
		last := map[int]int64{}
		for round := range 8 {
			for i, lease := range permits(t, s, 3) {
				require.Greater(t, lease.Token(), last[lease.Slot()])
				last[lease.Slot()] = lease.Token()
				switch (round + i) % 3 {
				case 0:
					require.NoError(t, lease.Release())
				case 1:
					expireSlot(t, db, lease)
				default:
					_, err := s.ForceReleaseLease(leaseIn(t, s, lease.Slot()).LeaseID)
					require.NoError(t, err)
				}
			}
			require.Empty(t, slotsOf(t, s))
			if round%4 == 3 {
				_, err := db.Prune()
				require.NoError(t, err)
			}
		}
	})
}

func TestAFullSemaphoreNamesTheLeaseThatEndsFirst(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		named := func(holder string, opt dbmutex.Option) *dbmutex.Semaphore {
			return db.Semaphore("api", 4, opt, dbmutex.WithHolder(holder))
		}
		permit(t, named("never", dbmutex.WithoutTTL()))
		permit(t, named("late", dbmutex.WithTTL(3*time.Hour)))
		permit(t, named("first", dbmutex.WithTTL(time.Hour)))
		permit(t, named("next", dbmutex.WithTTL(2*time.Hour)))
		s := db.Semaphore("api", 4)
		for _, holder := range []string{"first", "next", "late", "never"} {
			held := requireFull(t, s)
			require.Equal(t, holder, held.Holder)
			require.Equal(t, "api", held.LockID)
			require.Equal(t, holder == "never", held.ExpiresAt == nil)
			require.NoError(t, s.ForceRelease(), "it ends this one")
			permit(t, db.Semaphore("api", 4, dbmutex.WithoutTTL(), dbmutex.WithHolder("never")))
		}
	})
}

func TestForceReleaseEndsWhatHoldsBeforeWhatRanOut(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		s := db.Semaphore("api", 2)
		require.NoError(t, s.ForceRelease(), "it is no error if nobody holds it")
		old, held := permit(t, s), permit(t, s)
		expireSlot(t, db, old)
		require.Equal(t, []int{held.Slot()}, slotsOf(t, s))
		require.NoError(t, s.ForceRelease())
		requireTimeout(t, held.Release(), "api", true)
		require.NoError(t, s.ForceRelease())
		require.Zero(t, countRows(t, db))
	})
}

// countRows counts the rows of the lock's table that are not free.
func countRows(t testing.TB, db *dbmutex.DB) (n int64) {
	t.Helper()
	require.NoError(t, testdb.Taken(db.Gorm).Count(&n).Error)
	return n
}

func TestCallersWhoDisagreeHaveTheGreatestN(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		two, four := db.Semaphore("api", 2), open(t, d).Semaphore("api", 4)
		permits(t, two, 2)
		_ = requireFull(t, two)
		for _, lease := range permits(t, four, 2) {
			require.Greater(t, lease.Slot(), 2)
		}
		_ = requireFull(t, four)
		require.Equal(t, []int{1, 2, 3, 4}, slotsOf(t, two), "it shows those above its own n, too")
		released, err := two.ForceReleaseLease(leaseIn(t, two, 4).LeaseID)
		require.NoError(t, err)
		require.True(t, released, "and ends them")
		_ = requireFull(t, two)
		require.Equal(t, 4, permit(t, four).Slot())
		released, err = two.ForceReleaseLease("none")
		require.NoError(t, err)
		require.False(t, released)
	})
}

func TestANestedPermitIsAnotherOneWhileThereAreSome(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.NoError(t, db.Mutex("api").Do(func(ctx context.Context) error { // it does not count
			forever := func(ctx context.Context) *dbmutex.Semaphore {
				return db.WithContext(ctx).Semaphore("api", 2, dbmutex.WithWait(dbmutex.Forever))
			}
			return forever(ctx).Do(func(ctx context.Context) error {
				return forever(ctx).Do(func(ctx context.Context) error {
					err := forever(ctx).Do(nothing)
					require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
					require.EqualError(t, err, `dbmutex: "api" is held by the caller itself: its context has all 2 leases`)
					require.NoError(t, db.WithContext(ctx).Semaphore("other", 1).Do(nothing))
					return nil
				})
			})
		}))
	})
}

func TestAPermitWithAMinHoldRests(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		s := db.Semaphore("api", 2, dbmutex.WithMinHold(10*time.Minute))
		require.NoError(t, s.Do(nothing))
		require.NoError(t, s.Do(nothing))
		_ = requireFull(t, s)
		holders, err := s.Holders()
		require.NoError(t, err)
		require.Len(t, holders, 2)
		require.True(t, holders[0].Resting() && holders[1].Resting())
		require.NoError(t, s.ForceRelease())
		permit(t, s)
	})
}

func TestTheIDOfASemaphoreIsTakenByteForByte(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		ids := []string{
			"a%b", "a_b", `a\b`, `a"b`, `a'b`, `{a,b}`, `a\`, `a"`, "NULL", "null", " ", "a ", "ä", "a", "A", "a\U0001F512",
			"a1", "a\n", "?", "$1",
		}
		for range 2 {
			for _, id := range ids {
				permit(t, db.Semaphore(id, 2))
			}
		}
		for _, id := range ids {
			s := db.Semaphore(id, 2)
			held := requireFull(t, s)
			require.Equal(t, id, held.LockID)
			require.NotEmpty(t, held.Holder, "its slots were seen")
			require.Equal(t, []int{1, 2}, slotsOf(t, s))
			require.NoError(t, s.ForceRelease())
			require.Len(t, slotsOf(t, s), 1)
			permit(t, s)
		}
	})
}

func TestNobodyIsShownTheMarkOfASlot(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		out := &logs{}
		seen := &recorder{}
		warned := d.Mutexes(t, dbmutex.DefaultSettings(), &gorm.Config{Logger: out.logger(logger.Warn)})
		observed := func(n int, opts ...dbmutex.Option) *dbmutex.Semaphore {
			return warned.Semaphore("api", n, append(opts, dbmutex.WithObserver(seen))...)
		}
		requireTimeout(t, observed(1).Do(func(ctx context.Context) error {
			require.NoError(t, observed(1, dbmutex.WithSkipHeld()).Do(nothing))
			return observed(1).ForceRelease()
		}), "api", true)
		lease := permit(t, observed(1))
		expireSlot(t, db, lease)
		permit(t, observed(1))
		texts := []string{lease.Release().Error(), requireFull(t, observed(1)).Error(), out.String()}
		for _, e := range seen.all() {
			require.Equal(t, "api", e.LockID)
			begins := e.Kind == dbmutex.AcquireBegan || e.Kind == dbmutex.AcquireEnded && e.Outcome != dbmutex.OutcomeAcquired
			require.Equal(t, begins, e.Slot == 0, "%v", e.Kind)
			if e.Previous != nil {
				require.Equal(t, "api", e.Previous.LockID)
			}
			texts = append(texts, fmt.Sprintf("%+v", e))
		}
		for _, text := range texts {
			require.Contains(t, text, "api")
			require.NotContains(t, text, "\x1f")
			require.NotContains(t, text, `\x1f`)
		}
	})
}

// A file's texts may be in another order than that of their characters.
func TestOtherIDsAreNoSlotsInAnyEncoding(t *testing.T) {
	t.Parallel()
	d := testdb.SQLite(t)
	for _, encoding := range []string{"UTF-8", "UTF-16le", "UTF-16be"} {
		own := d.Another(t)
		require.NoError(t, own.Open(t).Exec(`PRAGMA encoding = '`+encoding+`'; CREATE TABLE other (id integer)`).Error)
		db := open(t, own)
		for _, id := range []string{"api\u011f1", "api\u1f001", "api 1", "api1", "apj", "aph\uffff"} {
			acquire(t, db, id)
		}
		permit(t, db.Semaphore("job\u011f1job", 1)) // its slot has the prefix of the other's slots within its id
		for _, id := range []string{"api", "job"} {
			s := db.Semaphore(id, 2)
			for _, lease := range permits(t, s, 2) { // only the second slot stays taken
				if lease.Slot() == 1 {
					require.NoError(t, lease.Release())
				}
			}
			require.Equal(t, 1, permit(t, open(t, own).Semaphore(id, 2)).Slot(), encoding) // who does not know which is free
			_ = requireFull(t, s)
			permit(t, db.Semaphore(id, 3))
			_ = requireFull(t, s)
		}
	}
}

func TestASlotAboveNIsNotTaken(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		three := db.Semaphore("api", 3)
		bySlot := map[int]*dbmutex.Lease{}
		for _, lease := range permits(t, three, 3) {
			bySlot[lease.Slot()] = lease
		}
		require.NoError(t, bySlot[3].Release())
		_ = requireFull(t, db.Semaphore("api", 2)) // although this process knows that it is free
		permits(t, three, 1)
		expireSlot(t, db, bySlot[3])
		_ = requireFull(t, open(t, d).Semaphore("api", 2)) // although it has run out
		permits(t, three, 1)
		require.NoError(t, bySlot[1].Release())
		require.Equal(t, 1, permit(t, open(t, d).Semaphore("api", 2)).Slot(), "as many are taken, but not the first")
	})
}

func TestASemaphoreIsFullOnceAllOfItsOwnSlotsAreTaken(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		elsewhere := open(t, d)
		for taken := range 8 { // a bit for each of three slots
			for n := 1; n <= 3; n++ {
				id := fmt.Sprint("api ", taken, n)
				for _, lease := range permits(t, db.Semaphore(id, 3), 3) {
					if taken&(1<<(lease.Slot()-1)) == 0 {
						require.NoError(t, lease.Release())
					}
				}
				s, all := elsewhere.Semaphore(id, n), 1<<n-1
				if taken&all == all {
					_ = requireFull(t, s)
					continue
				}
				slot := permit(t, s).Slot()
				require.LessOrEqual(t, slot, n)
				require.Zero(t, taken&(1<<(slot-1)), "%d, %b", slot, taken)
			}
		}
	})
}
