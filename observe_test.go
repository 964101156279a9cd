package dbmutex_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// recorder is an Observer that keeps what it is told.
type recorder struct {
	mu     sync.Mutex
	events []dbmutex.Event
}

func (r *recorder) Observe(_ context.Context, e dbmutex.Event) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	return nil
}

func (r *recorder) all() []dbmutex.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// told are the events of a mutex, each as "kind" or "kind: outcome".
func (r *recorder) told(id string) (events []string) {
	for _, e := range r.all() {
		text := e.Kind.String()
		if e.Outcome != 0 {
			text += ": " + e.Outcome.String()
		}
		if e.LockID == id {
			events = append(events, text)
		}
	}
	return events
}

// waitFor waits for the n-th event of a kind.
func (r *recorder) waitFor(t *testing.T, kind dbmutex.EventKind, n int) (found dbmutex.Event) {
	t.Helper()
	require.Eventually(t, func() bool {
		seen := 0
		for _, e := range r.all() {
			if e.Kind == kind {
				found = e
				seen++
			}
		}
		return seen >= n
	}, time.Minute, time.Millisecond)
	return found
}

func (r *recorder) last(t *testing.T, kind dbmutex.EventKind) dbmutex.Event {
	t.Helper()
	return r.waitFor(t, kind, 1)
}

// eachObserved is each, with an observer of all that happens after the table is made.
func eachObserved(t *testing.T, test func(t *testing.T, db *dbmutex.DB, seen *recorder)) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		db, seen := observed(t, d)
		test(t, db, seen)
	})
}

func observed(t *testing.T, d *testdb.Database, opts ...gorm.Option) (*dbmutex.DB, *recorder) {
	t.Helper()
	seen, settings := &recorder{}, dbmutex.DefaultSettings()
	settings.Observer = seen
	return d.Mutexes(t, settings, opts...), seen
}

// uneventful is what is told of a lease that nothing happens to.
var uneventful = []string{"acquire began", "acquire ended: acquired", "lease began", "lease ended: released"}

func TestEveryWayToHoldAMutexIsTold(t *testing.T) {
	t.Parallel()
	eachObserved(t, func(t *testing.T, db *dbmutex.DB, seen *recorder) {
		ways := map[string]func(m *dbmutex.Mutex) error{
			"Do":       func(m *dbmutex.Mutex) error { return m.Do(nothing) },
			"Decorate": func(m *dbmutex.Mutex) error { return m.Decorate(nothing)(t.Context()) },
			"DoValue": func(m *dbmutex.Mutex) error {
				_, err := dbmutex.DoValue(m, func(context.Context) (int, error) { return 0, nil })
				return err
			},
			"Acquire": func(m *dbmutex.Mutex) error {
				lease, err := m.Acquire()
				return errors.Join(err, lease.Release(), lease.Release())
			},
			"Lease.Do": func(m *dbmutex.Mutex) error {
				lease, err := m.Acquire()
				return errors.Join(err, lease.Do(nothing), lease.Release())
			},
			"Transaction": func(m *dbmutex.Mutex) error { return m.Transaction(func(*gorm.DB) error { return nil }) },
			"ReleaseIn": func(m *dbmutex.Mutex) error {
				lease, err := m.Acquire()
				return errors.Join(err, db.Gorm.Transaction(lease.ReleaseIn), lease.Release())
			},
			"Guard": func(m *dbmutex.Mutex) error {
				return m.Do(func(ctx context.Context) error {
					lease, _ := dbmutex.LeaseFrom(ctx)
					return db.Gorm.Transaction(lease.Guard)
				})
			},
			"a failure": func(m *dbmutex.Mutex) error {
				if err := m.Do(func(context.Context) error { return errWork }); !errors.Is(err, errWork) {
					return err
				}
				return nil
			},
			"a panic": func(m *dbmutex.Mutex) (err error) {
				defer func() {
					if p := recover(); p != "the work's" {
						err = fmt.Errorf("panicked with %v", p)
					}
				}()
				return m.Do(func(context.Context) error { panic("the work's") })
			},
			"a transaction's failure": func(m *dbmutex.Mutex) error {
				if err := m.Transaction(func(*gorm.DB) error { return errWork }); !errors.Is(err, errWork) {
					return err
				}
				return nil
			},
			"MinHold": func(m *dbmutex.Mutex) error { return m.Do(nothing) },
		}
		for way, run := range ways {
			opts := []dbmutex.Option{dbmutex.WithTTL(time.Hour), dbmutex.WithWait(time.Minute), dbmutex.WithHolder("me")}
			if way == "MinHold" {
				opts = append(opts, dbmutex.WithMinHold(time.Minute))
			}
			require.NoError(t, run(db.Mutex(way, opts...)), way)
			require.Equal(t, uneventful, seen.told(way), way)
		}
		require.NoError(t, db.Migrate(&customer{}))
		require.Equal(t, uneventful, seen.told("dbmutex.Migrate"))
	})
}

