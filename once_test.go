package dbmutex_test

import (
	"context"
	"errors"
	"math"
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

// counting is work that counts its runs.
func counting(runs *atomic.Int32) func(context.Context) error {
	return func(context.Context) error {
		runs.Add(1)
		return nil
	}
}

// requireDone says that there is a record.
func requireDone(t *testing.T, o *dbmutex.Once) *dbmutex.DBOnce {
	t.Helper()
	record, err := o.Done()
	require.NoError(t, err)
	require.NotNil(t, record)
	return record
}

// requireNotDone says that there is none.
func requireNotDone(t *testing.T, o *dbmutex.Once) {
	t.Helper()
	record, err := o.Done()
	require.NoError(t, err)
	require.Nil(t, record)
}

// exerciseOnce runs every verb once.
func exerciseOnce(t *testing.T, db *dbmutex.DB) {
	t.Helper()
	db = db.WithContext(limited(t))
	once := db.Once("job", time.Hour)
	require.ErrorIs(t, once.Do(func(context.Context) error { return errWork }), errWork)
	for range 2 {
		value, err := dbmutex.OnceValue(once, func(context.Context) (string, error) { return "é", nil })
		require.NoError(t, err)
		require.Equal(t, "é", value)
	}
	require.NoError(t, once.Do(nothing))
	record := requireDone(t, once)
	require.InDelta(t, time.Now().Unix(), record.CreationTime.Unix(), 60)
	listed, err := db.Leases(dbmutex.LeaseQuery{Once: true, Prefix: "job"})
	require.NoError(t, err)
	require.Len(t, listed, 1)
	require.True(t, listed[0].Done())
	require.Equal(t, record.Token, listed[0].Token)
	require.NoError(t, once.Forget())
	require.NoError(t, db.Once("over", time.Millisecond).Transaction(func(*gorm.DB) error { return nil }))
	requireNoRecordSoon(t, db.Once("over", time.Hour))
	require.NoError(t, db.Once("over", time.Hour).Do(nothing)) // a take-over
	require.NoError(t, dbmutex.PruneRecords(once))
	_, err = db.Prune()
	require.NoError(t, err)
	requireDone(t, db.Once("over", time.Hour))
	require.NoError(t, db.Once("over", time.Hour).Forget())
}

func TestOnceRunsUntilItHasSucceededAndNotAgain(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		once := db.Once("report", time.Hour, dbmutex.WithHolder("first"))
		other := open(t, d).Once("report", time.Hour, dbmutex.WithHolder("second"))
		requireNotDone(t, once)
		require.ErrorIs(t, once.Do(func(context.Context) error { return errWork }), errWork)
		requireNotDone(t, once)
		var token int64
		var began time.Time
		require.NoError(t, other.Do(func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			token = lease.Token()
			began = time.Now()
			return nil
		}))
		var runs atomic.Int32
		for range 3 {
			require.NoError(t, once.Do(counting(&runs)))
			require.NoError(t, other.Do(counting(&runs)))
		}
		require.Zero(t, runs.Load())
		record := requireDone(t, once)
		require.Equal(t, "report", record.LockID)
		require.Equal(t, "second", record.Holder)
		require.Equal(t, "done", record.LeaseID)
		require.Equal(t, token, record.Token)
		require.Nil(t, record.Result)
		require.WithinDuration(t, began, record.CreationTime, time.Minute)
		require.WithinDuration(t, began.Add(time.Hour), *record.ExpiresAt, time.Minute)
		require.NoError(t, db.Mutex("report").Do(nothing), "a mutex of the same id is another")
	})
}

func TestOnceOfManyAtOnceRunsOneAtATimeAndSucceedsOnce(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		handles := []*dbmutex.DB{db, open(t, d), open(t, d)}
		var running, tries, successes atomic.Int32
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				once := handles[i%3].WithContext(limited(t)).Once("job", time.Hour, dbmutex.WithWait(dbmutex.Forever))
				for {
					err := once.Do(func(context.Context) error {
						if running.Add(1) != 1 {
							t.Error("two run at once")
						}
						defer running.Add(-1)
						if tries.Add(1) < 4 {
							return errWork
						}
						successes.Add(1)
						return nil
					})
					if err == nil {
						return
					}
					if !errors.Is(err, errWork) {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 4, tries.Load())
		require.EqualValues(t, 1, successes.Load())
	})
}

