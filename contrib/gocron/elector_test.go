package gocronmutex_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/jonboulle/clockwork"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	gocronmutex "github.com/gorm-dbmutex/dbmutex/contrib/gocron"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// quick is for tests of leases that run out.
var quick = dbmutex.WithTTL(500 * time.Millisecond)

func leads(e *gocronmutex.Elector) bool { return e.IsLeader(context.Background()) == nil }

func requireLeads(t *testing.T, e *gocronmutex.Elector) {
	t.Helper()
	eventually(t, func() bool { return leads(e) })
}

// requireNotLeader waits for an error of IsLeader that also matches reason.
func requireNotLeader(t *testing.T, e *gocronmutex.Elector, reason error) {
	t.Helper()
	eventually(t, func() bool {
		err := e.IsLeader(context.Background())
		return errors.Is(err, gocronmutex.ErrNotLeader) && errors.Is(err, reason)
	})
}

func TestOneLeads(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		electors := []*gocronmutex.Elector{newElector(t, open(), dbmutex.WithHolder("the first"), dbmutex.WithTTL(30*time.Second))}
		requireLeads(t, electors[0])
		mutex := open().Mutex("leader")
		first, err := mutex.Holder()
		require.NoError(t, err)
		electors = append(electors, newElector(t, open()))
		require.ErrorIs(t, electors[1].IsLeader(context.Background()), gocronmutex.ErrNotLeader)
		requireNotLeader(t, electors[1], dbmutex.ErrNotAcquired)
		var held *dbmutex.HeldError
		require.ErrorAs(t, electors[1].IsLeader(context.Background()), &held)
		require.Equal(t, "the first", held.Holder)
		require.True(t, leads(electors[0]))
		eventually(t, func() bool {
			row, err := mutex.Holder()
			require.NoError(t, err)
			require.NotNil(t, row)
			require.Equal(t, first.LeaseID, row.LeaseID)
			return row.ExpiresAt.After(*first.ExpiresAt) // it was renewed
		})

		require.NoError(t, electors[0].Close())
		err = electors[0].IsLeader(context.Background())
		require.ErrorIs(t, err, gocronmutex.ErrNotLeader)
		require.ErrorIs(t, err, context.Canceled)
		requireLeads(t, electors[1])
		require.NoError(t, electors[0].Close())
		require.True(t, leads(electors[1]))
		require.NoError(t, electors[1].Close())
		row, err := mutex.Holder()
		require.NoError(t, err)
		require.Nil(t, row)
	})
}

// observedElector reports what a real Elector says.
type observedElector struct {
	gocron.Elector
	events chan string
}

func (o observedElector) IsLeader(ctx context.Context) error {
	err := o.Elector.IsLeader(ctx)
	if err != nil {
		o.events <- "did not"
	} else {
		o.events <- "ran"
	}
	return err
}

func TestOnlyTheLeaderRunsJobs(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		var electors [2]*gocronmutex.Elector
		m := newMachines(t, lateBy, func(machine int, _ clockwork.Clock, events chan string) gocron.SchedulerOption {
			electors[machine] = newElector(t, open())
			if machine == 0 {
				requireLeads(t, electors[0])
			}
			return gocron.WithDistributedElector(observedElector{electors[machine], events})
		})
		for range 4 {
			require.Equal(t, [2]string{"ran", "did not"}, m.tick(t, nothing))
			require.Equal(t, 0, next(t, m.runs))
		}
		require.NoError(t, electors[0].Close())
		requireLeads(t, electors[1])
		require.Equal(t, [2]string{"did not", "ran"}, m.tick(t, nothing))
		require.Equal(t, 1, next(t, m.runs))
		require.Empty(t, m.runs)
	})
}

func TestALeaderIsReplaced(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		elector := newElector(t, open(), quick)
		requireLeads(t, elector)
		other := takeOver(t, open(), "leader")
		requireNotLeader(t, elector, gocronmutex.ErrNotLeader)
		require.Never(t, func() bool { return leads(elector) }, 2*time.Second, 10*time.Millisecond)
		require.NoError(t, other.Release())
		requireLeads(t, elector)
	})
}

// TestALeaderWhoseDatabaseHangs is none when its lease has run out, without an answer, and is one again later.
func TestALeaderWhoseDatabaseHangs(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, open func() *dbmutex.DB) {
		elector := newElector(t, open(), quick)
		requireLeads(t, elector)
		letGo := d.Hang(t)
		requireNotLeader(t, elector, dbmutex.ErrTimeout)
		letGo()
		requireLeads(t, elector)
	})
}

// TestTheLeadershipEndsBeforeTheRelease does.
func TestTheLeadershipEndsBeforeTheRelease(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, open func() *dbmutex.DB) {
		ctx, cancel := context.WithCancel(context.Background())
		elector := newElector(t, open().WithContext(ctx))
		requireLeads(t, elector)
		letGo := d.Hang(t)
		cancel()
		require.False(t, leads(elector))
		letGo()
	})
}