func TestAnEventSaysWhatItTells(t *testing.T) {
	t.Parallel()
	eachObserved(t, func(t *testing.T, db *dbmutex.DB, seen *recorder) {
		before := time.Now()
		lease := acquire(t, db, "job", dbmutex.WithTTL(time.Hour), dbmutex.WithHolder("me"))
		leaseID := row(t, db, "job").LeaseID
		acquired, began := seen.last(t, dbmutex.AcquireEnded), seen.last(t, dbmutex.LeaseBegan)
		until, _ := lease.ExpiresAt()
		require.Equal(t, until, began.ExpiresAt)
		require.NoError(t, lease.Renew())
		renewed := seen.last(t, dbmutex.LeaseRenewed)
		until, _ = lease.ExpiresAt()
		require.Equal(t, until, renewed.ExpiresAt)
		require.NoError(t, lease.Release())
		ended := seen.last(t, dbmutex.LeaseEnded)
		for _, e := range seen.all() {
			require.Equal(t, "job", e.LockID)
			require.Equal(t, "me", e.Holder)
			require.Equal(t, time.Hour, e.TTL)
			require.NoError(t, e.Err)
			require.Nil(t, e.Previous)
			require.False(t, e.HandedOn)
			if e.Kind == dbmutex.AcquireBegan {
				require.Empty(t, e.LeaseID)
				continue
			}
			require.Equal(t, leaseID, e.LeaseID)
			require.Equal(t, lease.Token(), e.Token)
		}
		require.Equal(t, 1, acquired.Tries)
		require.Positive(t, acquired.Waited)
		require.LessOrEqual(t, acquired.Waited, time.Since(before))
		require.Positive(t, ended.Held)
		require.LessOrEqual(t, ended.Held, time.Since(before))
		require.Zero(t, ended.Dropped)

		acquire(t, db, "job", dbmutex.WithoutTTL())
		began = seen.waitFor(t, dbmutex.LeaseBegan, 2)
		require.Zero(t, began.TTL)
		require.Zero(t, began.ExpiresAt)
		require.Contains(t, began.Holder, "/", "the default holder")
	})
}

func TestAnAcquireThatFailsIsTold(t *testing.T) {
	t.Parallel()
	eachObserved(t, func(t *testing.T, db *dbmutex.DB, seen *recorder) {
		lease := acquire(t, db, "job", dbmutex.WithHolder("first"))
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		again := db.WithContext(lease.Context()).Mutex("job").Do
		waitASecond := func(work func(context.Context) error) error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return db.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(work)
		}
		broken := false
		require.NoError(t, db.Callback().Row().Before("gorm:row").Register("break", func(tx *gorm.DB) {
			if broken {
				_ = tx.AddError(errWork)
			}
		}))
		for _, test := range []struct {
			do      func(func(context.Context) error) error
			outcome dbmutex.Outcome
			err     error
			tried   bool
		}{
			{db.Mutex("job").Do, dbmutex.OutcomeHeld, dbmutex.ErrNotAcquired, true},
			{db.Mutex("job", dbmutex.WithWait(time.Millisecond)).Do, dbmutex.OutcomeHeld, dbmutex.ErrNotAcquired, true},
			{again, dbmutex.OutcomeHeld, dbmutex.ErrNotAcquired, false},
			{db.Mutex("job", dbmutex.WithSkipHeld()).Do, dbmutex.OutcomeSkipped, dbmutex.ErrNotAcquired, true},
			{waitASecond, dbmutex.OutcomeCancelled, context.DeadlineExceeded, true},
			{db.WithContext(cancelled).Mutex("job").Do, dbmutex.OutcomeCancelled, context.Canceled, false},
			{db.Mutex("job").Do, dbmutex.OutcomeFailed, errWork, true},
		} {
			before := len(seen.all())
			broken = test.outcome == dbmutex.OutcomeFailed
			err := test.do(nothing)
			events := seen.all()[before:]
			require.Len(t, events, 2)
			require.Equal(t, dbmutex.AcquireBegan, events[0].Kind)
			require.Equal(t, dbmutex.AcquireEnded, events[1].Kind)
			require.Equal(t, test.outcome, events[1].Outcome)
			require.ErrorIs(t, events[1].Err, test.err)
			require.Equal(t, test.tried, events[1].Tries > 0)
			require.Zero(t, events[1].Token)
			if test.outcome != dbmutex.OutcomeSkipped {
				require.Equal(t, err, events[1].Err)
			}
		}
		before := len(seen.all())
		broken = false
		require.ErrorIs(t, db.Mutex("").Do(nothing), dbmutex.ErrInvalidLockID)
		require.ErrorIs(t, db.Mutex("job").Do(nil), dbmutex.ErrInvalidSettings)
		require.Len(t, seen.all(), before, "nothing is told of a call that is wrong")
	})
}