func TestOnceTransactionCommitsItsEffectWithTheRecord(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.NoError(t, db.Exec(`CREATE TABLE effects (n integer)`).Error)
		effect := func(tx *gorm.DB) error { return tx.Exec(`INSERT INTO effects VALUES (1)`).Error }
		count := func() (n int64) {
			require.NoError(t, db.Table("effects").Count(&n).Error)
			return n
		}
		once := db.Once("effect", time.Hour)
		require.ErrorIs(t, once.Transaction(func(tx *gorm.DB) error { return errors.Join(effect(tx), errWork) }), errWork)
		requireNotDone(t, once)
		require.Zero(t, count())
		var token int64
		for range 3 {
			require.NoError(t, once.Transaction(func(tx *gorm.DB) error {
				lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
				token = lease.Token()
				return effect(tx)
			}))
		}
		require.EqualValues(t, 1, count())
		require.Equal(t, token, requireDone(t, once).Token)
		require.NoError(t, once.Do(func(context.Context) error { return errWork }), "both verbs have one record")
	})
}

func TestOnceValueIsRecorded(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		type result struct {
			Text string
			N    []int
		}
		want := result{"Ünï\x00 𝄞 '\"\\ %", []int{1, math.MaxInt64}}
		once := db.Once("value", time.Hour)
		value, err := dbmutex.OnceValue(once, func(context.Context) (result, error) { return want, nil })
		require.NoError(t, err)
		require.Equal(t, want, value)
		value, err = dbmutex.OnceValue(open(t, d).Once("value", time.Hour), func(context.Context) (result, error) {
			return result{}, errWork
		})
		require.NoError(t, err)
		require.Equal(t, want, value)
		require.NoError(t, once.Do(func(context.Context) error { return errWork }))

		_, err = dbmutex.OnceValue(once, func(context.Context) (int, error) { return 0, errWork })
		require.ErrorIs(t, err, dbmutex.ErrInvalidResult)
		require.NotErrorIs(t, err, errWork)

		without := db.Once("without a value", time.Hour)
		require.NoError(t, without.Do(nothing))
		_, err = dbmutex.OnceValue(without, func(context.Context) (int, error) { return 0, errWork })
		require.ErrorIs(t, err, dbmutex.ErrInvalidResult)
		require.NotErrorIs(t, err, errWork)

		null, err := dbmutex.OnceValue(db.Once("null", time.Hour), func(context.Context) (*int, error) { return nil, nil })
		require.NoError(t, err)
		require.Nil(t, null)
		null, err = dbmutex.OnceValue(db.Once("null", time.Hour), func(context.Context) (*int, error) { return nil, errWork })
		require.NoError(t, err)
		require.Nil(t, null)
	})
}

func TestOnceValueThatCannotBeRecordedMayRunAgain(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		once := db.Once("value", time.Hour)
		most := strings.Repeat("x", dbmutex.MaxResultLength-2) // and the quotes
		value, err := dbmutex.OnceValue(once, func(context.Context) (string, error) { return most + "x", nil })
		require.ErrorIs(t, err, dbmutex.ErrInvalidResult)
		require.Len(t, value, len(most)+1)
		requireNotDone(t, once)
		infinite, err := dbmutex.OnceValue(once, func(context.Context) (float64, error) { return math.Inf(1), nil })
		require.ErrorIs(t, err, dbmutex.ErrInvalidResult)
		require.True(t, math.IsInf(infinite, 1))
		requireNotDone(t, once)
		for range 2 {
			value, err = dbmutex.OnceValue(once, func(context.Context) (string, error) { return most, nil })
			require.NoError(t, err)
			require.Equal(t, most, value)
		}
		require.Len(t, requireDone(t, once).Result, dbmutex.MaxResultLength)
	})
}

func TestOnceRunsAgainWhenItsRecordIsOverOrForgotten(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		var runs atomic.Int32
		once := db.Once("short", time.Millisecond)
		require.NoError(t, once.Forget(), "there is nothing")
		require.NoError(t, once.Do(counting(&runs)))
		for requireNoRecordSoon(t, once); runs.Load() < 2; {
			require.NoError(t, once.Do(counting(&runs)))
		}
		kept := db.Once("kept", time.Hour)
		var first int64
		require.NoError(t, kept.Do(nothing))
		first = requireDone(t, kept).Token
		require.NoError(t, kept.Forget())
		requireNotDone(t, kept)
		require.NoError(t, kept.Do(counting(&runs)))
		require.EqualValues(t, 3, runs.Load())
		require.Greater(t, requireDone(t, kept).Token, first)

		running := db.Once("running", time.Hour)
		require.NoError(t, running.Do(func(context.Context) error {
			err := running.Forget()
			require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
			require.ErrorAs(t, err, new(*dbmutex.HeldError))
			return nil
		}))
		requireDone(t, running)
	})
}

// requireNoRecordSoon waits until a record is over.
func requireNoRecordSoon(t *testing.T, o *dbmutex.Once) {
	t.Helper()
	require.Eventually(t, func() bool {
		record, err := o.Done()
		return err == nil && record == nil
	}, time.Minute, time.Millisecond)
}

