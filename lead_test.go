package dbmutex_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
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
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// leading runs Lead in the background. tokens has those of its leases, as they begin; stop ends it and returns its error.
func leading(t *testing.T, db *dbmutex.DB, opts ...dbmutex.Option) (tokens <-chan int64, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(limited(t))
	began, ended := make(chan int64, 100), make(chan error, 1)
	go func() {
		ended <- db.WithContext(ctx).Mutex("job", opts...).Lead(func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			began <- lease.Token()
			<-ctx.Done()
			return nil
		})
	}()
	stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { _ = stop() })
	return began, stop
}

// soon waits for what comes from a channel.
func soon[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(time.Minute):
		require.Fail(t, "nothing happened")
	}
	return v
}

// requireSoonFree bears that the mutex is kept for a moment for a waiter that has just gone.
func requireSoonFree(t *testing.T, db *dbmutex.DB) {
	t.Helper()
	require.NoError(t, db.WithContext(limited(t)).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing))
}

func TestALeaderIsFollowedWhenItResigns(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		first, stopFirst := leading(t, db)
		epoch := soon(t, first)
		second, stopSecond := leading(t, open(t, d))
		third, stopThird := leading(t, db)
		require.Eventually(t, func() bool { return dbmutex.Waiters(db.Mutex("job")) == 1 }, time.Minute, time.Millisecond)
		require.Empty(t, second)
		require.Empty(t, third)
		require.NoError(t, stopFirst(), "the end of the handle's context is none")
		for range 2 {
			var next int64
			select {
			case next = <-second:
				require.NoError(t, stopSecond())
			case next = <-third:
				require.NoError(t, stopThird())
			case <-time.After(time.Minute):
				require.Fail(t, "nobody follows")
			}
			require.Greater(t, next, epoch)
			epoch = next
		}
		requireSoonFree(t, db)
	})
}

func TestALeaderThatCrashedIsFollowed(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		crashed := acquire(t, open(t, d), "job", dbmutex.WithTTL(100*time.Millisecond))
		tokens, stop := leading(t, db)
		require.Greater(t, soon(t, tokens), crashed.Token())
		require.ErrorIs(t, crashed.Release(), dbmutex.ErrTimeout)
		require.NoError(t, stop())
	})
}

