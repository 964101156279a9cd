package dbmutex_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// What others do between a look at the slots and the statement that follows.

// beforeEach passes each statement of a handle to do before it is sent.
func beforeEach(t testing.TB, db *dbmutex.DB, do func(statement string)) {
	t.Helper()
	callback := func(tx *gorm.DB) { do(tx.Statement.SQL.String()) }
	require.NoError(t, db.Callback().Row().Before("gorm:row").Register("test:before", callback))
	require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("test:before", callback))
}

// beforeFirst does something before the first statement of a handle that does a verb.
func beforeFirst(t testing.TB, db *dbmutex.DB, d *testdb.Database, verb string, do func()) {
	t.Helper()
	var once sync.Once
	beforeEach(t, db, func(statement string) {
		if d.Verb(statement) == verb {
			once.Do(do)
		}
	})
}

func TestATryThatIsOvertakenTakesWhatIsFreeThen(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		elsewhere := open(t, d)
		first := permit(t, elsewhere.Semaphore("api", 1))
		beforeFirst(t, db, d, "acquire", func() {
			require.Equal(t, 2, permit(t, elsewhere.Semaphore("api", 2)).Slot())
			require.NoError(t, first.Release())
		})
		require.Equal(t, 1, permit(t, db.Semaphore("api", 2)).Slot())
	})
}

func TestATryThatIsOvertakenNamesWhoWasFaster(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		elsewhere := open(t, d)
		beforeFirst(t, db, d, "acquire", func() {
			permit(t, elsewhere.Semaphore("api", 1, dbmutex.WithHolder("faster")))
		})
		require.Equal(t, "faster", requireFull(t, db.Semaphore("api", 1)).Holder)
	})
}

func TestATryAsksForFreeSlotsAlone(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		elsewhere := open(t, d)
		require.NoError(t, db.Semaphore("first", 1).Do(nothing))
		statements := 0
		beforeEach(t, db, func(string) { statements++ })
		count := func(n int) (refused, acquired int) {
			id := fmt.Sprint("api ", n)
			leases := permits(t, elsewhere.Semaphore(id, n), n)
			statements = 0
			_ = requireFull(t, db.Semaphore(id, n))
			refused = statements
			require.NoError(t, leases[0].Release())
			statements = 0
			_, err := db.Semaphore(id, n).Acquire()
			require.NoError(t, err)
			return refused, statements
		}
		refused, acquired := count(1)
		refusedOfMany, acquiredOfMany := count(12)
		require.Equal(t, refused, refusedOfMany)
		require.Equal(t, acquired, acquiredOfMany)
	})
}

// To look again would change nothing while all that has run out is pinned.
func TestATryLooksOnceAtPinnedSlots(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.ManyWriters, func(t *testing.T, d *testdb.Database) {
		db, elsewhere := open(t, d), open(t, d)
		lease := permit(t, elsewhere.Semaphore("api", 1))
		expireSlot(t, elsewhere, lease)
		permit(t, db.Semaphore("api", 2))
		tx := elsewhere.Gorm.Begin()
		require.NoError(t, lease.Guard(tx))
		var look string
		looks := 0
		beforeEach(t, db, func(statement string) {
			if look == "" { // it comes first
				look = statement
			}
			if statement == look {
				looks++
			}
		})
		_ = requireFull(t, db.Semaphore("api", 2))
		require.Equal(t, 1, looks)
		require.NoError(t, tx.Rollback().Error)
	})
}

func TestAForcedReleaseLooksAgainIfThePermitEndsMeanwhile(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		elsewhere := open(t, d)
		first := permit(t, elsewhere.Semaphore("api", 2, dbmutex.WithTTL(time.Hour)))
		next := permit(t, elsewhere.Semaphore("api", 2, dbmutex.WithTTL(2*time.Hour)))
		beforeFirst(t, db, d, "release", func() { require.NoError(t, first.Release()) })
		require.NoError(t, db.Semaphore("api", 2).ForceRelease())
		requireTimeout(t, next.Release(), "api", true)
		require.Empty(t, slotsOf(t, db.Semaphore("api", 2)))
	})
}

func TestAForcedReleaseSparesWhoHasTheSlotMeanwhile(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		elsewhere := open(t, d)
		lasting := func(ttl time.Duration) *dbmutex.Lease {
			return permit(t, elsewhere.Semaphore("api", 2, dbmutex.WithTTL(ttl)))
		}
		first, next := lasting(time.Hour), lasting(2*time.Hour)
		require.Len(t, slotsOf(t, db.Semaphore("api", 2)), 2)
		var successor *dbmutex.Lease
		statements := 0
		beforeEach(t, db, func(string) {
			if statements++; statements == 2 { // the first lists the permits
				require.NoError(t, first.Release())
				successor = lasting(3 * time.Hour)
				require.Equal(t, first.Slot(), successor.Slot())
			}
		})
		require.NoError(t, db.Semaphore("api", 2).ForceRelease())
		requireTimeout(t, next.Release(), "api", true)
		require.NoError(t, successor.Release())
	})
}

// Both tries of a request may have taken a slot before their answers were lost.
func TestBothPermitsOfARequestAreGivenBackAtOnce(t *testing.T) {
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		direct := open(t, pool.Database)
		ctx, cancel := context.WithCancel(context.Background())
		tries := 0
		pool.setLose(func(statement string) error {
			if pool.Verb(statement) != "acquire" || tries == 2 {
				return nil
			}
			if tries++; tries == 1 { // the second does not see it yet
				require.NoError(t, direct.Exec(`UPDATE db_mutexes SET lock_id = 'late'`).Error)
				return pool.Errors.Killed
			}
			free := "api\x1f1"
			if row(t, direct, free) != nil {
				free = "api\x1f2"
			}
			require.NoError(t, direct.Exec(`UPDATE db_mutexes SET lock_id = ? WHERE lock_id = 'late'`, free).Error)
			require.Len(t, slotsOf(t, direct.Semaphore("api", 2)), 2)
			cancel()
			return pool.Errors.Killed
		})
		_, err := db.WithContext(ctx).Semaphore("api", 2, dbmutex.WithoutTTL()).Acquire()
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, 2, tries)
		require.Zero(t, countRows(t, direct))
	})
}
