package dbmutex_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/faults"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

const shortLease = 20 * time.Millisecond

// TestTheEndIsTold: work that ends after its lease is reported by every verb, as lost or as run out.
func TestTheEndIsTold(t *testing.T) {
	t.Parallel()
	type fate struct {
		name string
		lost bool
		work func(t *testing.T, db *dbmutex.DB, ctx context.Context) // from the acquire on
	}
	fates := []fate{
		{"it ran out", false, func(t *testing.T, _ *dbmutex.DB, ctx context.Context) { requireEnds(t, ctx) }},
		{"somebody took it over, and released it", true, func(t *testing.T, db *dbmutex.DB, ctx context.Context) {
			requireEnds(t, ctx)
			require.NoError(t, db.WithContext(limited(t)).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing))
		}},
		{"somebody took it over, and holds it", true, func(t *testing.T, db *dbmutex.DB, ctx context.Context) {
			requireEnds(t, ctx)
			next, err := db.WithContext(limited(t)).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
			require.NoError(t, err)
			t.Cleanup(func() { _ = next.Release() })
		}},
		{"an operator released it", true, func(t *testing.T, db *dbmutex.DB, ctx context.Context) {
			requireEnds(t, ctx)
			require.NoError(t, db.Mutex("job").ForceRelease())
		}},
	}
	verbs := map[string]func(m *dbmutex.Mutex, work func(ctx context.Context) error) error{
		"Do": func(m *dbmutex.Mutex, work func(ctx context.Context) error) error { return m.Do(work) },
		"Decorate": func(m *dbmutex.Mutex, work func(ctx context.Context) error) error {
			return m.Decorate(work)(context.Background())
		},
		"DoValue": func(m *dbmutex.Mutex, work func(ctx context.Context) error) error {
			value, err := dbmutex.DoValue(m, func(ctx context.Context) (int, error) { return 7, work(ctx) })
			if value != 7 {
				return errors.New("the value is gone")
			}
			return err
		},
		"Lease.Do": func(m *dbmutex.Mutex, work func(ctx context.Context) error) error {
			for {
				lease, err := m.Acquire()
				if err != nil {
					return err
				}
				ran := false
				err = lease.Do(func(ctx context.Context) error { ran = true; return work(ctx) })
				if ran { // else it ended before
					return err
				}
			}
		},
		"Release": func(m *dbmutex.Mutex, work func(ctx context.Context) error) error {
			lease, err := m.Acquire()
			if err != nil {
				return err
			}
			workErr := work(lease.Context())
			err = lease.Release()
			if again := lease.Release(); again != err { //nolint:errorlint // the same one
				return errors.New("a second Release says something else")
			}
			return errors.Join(err, workErr)
		},
	}
	for verb, run := range verbs {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
				for _, fate := range fates {
					for _, workErr := range []error{nil, errWork} {
						t.Run(fmt.Sprint(fate.name, ", the work returns ", workErr), func(t *testing.T) {
							var lease *dbmutex.Lease
							err := run(db.Mutex("job", dbmutex.WithTTL(shortLease)), func(ctx context.Context) error {
								lease, _ = dbmutex.LeaseFrom(ctx)
								fate.work(t, db, ctx)
								require.True(t, lease.Lost(), "nobody has asked")
								return workErr
							})
							timeout := timeoutOf(t, err, "job", fate.lost)
							require.Equal(t, fate.lost, lease.Lost())
							require.Positive(t, timeout.Late)
							require.NoError(t, timeout.Err)
							require.Equal(t, workErr != nil, errors.Is(err, errWork))
							require.NoError(t, db.Mutex("job").ForceRelease())
						})
					}
				}
			})
		})
	}
}