func TestOneLeadsAtATime(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		ctx, cancel := context.WithCancel(limited(t))
		defer cancel()
		var now, leaderships atomic.Int32
		var epoch atomic.Int64
		var wg sync.WaitGroup
		for _, db := range []*dbmutex.DB{db, db, open(t, d), open(t, d)} {
			wg.Go(func() {
				err := db.WithContext(ctx).Mutex("job").Lead(func(ctx context.Context) error {
					lease, _ := dbmutex.LeaseFrom(ctx)
					if now.Add(1) > 1 || epoch.Swap(lease.Token()) >= lease.Token() {
						t.Error("two lead at once, or a token has not grown")
					}
					runtime.Gosched()
					now.Add(-1)
					if leaderships.Add(1) == 10 {
						cancel()
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.GreaterOrEqual(t, leaderships.Load(), int32(10))
		requireSoonFree(t, db)
	})
}

func TestLeadRenewsWhateverTheSettingsSay(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		const ttl = 3 * time.Second
		tokens, stop := leading(t, db, dbmutex.WithTTL(ttl), dbmutex.WithWait(time.Millisecond))
		soon(t, tokens)
		first := row(t, db, "job")
		for now := first; now.ExpiresAt.Sub(*first.ExpiresAt) <= ttl; time.Sleep(10 * time.Millisecond) {
			now = row(t, db, "job")
			require.NotNil(t, now)
			require.Equal(t, first.LeaseID, now.LeaseID)
		}
		require.NoError(t, stop())
	})
}

func TestLeadSaysAtOnceWhatIsWrong(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		done, cancel := context.WithCancel(context.Background())
		cancel()
		plain := dbmutex.Wrap(d.Open(t))
		failed := dbmutex.Wrap(db.Session(&gorm.Session{}).Gorm)
		own := errors.New("of the handle")
		_ = failed.AddError(own)
		tx := db.Begin()
		defer tx.Rollback()
		for name, c := range map[string]struct {
			mutex *dbmutex.Mutex
			want  error
			text  string
		}{
			"no TTL":           {db.Mutex("job", dbmutex.WithoutTTL()), dbmutex.ErrInvalidSettings, "needs a TTL"},
			"SkipHeld":         {db.Mutex("job", dbmutex.WithSkipHeld()), dbmutex.ErrInvalidSettings, "not with Lead"},
			"MinHold":          {db.Mutex("job", dbmutex.WithMinHold(1)), dbmutex.ErrInvalidSettings, "MinHold"},
			"a TTL too short":  {db.Mutex("job", dbmutex.WithTTL(1)), dbmutex.ErrInvalidSettings, "TTL"},
			"no id":            {db.Mutex(""), dbmutex.ErrInvalidLockID, ""},
			"no plugin":        {plain.Mutex("job"), dbmutex.ErrNotRegistered, ""},
			"DryRun":           {db.Session(&gorm.Session{DryRun: true}).Mutex("job"), dbmutex.ErrDryRun, ""},
			"a transaction":    {dbmutex.Wrap(tx).Mutex("job"), dbmutex.ErrInTransaction, ""},
			"a failed handle":  {failed.Mutex("job"), own, ""},
			"no mutex":         {nil, dbmutex.ErrNotRegistered, ""},
			"a zero mutex":     {new(dbmutex.Mutex), dbmutex.ErrNotRegistered, ""},
			"a done context":   {db.WithContext(done).Mutex("job"), nil, ""},
			"both, done first": {db.WithContext(done).Mutex("job", dbmutex.WithoutTTL()), dbmutex.ErrInvalidSettings, ""},
		} {
			err := c.mutex.Lead(func(context.Context) error { t.Error(name, "leads"); return nil })
			require.ErrorIs(t, err, c.want, name)
			if c.want != nil {
				require.ErrorContains(t, err, c.text, name)
			}
		}
		require.ErrorIs(t, db.Mutex("job").Lead(nil), dbmutex.ErrInvalidSettings)
		require.Nil(t, row(t, plain, "job"))
	})
}

func TestALeaderCannotCampaignAgainstItself(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.NoError(t, db.Mutex("job").Do(func(ctx context.Context) error {
			err := db.WithContext(ctx).Mutex("job").Lead(func(context.Context) error { t.Error("it leads"); return nil })
			require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
			return nil
		}))
	})
}

func TestLeadEndsWithThePool(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, _ *dbmutex.DB, d *testdb.Database) {
		db := open(t, d)
		ended := make(chan error, 1)
		go func() {
			ended <- db.Mutex("job", dbmutex.WithTTL(300*time.Millisecond)).Lead(func(ctx context.Context) error {
				pool, err := db.DB()
				if err == nil {
					err = pool.Close()
				}
				<-ctx.Done()
				return err
			})
		}()
		require.ErrorContains(t, soon(t, ended), "database is closed")
	})
}

// pauses are those between campaigns that a log tells.
func pauses(t *testing.T, log string) (pauses []time.Duration) {
	for _, found := range regexp.MustCompile(`another campaign in (\w+\.?\w*)`).FindAllStringSubmatch(log, -1) {
		pause, err := time.ParseDuration(found[1])
		require.NoError(t, err)
		pauses = append(pauses, pause)
	}
	return pauses
}