func TestATakeOverNamesTheLeaseThatHadRunOut(t *testing.T) {
	t.Parallel()
	eachObserved(t, func(t *testing.T, db *dbmutex.DB, seen *recorder) {
		crashed := acquire(t, db, "job", dbmutex.WithHolder("crashed"))
		testdb.Expire(t, db, "job")
		stored := row(t, db, "job")
		for _, opt := range []dbmutex.Option{nil, dbmutex.WithWait(time.Minute), dbmutex.WithoutTTL()} {
			lease := acquire(t, db, "job", opt, dbmutex.WithHolder("next"))
			e := seen.last(t, dbmutex.AcquireEnded)
			require.Equal(t, lease.Token(), e.Token)
			require.NotNil(t, e.Previous)
			require.Equal(t, "job", e.Previous.LockID)
			require.Equal(t, stored.Holder, e.Previous.Holder)
			require.True(t, stored.CreationTime.Equal(e.Previous.Since), "%v and %v", stored.CreationTime, e.Previous.Since)
			require.True(t, stored.ExpiresAt.Equal(*e.Previous.ExpiresAt))
			if opt == nil {
				requireTimeout(t, crashed.Release(), "job", true)
			}
			testdb.Expire(t, db, "job")
			stored = row(t, db, "job")
		}
		require.NoError(t, db.Mutex("held", dbmutex.WithMinHold(time.Minute)).Do(nothing))
		testdb.Expire(t, db, "held")
		acquire(t, db, "held")
		require.Nil(t, seen.last(t, dbmutex.AcquireEnded).Previous, "what MinHold leaves is no lease")
		requireFree(t, db, "free")
		requireFree(t, db, "free")
		require.Nil(t, seen.last(t, dbmutex.AcquireEnded).Previous)
	})
}

func TestAnAcquireThatIsTriedAgainTakesOverNothing(t *testing.T) {
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		requireFree(t, db, "another")
		seen, losses := &recorder{}, 0
		direct := open(t, pool.Database)
		pool.setLose(func(statement string) error {
			if pool.Verb(statement) != "acquire" || losses > 0 || row(t, direct, "job") == nil {
				return nil
			}
			losses++
			return pool.Errors.Killed
		})
		lease, err := db.Mutex("job", dbmutex.WithObserver(seen)).Acquire()
		require.NoError(t, err)
		require.Equal(t, 1, losses)
		require.Nil(t, seen.last(t, dbmutex.AcquireEnded).Previous)
		require.NoError(t, lease.Release())
	})
}