func TestOnceThatSomebodyRunsIsHeldForOthers(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out := &logs{}
		db := open(t, d, &gorm.Config{Logger: out.logger(logger.Warn)})
		require.NoError(t, db.Once("run", time.Hour, dbmutex.WithHolder("me")).Do(func(ctx context.Context) error {
			for _, wait := range []time.Duration{0, 10 * time.Millisecond} {
				once := open(t, d).Once("run", time.Hour, dbmutex.WithWait(wait))
				var held *dbmutex.HeldError
				require.ErrorAs(t, once.Do(nothing), &held)
				require.Equal(t, "me", held.Holder)
				require.ErrorAs(t, once.Transaction(func(*gorm.DB) error { return nil }), &held)
				_, err := dbmutex.OnceValue(once, func(context.Context) (int, error) { return 1, nil })
				require.ErrorAs(t, err, &held)
				requireNotDone(t, once)
			}
			err := db.WithContext(ctx).Once("run", time.Hour, dbmutex.WithWait(dbmutex.Forever)).Do(nothing)
			require.ErrorIs(t, err, dbmutex.ErrNotAcquired, "it would wait for itself")
			require.Empty(t, out.String())
			err = db.Once("run", time.Hour, dbmutex.WithSkipHeld()).Do(func(context.Context) error { return errWork })
			require.Contains(t, out.String(), `skipped: dbmutex: "run" is held by me`)
			return err
		}))
	})
}

func TestOnceFailsAsItsWorkDoes(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		once := db.Once("broken", time.Hour)
		require.PanicsWithValue(t, testdb.Panic, func() { _ = once.Do(func(context.Context) error { panic(testdb.Panic) }) })
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = once.Do(func(context.Context) error { runtime.Goexit(); return nil })
		}()
		<-ended
		require.ErrorIs(t, once.Do(func(context.Context) error { return dbmutex.ErrNotAcquired }), dbmutex.ErrNotAcquired)
		skipping := db.Once("broken", time.Hour, dbmutex.WithSkipHeld())
		require.ErrorIs(t, skipping.Do(func(context.Context) error { return dbmutex.ErrNotAcquired }), dbmutex.ErrNotAcquired,
			"that is the work's own")
		requireNotDone(t, once)
		var runs atomic.Int32
		require.NoError(t, once.Do(counting(&runs)))
		require.EqualValues(t, 1, runs.Load())
	})
}

func TestOnceRefusesWhatIsWrongBeforeAnySQL(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		cancelled, cancel := context.WithCancel(context.Background())
		cancel() // a statement would say so
		db = db.WithContext(cancelled)
		for name, wrong := range map[string]struct {
			once *dbmutex.Once
			want error
		}{
			"no time":         {db.Once("id", 0), dbmutex.ErrInvalidSettings},
			"a negative time": {db.Once("id", -time.Second), dbmutex.ErrInvalidSettings},
			"a MinHold":       {db.Once("id", time.Hour, dbmutex.WithMinHold(time.Second)), dbmutex.ErrInvalidSettings},
			"a negative TTL":  {db.Once("id", time.Hour, dbmutex.WithTTL(-1)), dbmutex.ErrInvalidSettings},
			"an id":           {db.Once("", time.Hour), dbmutex.ErrInvalidLockID},
			"a long id":       {db.Once(strings.Repeat("x", 257), time.Hour), dbmutex.ErrInvalidLockID},
			"no handle":       {(*dbmutex.DB)(nil).Once("id", time.Hour), dbmutex.ErrNotRegistered},
			"none":            {nil, dbmutex.ErrNotRegistered},
			"a zero one":      {&dbmutex.Once{}, dbmutex.ErrNotRegistered},
		} {
			require.ErrorIs(t, wrong.once.Do(nothing), wrong.want, name)
			require.ErrorIs(t, wrong.once.Transaction(func(*gorm.DB) error { return nil }), wrong.want, name)
			_, err := dbmutex.OnceValue(wrong.once, func(context.Context) (int, error) { return 0, nil })
			require.ErrorIs(t, err, wrong.want, name)
			_, err = wrong.once.Done()
			require.ErrorIs(t, err, wrong.want, name)
			require.ErrorIs(t, wrong.once.Forget(), wrong.want, name)
		}
		once := db.Once("id", time.Hour)
		require.ErrorIs(t, once.Do(nil), dbmutex.ErrInvalidSettings)
		require.ErrorIs(t, once.Transaction(nil), dbmutex.ErrInvalidSettings)
		_, err := dbmutex.OnceValue[int](once, nil)
		require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
		skipping := db.Once("id", time.Hour, dbmutex.WithSkipHeld())
		require.ErrorIs(t, skipping.Transaction(func(*gorm.DB) error { return nil }), dbmutex.ErrInvalidSettings)
		_, err = dbmutex.OnceValue(skipping, func(context.Context) (int, error) { return 0, nil })
		require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
		require.ErrorIs(t, once.Do(nothing), context.Canceled)
	})
}