// What the work heard of its lease is a guess. What Do has asked the database comes first.
func TestWhatTheWorkHeardIsNotTheLastWord(t *testing.T) {
	t.Parallel()
	heard := map[string]func(ctx context.Context) error{
		"the cause":          context.Cause,
		"the cause, wrapped": func(ctx context.Context) error { return fmt.Errorf("report: %w", context.Cause(ctx)) },
		"ErrTimeout":         func(context.Context) error { return dbmutex.ErrTimeout },
		"a renewal that came late": func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			return lease.Renew()
		},
	}
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		for name, report := range heard {
			for _, lost := range []bool{false, true} {
				t.Run(fmt.Sprint(name, ", lost ", lost), func(t *testing.T) {
					work := func(ctx context.Context) error {
						requireEnds(t, ctx)
						guess := timeoutOf(t, context.Cause(ctx), "job", true) // nobody can know yet
						require.ErrorContains(t, guess, "reached its deadline; its row was not asked for")
						require.Zero(t, guess.Late)
						if lost {
							require.NoError(t, db.Mutex("job").ForceRelease())
						}
						return report(ctx)
					}
					err := db.Mutex("job", dbmutex.WithTTL(shortLease)).Do(work)
					requireTimeout(t, err, "job", lost)
					if name != "the cause, wrapped" {
						require.Equal(t, 1, strings.Count(err.Error(), dbmutex.ErrTimeout.Error()), "it is told once: %v", err)
					}
					err = db.Mutex("job", dbmutex.WithTTL(shortLease)).Transaction(func(tx *gorm.DB) error {
						lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
						requireEnds(t, lease.Context())
						return report(lease.Context())
					})
					requireTimeout(t, err, "job", false)
				})
			}
		}
	})
}

// Another mutex's timeout is the work's own error: it is joined, after the run's own.
func TestAnotherMutexsTimeoutIsTheWorksOwnError(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		inner := func(context.Context) error {
			return db.Mutex("inner", dbmutex.WithTTL(shortLease)).Do(func(ctx context.Context) error {
				requireEnds(t, ctx)
				return nil
			})
		}
		requireTimeout(t, db.Mutex("outer").Do(inner), "inner", false)

		err := db.Mutex("outer", dbmutex.WithTTL(2*shortLease)).Do(func(ctx context.Context) error {
			err := inner(ctx)
			requireEnds(t, ctx)
			return err
		})
		requireTimeout(t, err, "outer", false)
		require.Equal(t, 2, strings.Count(err.Error(), dbmutex.ErrTimeout.Error()))
	})
}

func TestALossBeforeTheDeadlineIsNotLate(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		for _, renew := range []bool{false, true} {
			err := db.Mutex("job").Do(func(ctx context.Context) error {
				require.NoError(t, db.Mutex("job").ForceRelease())
				if !renew {
					return nil
				}
				lease, _ := dbmutex.LeaseFrom(ctx)
				err := lease.Renew()
				requireTimeout(t, err, "job", true)
				require.Same(t, err, context.Cause(ctx))
				return err
			})
			require.Zero(t, timeoutOf(t, err, "job", true).Late)
		}
	})
}

func TestALeaseThatEndedBeforeItsWorkBegan(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		unexpected := func(context.Context) error {
			t.Error("it ran without the mutex")
			return nil
		}
		for _, lost := range []bool{false, true} {
			lease := acquire(t, db, "job", dbmutex.WithTTL(shortLease))
			requireEnds(t, lease.Context())
			if lost {
				require.NoError(t, db.Mutex("job").ForceRelease())
			}
			first := timeoutOf(t, lease.Do(unexpected), "job", lost)
			require.Positive(t, first.Late)
			require.Nil(t, row(t, db, "job"))
			require.Same(t, first, lease.Do(unexpected))
			require.Same(t, first, lease.Renew())
			require.Same(t, first, lease.Release())
		}

		lease := acquire(t, db, "job")
		require.NoError(t, lease.Release())
		requireTimeout(t, lease.Do(unexpected), "job", true)
		requireTimeout(t, lease.Renew(), "job", true)
		require.NoError(t, lease.Release(), "it was in time")
	})
}

// A work that ended in time is not late because its release takes long.
func TestTheMomentThatCountsIsTheEndOfTheWork(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		slow := func(verb string, lose error) *atomic.Int32 {
			return pool.after(verb, func() error {
				time.Sleep(ttl + time.Second)
				return lose
			})
		}
		for _, lose := range []error{nil, io.ErrUnexpectedEOF} { // then a second try finds no row
			var releases *atomic.Int32
			require.NoError(t, db.Mutex("job", dbmutex.WithTTL(ttl)).Do(func(context.Context) error {
				releases = slow("release", lose)
				return nil
			}))
			require.NotZero(t, releases.Load())
		}
		var commits *atomic.Int32
		require.NoError(t, db.Mutex("job", dbmutex.WithTTL(ttl)).Transaction(func(*gorm.DB) error {
			commits = slow("COMMIT", nil)
			return nil
		}))
		require.NotZero(t, commits.Load())
	})
}