func TestAHandOnIsToldByBoth(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Notifies, func(t *testing.T, d *testdb.Database) {
		db, seen := observed(t, d)
		lease := acquire(t, db, "job")
		next, failed := waiting(t, db.WithContext(limited(t)))
		require.NoError(t, lease.Release())
		received := <-next
		require.NoError(t, <-failed)
		ended := seen.last(t, dbmutex.LeaseEnded)
		require.Equal(t, dbmutex.OutcomeHandedOn, ended.Outcome)
		require.Equal(t, lease.Token(), ended.Token)
		acquired := seen.waitFor(t, dbmutex.AcquireEnded, 2)
		require.Equal(t, dbmutex.OutcomeAcquired, acquired.Outcome)
		require.True(t, acquired.HandedOn)
		require.Nil(t, acquired.Previous)
		require.Equal(t, received.Token(), acquired.Token)
		require.Equal(t, received.Token(), seen.waitFor(t, dbmutex.LeaseBegan, 2).Token)
		require.NoError(t, received.Release())
		require.Equal(t, dbmutex.OutcomeReleased, seen.waitFor(t, dbmutex.LeaseEnded, 2).Outcome)
	})
}

func TestForceReleasedNamesTheLeaseThatItEnded(t *testing.T) {
	t.Parallel()
	eachObserved(t, func(t *testing.T, db *dbmutex.DB, seen *recorder) {
		require.NoError(t, db.Mutex("job").ForceRelease())
		requireFree(t, db, "job")
		require.NoError(t, db.Mutex("job").ForceRelease())
		require.Equal(t, uneventful, seen.told("job"), "there was nothing to end")
		lease := acquire(t, db, "job", dbmutex.WithHolder("stuck"), dbmutex.WithoutTTL())
		leaseID := row(t, db, "job").LeaseID
		require.NoError(t, db.Mutex("job", dbmutex.WithHolder("operator")).ForceRelease())
		forced := seen.last(t, dbmutex.ForceReleased)
		token := lease.Token()
		if !testdb.At(db.Name(), "").KeepsTokens {
			token = 0
		}
		require.Equal(t, dbmutex.Event{
			Kind: dbmutex.ForceReleased, LockID: "job", Holder: "stuck", LeaseID: leaseID, Token: token,
		}, forced)
		requireTimeout(t, lease.Release(), "job", true)
		require.Equal(t, dbmutex.OutcomeLost, seen.waitFor(t, dbmutex.LeaseEnded, 2).Outcome)

		acquire(t, db, "job")
		next := row(t, db, "job").LeaseID
		for _, id := range []string{leaseID, next} {
			released, err := db.Mutex("job").ForceReleaseLease(id)
			require.NoError(t, err)
			require.Equal(t, id == next, released)
		}
		require.Equal(t, next, seen.waitFor(t, dbmutex.ForceReleased, 2).LeaseID)
	})
}

func TestTheLifeOfALeaseIsTold(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		db, seen := observed(t, d)
		fails := false
		refuse := func(tx *gorm.DB) {
			if fails && d.Verb(tx.Statement.SQL.String()) == "renew" {
				_ = tx.AddError(errWork)
			}
		}
		require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("refuse", refuse))
		begins := []string{"acquire began", "acquire ended: acquired", "lease began"}

		lease := acquire(t, db, "renewed", dbmutex.WithTTL(time.Second), dbmutex.WithRenewal())
		seen.waitFor(t, dbmutex.LeaseRenewed, 2)
		require.NoError(t, lease.Release())
		told := seen.told("renewed")
		require.Equal(t, begins, told[:3])
		require.Equal(t, "lease ended: released", told[len(told)-1])
		for _, kind := range told[3 : len(told)-1] {
			require.Equal(t, "lease renewed", kind)
		}

		lease = acquire(t, db, "failed")
		fails = true
		require.ErrorIs(t, lease.Renew(), errWork)
		fails = false
		require.ErrorIs(t, seen.last(t, dbmutex.RenewalFailed).Err, errWork)
		require.NoError(t, lease.Renew())
		require.NoError(t, lease.Release())
		require.Equal(t, append(slices.Clone(begins), "renewal failed", "lease renewed", "lease ended: released"),
			seen.told("failed"))

		lease = acquire(t, db, "ran out", dbmutex.WithTTL(10*time.Millisecond))
		requireEnds(t, lease.Context())
		requireTimeout(t, lease.Release(), "ran out", false)
		require.ErrorIs(t, seen.last(t, dbmutex.LeaseRanOut).Err, dbmutex.ErrTimeout)
		require.Equal(t, append(slices.Clone(begins), "lease ran out", "lease ended: released"), seen.told("ran out"))
		requireTimeout(t, seen.last(t, dbmutex.LeaseEnded).Err, "ran out", false)

		lease = acquire(t, db, "lost")
		require.NoError(t, db.Mutex("lost", dbmutex.WithObserver(nil)).ForceRelease())
		requireTimeout(t, lease.Renew(), "lost", true)
		requireTimeout(t, seen.last(t, dbmutex.LeaseLost).Err, "lost", true)
		dbmutex.PassDeadline(lease)
		requireTimeout(t, lease.Release(), "lost", true)
		requireTimeout(t, lease.Release(), "lost", true)
		require.Equal(t, append(slices.Clone(begins), "lease lost", "lease ended: lost"), seen.told("lost"))

		lease = acquire(t, db, "late")
		dbmutex.PassDeadline(lease)
		requireTimeout(t, lease.Release(), "late", false)
		require.Equal(t, append(slices.Clone(begins), "lease ran out", "lease ended: released"), seen.told("late"),
			"its timer had not come to that")

		lease = acquire(t, db, "over")
		testdb.Expire(t, db, "over")
		require.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout, "the database's clock says so")
		requireTimeout(t, lease.Release(), "over", false)
		require.Equal(t, append(slices.Clone(begins), "lease ran out", "lease ended: released"), seen.told("over"))
	})
}