func TestADatabaseThatFails(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, open func() *dbmutex.DB) {
		db := open()
		failures := failedAcquires(t, d, db)
		elector := newElector(t, db, quick)
		requireLeads(t, elector)
		require.NoError(t, db.Exec(`ALTER TABLE db_mutexes RENAME TO away`).Error)
		requireNotLeader(t, elector, dbmutex.ErrTimeout)
		eventually(t, func() bool {
			err := elector.IsLeader(context.Background())
			return errors.Is(err, gocronmutex.ErrNotLeader) && strings.Contains(err.Error(), "run AutoMigrate")
		})
		last := next(t, failures)
		for range 2 {
			failed := next(t, failures)
			require.GreaterOrEqual(t, failed.Sub(last), 900*time.Millisecond, "it pauses before it tries again")
			last = failed
		}
		require.NoError(t, db.Exec(`ALTER TABLE away RENAME TO db_mutexes`).Error)
		requireLeads(t, elector)
	})
}

// failedAcquires hears when acquires on the handle fail. The first statement of one is a look.
func failedAcquires(t *testing.T, d *testdb.Database, db *dbmutex.DB) <-chan time.Time {
	failures := make(chan time.Time, 100)
	require.NoError(t, db.Callback().Row().After("gorm:row").Register("failures", func(tx *gorm.DB) {
		if tx.Error != nil && d.Verb(tx.Statement.SQL.String()) == "" {
			failures <- time.Now()
		}
	}))
	return failures
}

func TestAnElectorEndsWithItsContext(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		ctx, cancel := context.WithCancel(context.Background())
		leader := newElector(t, open().WithContext(ctx))
		requireLeads(t, leader)
		waiting := newElector(t, open().WithContext(ctx))
		cancel()
		for _, e := range []*gocronmutex.Elector{leader, waiting} {
			requireNotLeader(t, e, context.Canceled)
			require.NoError(t, e.Close())
		}
		row, err := open().Mutex("leader").Holder()
		require.NoError(t, err)
		require.Nil(t, row)
	})
}

func TestCloseTellsOfALoss(t *testing.T) {
	each(t, func(t *testing.T, _ *testdb.Database, open func() *dbmutex.DB) {
		elector := newElector(t, open())
		requireLeads(t, elector)
		takeOver(t, open(), "leader")
		requireTimeout(t, elector.Close(), "leader", true)
		requireTimeout(t, elector.Close(), "leader", true)
	})
}

// TestALeaderThatCannotRenew has a lease that only runs out. IsLeader says so once the database has answered, and Close.
func TestALeaderThatCannotRenew(t *testing.T) {
	each(t, func(t *testing.T, d *testdb.Database, open func() *dbmutex.DB) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		db := open()
		var closing atomic.Bool
		fail := func(tx *gorm.DB) {
			switch verb := d.Verb(tx.Statement.SQL.String()); {
			case verb == "renew":
				_ = tx.AddError(errOwn)
			case verb == "release" && closing.Load():
				cancel() // no other campaign follows
			}
		}
		require.NoError(t, db.Callback().Row().Before("gorm:row").Register("fail", fail))
		require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("fail", fail))
		elector := newElector(t, db.WithContext(ctx), quick)
		requireLeads(t, elector)
		eventually(t, func() bool {
			var timeout *dbmutex.TimeoutError
			err := elector.IsLeader(context.Background())
			return errors.As(err, &timeout) && !timeout.Lost && errors.Is(err, gocronmutex.ErrNotLeader)
		})
		closing.Store(true)
		<-ctx.Done()
		requireTimeout(t, elector.Close(), "leader", false)
	})
}

// TestNoGoroutineStays does not run beside other tests.
func TestNoGoroutineStays(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		db := open(t, d, dbmutex.DefaultSettings())
		require.NoError(t, db.Migrate())
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var electors []*gocronmutex.Elector
		for range 3 {
			electors = append(electors, newElector(t, db, quick), newElector(t, db.WithContext(ctx)))
		}
		eventually(t, func() bool {
			for _, e := range electors {
				if leads(e) {
					return true
				}
			}
			return false
		})
		require.NotZero(t, ours())
		cancel()
		var closing sync.WaitGroup
		for i, e := range electors {
			if i%2 == 0 {
				closing.Go(func() { require.NoError(t, e.Close()) })
			}
		}
		closing.Wait()
		eventually(t, func() bool { return ours() == 0 })
	})
}

// ours is how many goroutines run an Elector, a wait or a renewal.
func ours() (n int) {
	stacks := make([]byte, 1<<20)
	for _, stack := range strings.Split(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
		if strings.Contains(stack, "(*Elector).run") || strings.Contains(stack, "(*Lease).startRenewing") ||
			strings.Contains(stack, "(*Mutex).") {
			n++
		}
	}
	return n
}