func TestATimeoutSaysWhatFailed(t *testing.T) {
	t.Parallel()
	t.Run("renewals that fail", func(t *testing.T) {
		eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
			broken := errors.New("the renewal's own")
			var cause error
			err := db.Mutex("job", dbmutex.WithTTL(2*time.Second), dbmutex.WithRenewal()).Do(func(ctx context.Context) error {
				pool.setLose(func(statement string) error {
					if pool.Verb(statement) == "renew" {
						return pool.Errors.Forbidden
					}
					return nil
				})
				requireEnds(t, ctx)
				cause = context.Cause(ctx)
				return broken
			})
			timeout := timeoutOf(t, err, "job", false)
			require.ErrorIs(t, err, broken)
			for _, err := range []error{timeout, cause} {
				require.ErrorContains(t, err, `renew "job"`)
				require.ErrorIs(t, err, pool.Errors.Forbidden)
			}
		})
	})
	t.Run("a renewal without time left hides no other", func(t *testing.T) {
		eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
			lease := acquire(t, db, "job", dbmutex.WithTTL(2*time.Second))
			answer := pool.Errors.Forbidden
			pool.setLose(func(statement string) error {
				if pool.Verb(statement) != "renew" {
					return nil
				}
				lost := answer
				answer = context.DeadlineExceeded
				return lost
			})
			require.ErrorIs(t, lease.Renew(), pool.Errors.Forbidden)
			require.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout)
			require.ErrorIs(t, timeoutOf(t, lease.Release(), "job", false), pool.Errors.Forbidden)
		})
	})
	t.Run("a renewal that recovered is no cause", func(t *testing.T) {
		eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
			lease := acquire(t, db, "job", dbmutex.WithTTL(3*time.Second))
			pool.loseFirst("renew", pool.Errors.Forbidden)
			require.ErrorIs(t, lease.Renew(), pool.Errors.Forbidden)
			require.NoError(t, lease.Renew())
			requireEnds(t, lease.Context())
			require.NoError(t, timeoutOf(t, lease.Release(), "job", false).Err)
		})
	})
	t.Run("a release that fails", func(t *testing.T) {
		faults.OnNetwork(t, func(t *testing.T, direct, proxied *dbmutex.DB, network *proxy.Proxy) {
			lease := acquire(t, proxied, "job", dbmutex.WithTTL(200*time.Millisecond))
			network.Freeze()
			requireEnds(t, lease.Context())
			timeout := timeoutOf(t, lease.Release(), "job", true)
			require.Positive(t, timeout.Late)
			require.ErrorContains(t, timeout.Err, "not done within 5s")
			require.NotErrorIs(t, timeout, context.DeadlineExceeded)
			require.NotErrorIs(t, timeout, context.Canceled)
			network.Reset() // a release that arrived late would leave it open who has freed the mutex
			network.Thaw()
			requireTimeout(t, lease.Release(), "job", false) // now it could be asked
			require.Nil(t, row(t, direct, "job"))
		})
	})
}

func TestALeaseThatIsNotLost(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		lease := acquire(t, db, "job")
		require.False(t, lease.Lost(), "while it is held")
		require.NoError(t, lease.Release())
		require.False(t, lease.Lost(), "it was released in time")

		short := acquire(t, db, "job", dbmutex.WithTTL(shortLease))
		requireEnds(t, short.Context())
		require.NoError(t, db.Transaction(func(tx *gorm.DB) error { return short.ReleaseIn(tx) }))
		require.False(t, short.Lost(), "its own transaction released it")
		require.NoError(t, short.Release())
		require.False(t, short.Lost())

		require.False(t, (*dbmutex.Lease)(nil).Lost())
		require.False(t, new(dbmutex.Lease).Lost())
	})
}

func TestARenewalThatFindsTheLeaseLost(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		lease := acquire(t, db, "job")
		require.NoError(t, db.Mutex("job").ForceRelease())
		require.False(t, lease.Lost(), "nobody has asked")
		require.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout)
		require.True(t, lease.Lost())
	})
}