func TestAReleaseThatFailsIsToldOnceAsUnknown(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		db, seen := observed(t, d)
		fails := true
		require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("refuse", func(tx *gorm.DB) {
			if fails && d.Verb(tx.Statement.SQL.String()) == "release" {
				_ = tx.AddError(errWork)
			}
		}))
		lease := acquire(t, db, "job")
		require.ErrorIs(t, lease.Release(), errWork)
		ended := seen.last(t, dbmutex.LeaseEnded)
		require.Equal(t, dbmutex.OutcomeUnknown, ended.Outcome)
		require.ErrorIs(t, ended.Err, errWork)
		fails = false
		dbmutex.PassDeadline(lease)
		requireTimeout(t, lease.Release(), "job", false)
		requireNoTellers(t)
		require.Equal(t, append(slices.Clone(uneventful[:3]), "lease ended: unknown"), seen.told("job"),
			"nothing is told after the end")
	})
}

func TestAReleaseThatGoesOnInTheBackgroundIsToldOnce(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		db, seen := observed(t, d)
		lease := acquire(t, db, "job", dbmutex.WithTTL(20*time.Second))
		letGo := d.Hang(t)
		require.ErrorContains(t, lease.Release(), "it goes on in the background")
		require.Equal(t, dbmutex.OutcomeUnknown, seen.last(t, dbmutex.LeaseEnded).Outcome)
		letGo()
		requireReleasedLater(t, db, "job")
		require.NoError(t, lease.Release())
		require.Equal(t, append(slices.Clone(uneventful[:3]), "lease ended: unknown"), seen.told("job"))
	})
}

func TestManyReleasesAreToldOnce(t *testing.T) {
	t.Parallel()
	eachObserved(t, func(t *testing.T, db *dbmutex.DB, seen *recorder) {
		lease := acquire(t, db, "job", dbmutex.WithRenewal())
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if err := lease.Release(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.Equal(t, uneventful, seen.told("job"))
	})
}

func TestATransactionsEndIsTold(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		db, pool := openFaulty(t, d)
		for _, verb := range []string{"COMMIT", "ROLLBACK"} { // that the server commits, or not
			seen := &recorder{}
			pool.loseFirst(verb, pool.Errors.Killed)
			err := db.Mutex("job", dbmutex.WithObserver(seen)).Transaction(func(*gorm.DB) error { return nil })
			require.Equal(t, verb == "COMMIT", err == nil, "%v", err)
			require.Equal(t, uneventful, seen.told("job"))
		}
		seen := &recorder{}
		err := db.Mutex("job", dbmutex.WithObserver(seen)).Transaction(func(tx *gorm.DB) error {
			return db.Mutex("job").ForceRelease()
		})
		requireTimeout(t, err, "job", true)
		require.Equal(t, append(slices.Clone(uneventful[:3]), "lease ended: lost"), seen.told("job"))
	})
}