func TestThePauseBetweenCampaignsGrowsUntilASuccess(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, _ *dbmutex.DB, d *testdb.Database) {
		log := &logs{}
		db := open(t, d, &gorm.Config{Logger: log.logger(logger.Warn)})
		ctx, cancel := context.WithCancel(limited(t))
		defer cancel()
		own := errors.New("the leader's own")
		n := 0
		require.NoError(t, db.WithContext(ctx).Mutex("job").Lead(func(ctx context.Context) error {
			switch n++; n {
			case 3: // it returns no error
				return nil
			case 6: // it leads for longer than the pause
				time.Sleep(500 * time.Millisecond)
			case 9:
				cancel()
			}
			return own
		}))
		require.Equal(t, 9, n)
		require.Equal(t, 8, strings.Count(log.String(), own.Error()), "%s", log)
		found := pauses(t, log.String())
		require.Len(t, found, 7, "%s", log)
		const first = 100 * time.Millisecond
		for i, mean := range []time.Duration{first, 2 * first, first, 2 * first, first, first, 2 * first} {
			require.InDelta(t, mean, found[i], float64(mean/2+time.Millisecond), "%d of %v", i, found)
		}
	})
}

func TestLeadGoesOnWhileTheDatabaseFails(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		log := &logs{}
		logged := open(t, d, &gorm.Config{Logger: log.logger(logger.Warn)})
		tokens, stop := leading(t, logged, dbmutex.WithTTL(300*time.Millisecond))
		first := soon(t, tokens)
		require.NoError(t, db.Exec(`ALTER TABLE db_mutexes RENAME TO away`).Error)
		require.Eventually(t, func() bool { return strings.Contains(log.String(), "run AutoMigrate") },
			time.Minute, 10*time.Millisecond)
		require.NoError(t, db.Exec(`ALTER TABLE away RENAME TO db_mutexes`).Error)
		require.Greater(t, soon(t, tokens), first)
		require.NoError(t, stop())
	})
}

// TestLeadNeverRunsBesideItself has work that ignores the end of its context.
func TestLeadNeverRunsBesideItself(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		ctx, cancel := context.WithCancel(limited(t))
		defer cancel()
		began, goOn := make(chan context.Context, 10), make(chan struct{})
		ended := make(chan error, 1)
		go func() {
			ended <- db.WithContext(ctx).Mutex("job", dbmutex.WithTTL(300*time.Millisecond)).Lead(func(ctx context.Context) error {
				began <- ctx
				<-goOn
				return ctx.Err()
			})
		}()
		work := soon(t, began)
		require.NoError(t, db.Mutex("job").ForceRelease())
		requireEnds(t, work)
		var timeout *dbmutex.TimeoutError
		require.ErrorAs(t, context.Cause(work), &timeout)
		require.True(t, timeout.Lost)
		for range 50 { // others may lead
			requireFree(t, db, "job")
			require.Zero(t, dbmutex.Waiters(db.Mutex("job")))
			time.Sleep(10 * time.Millisecond)
		}
		require.Empty(t, began)
		goOn <- struct{}{}
		soon(t, began)
		cancel()
		require.Empty(t, ended, "it waits for its work")
		goOn <- struct{}{}
		require.NoError(t, soon(t, ended))
		require.Empty(t, began)
		requireFree(t, db, "job")
	})
}

func TestPanicAndGoexitEndALeadership(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.PanicsWithValue(t, "the leader's own", func() {
			_ = db.Mutex("job").Lead(func(context.Context) error { panic("the leader's own") })
		})
		requireFree(t, db, "job")
		ended := make(chan string, 1)
		go func() {
			end := "Goexit"
			defer func() { ended <- end }()
			end = fmt.Sprint(db.Mutex("job").Lead(func(context.Context) error { end = "Goexit"; runtime.Goexit(); return nil }))
		}()
		require.Equal(t, "Goexit", soon(t, ended))
		requireFree(t, db, "job")
	})
}

// TestALeaderMayResign by releasing its lease, while it goes on.
func TestALeaderMayResign(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		ctx, cancel := context.WithCancel(limited(t))
		defer cancel()
		require.NoError(t, db.WithContext(ctx).Mutex("job").Lead(func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			require.NoError(t, lease.Release())
			requireFree(t, db, "job")
			cancel()
			return nil
		}))
	})
}