// What is told has been done, and nothing is kept from others meanwhile.
// A renewal may find, before the deadline, that the transaction of ReleaseIn has ended the lease.
func TestALeaseThatATransactionEndedDoesNotRunOut(t *testing.T) {
	t.Parallel()
	eachObserved(t, func(t *testing.T, db *dbmutex.DB, seen *recorder) {
		lease, err := db.Mutex("job", dbmutex.WithTTL(3*time.Second)).Acquire()
		require.NoError(t, err)
		require.NoError(t, db.Gorm.Transaction(lease.ReleaseIn))
		require.Error(t, lease.Renew())
		require.Error(t, lease.Context().Err())
		deadline, _ := lease.ExpiresAt()
		time.Sleep(time.Until(deadline) + time.Millisecond)
		require.NoError(t, lease.Release())
		require.Equal(t, uneventful, seen.told("job"))
	})
}

func TestAnObserverIsToldAfterTheFact(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		other, db := open(t, d), d.Registered(t, dbmutex.DefaultSettings())
		told := 0
		look := observe(func(ctx context.Context, e dbmutex.Event) context.Context {
			told++
			found := row(t, other, "job")
			switch e.Kind {
			case dbmutex.AcquireBegan:
				require.Nil(t, found)
			case dbmutex.AcquireEnded, dbmutex.LeaseBegan:
				require.Equal(t, e.LeaseID, found.LeaseID)
				require.ErrorIs(t, db.Mutex("job").Do(nothing), dbmutex.ErrNotAcquired)
			case dbmutex.LeaseEnded, dbmutex.ForceReleased:
				require.Nil(t, found)
				require.NoError(t, db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing))
				if lease, ok := dbmutex.LeaseFrom(ctx); ok {
					require.False(t, lease.Lost())
					require.NoError(t, lease.Release())
					require.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout)
					require.Error(t, lease.Context().Err())
				}
			}
			return ctx
		})
		m := db.WithContext(limited(t)).Mutex("job", dbmutex.WithObserver(look))
		require.NoError(t, m.Do(nothing))
		require.NoError(t, m.Transaction(func(*gorm.DB) error { return nil }))
		acquire(t, db, "job")
		require.NoError(t, m.ForceRelease())
		require.Equal(t, 9, told)
	})
}

// A waiter has the mutex before the observer of the lease before it returns.
func TestAWaiterIsWokenBeforeTheEndIsTold(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		db = db.WithContext(limited(t))
		next := make(chan struct{})
		waits := observe(func(_ context.Context, e dbmutex.Event) context.Context {
			if e.Kind == dbmutex.LeaseEnded {
				<-next
			}
			return nil
		})
		lease := acquire(t, db, "job", dbmutex.WithObserver(waits))
		go func() {
			defer close(next)
			if err := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing); err != nil {
				t.Error(err)
			}
		}()
		require.Eventually(t, func() bool { return dbmutex.Waiters(db.Mutex("job")) == 1 }, time.Minute, time.Millisecond)
		require.NoError(t, lease.Release())
	})
}

func TestAPanicOfAnObserverIsLogged(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out, seen := &logs{}, &recorder{}
		db := open(t, d, &gorm.Config{Logger: out.logger(logger.Error)})
		panics := observe(func(context.Context, dbmutex.Event) context.Context { panic("the observer's") })
		require.NoError(t, db.Mutex("job", dbmutex.WithObserver(dbmutex.Observers(panics, seen))).Do(nothing))
		require.Equal(t, uneventful, seen.told("job"), "the others are told nevertheless")
		require.Equal(t, len(uneventful), strings.Count(out.String(), "an observer panicked"))
		require.Contains(t, out.String(), `lease ended of "job"): the observer's`)
		require.Contains(t, out.String(), "observe_test.go", "where it did")
	})
}

// An observer may belong to a test that fails, for example.
func TestAnObserverThatEndsTheGoroutineLeavesNoLease(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		for _, kind := range []dbmutex.EventKind{dbmutex.AcquireBegan, dbmutex.AcquireEnded, dbmutex.LeaseBegan} {
			exits := observe(func(ctx context.Context, e dbmutex.Event) context.Context {
				if e.Kind == kind {
					runtime.Goexit()
				}
				return ctx
			})
			var wg sync.WaitGroup
			wg.Go(func() {
				_ = db.Mutex("job", dbmutex.WithObserver(exits)).Do(func(context.Context) error { panic("ran") })
			})
			wg.Wait()
			require.Nil(t, row(t, db, "job"), kind)
		}
	})
}
