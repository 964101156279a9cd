package dbmutex_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// requireReleasedLater waits until a row is gone.
func requireReleasedLater(t *testing.T, db *dbmutex.DB, id string) {
	t.Helper()
	require.Eventually(t, func() bool { return row(t, db, id) == nil }, time.Minute, 10*time.Millisecond)
}

func TestAReleaseThatFailedGoesOnInTheBackground(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		db := open(t, d)
		ends := map[string]func(lease *dbmutex.Lease) error{
			"release": (*dbmutex.Lease).Release,
			"do":      func(lease *dbmutex.Lease) error { return lease.Do(nothing) },
			"no TTL":  (*dbmutex.Lease).Release,
		}
		leases := map[string]*dbmutex.Lease{
			"release": acquire(t, db, "release"),
			"do":      acquire(t, db, "do", dbmutex.WithRenewal()),
			"no TTL":  acquire(t, db, "no TTL", dbmutex.WithoutTTL()),
		}
		letGo := d.Hang(t)
		told := make(chan error, len(ends))
		for name, end := range ends {
			go func() { told <- end(leases[name]) }()
		}
		for range ends {
			err := <-told
			require.ErrorContains(t, err, "not done within 5s")
			require.ErrorContains(t, err, "it goes on in the background")
			require.NotErrorIs(t, err, dbmutex.ErrTimeout)
			require.NotErrorIs(t, err, context.DeadlineExceeded, "that is not the caller's")
		}
		letGo()
		for name, lease := range leases {
			requireReleasedLater(t, db, name)
			require.NoError(t, lease.Release(), "it was in time")
		}
	})
}

// A lease whose release failed is nobody's to work under: the release may be done at any moment.
func TestNothingRunsUnderALeaseThatWasToBeReleased(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		db := open(t, d)
		lease := acquire(t, db, "job")
		letGo := d.Hang(t)
		require.ErrorContains(t, lease.Release(), "it goes on in the background")
		requireTimeout(t, lease.Do(func(context.Context) error { panic("ran") }), "job", true)
		requireTimeout(t, lease.Renew(), "job", true)
		letGo()
		for _, verb := range []func(*gorm.DB) error{lease.Guard, lease.ReleaseIn} {
			err := db.Gorm.Transaction(verb)
			require.ErrorIs(t, err, dbmutex.ErrTimeout)
		}
		requireReleasedLater(t, db, "job")
		require.NoError(t, lease.Release())
	})
}

func TestAReleaseWhoseAnswerIsSpoiltIsDone(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		tries := 0
		require.NoError(t, db.Callback().Raw().After("gorm:raw").Register("spoil", func(tx *gorm.DB) {
			if d.Verb(tx.Statement.SQL.String()) == "release" {
				tries++
				_ = tx.AddError(errWork)
			}
		}))
		lease := acquire(t, db, "job")
		err := lease.Release()
		require.ErrorIs(t, err, errWork)
		require.NotContains(t, err.Error(), "background")
		require.Equal(t, 1, tries)
		require.Nil(t, row(t, db, "job"))
		require.NoError(t, lease.Release())
	})
}

func TestAReleaseWhosePoolIsStarvedGoesOn(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		db, other := open(t, d), open(t, d)
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1)
		lease := acquire(t, db, "job")
		conn, err := pool.Conn(context.Background())
		require.NoError(t, err)
		require.ErrorContains(t, lease.Release(), "no connection of the pool became free")
		require.NoError(t, conn.Close())
		requireReleasedLater(t, other, "job")
	})
}

func TestAReleaseThatIsRefusedDoesNotGoOn(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		tries := 0
		refuse := false
		require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("refuse", func(tx *gorm.DB) {
			if refuse && strings.Contains(tx.Statement.SQL.String(), "lease_id") {
				tries++
				_ = tx.AddError(errWork)
			}
		}))
		lease := acquire(t, db, "job")
		refuse = true
		err := lease.Release()
		require.ErrorIs(t, err, errWork)
		require.NotContains(t, err.Error(), "background")
		require.Equal(t, 1, tries)
		refuse = false
		require.NoError(t, lease.Release())
		require.Nil(t, row(t, db, "job"))
	})
}

// The network may deliver a request after its connection is gone, when the lease has long been released.
func TestALateRequestLeavesNoLease(t *testing.T) {
	t.Parallel()
	uses := map[string]func(t *testing.T, m *dbmutex.Mutex) error{
		"acquire": func(t *testing.T, m *dbmutex.Mutex) error {
			lease, err := m.Acquire()
			require.NoError(t, err)
			return lease.Release()
		},
		"transaction": func(_ *testing.T, m *dbmutex.Mutex) error {
			return m.Transaction(func(*gorm.DB) error { return nil })
		},
	}
	for name, use := range uses {
		for i, opts := range [][]dbmutex.Option{
			nil, {dbmutex.WithoutTTL()}, {dbmutex.WithWait(dbmutex.Forever)},
		} {
			t.Run(fmt.Sprint(name, " ", i), func(t *testing.T) {
				t.Parallel()
				eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
					requireFree(t, db, "job")
					direct := open(t, pool.Database)
					leaseID := ""
					pool.setLose(func(statement string) error { // the answer is lost, and the request comes again
						if taken := row(t, direct, "job"); pool.Verb(statement) == "acquire" && taken != nil {
							leaseID = taken.LeaseID
							pool.lose = nil
							return io.ErrUnexpectedEOF
						}
						return nil
					})
					require.NoError(t, use(t, db.Mutex("job", opts...)))
					require.NotEmpty(t, leaseID)
					require.Nil(t, row(t, direct, "job"))
					arrived := direct.Exec(`UPDATE db_mutexes SET lease_id = ?, expires_at = NULL WHERE lock_id = 'job'`, leaseID)
					require.NoError(t, arrived.Error)
					if arrived.RowsAffected == 0 {
						require.NoError(t, direct.Exec(`INSERT INTO db_mutexes (lock_id, creation_time, holder, lease_id)
							VALUES ('job', now(), 'late', ?)`, leaseID).Error)
					}
					require.NotNil(t, row(t, direct, "job"))
					requireReleasedLater(t, direct, "job")
				})
			})
		}
	}
}

func TestAFreeMutexStaysFreeWhateverIsRenewed(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		lease := acquire(t, db, "job")
		testdb.Expire(t, db, "job") // as by a step of the database's clock
		before := row(t, db, "job")
		holder, err := db.Mutex("job").Holder()
		require.NoError(t, err)
		require.Nil(t, holder)
		requireTimeout(t, lease.Renew(), "job", true)
		require.ErrorContains(t, lease.Renew(), "ended before the work did")
		requireEnds(t, lease.Context())
		require.ErrorContains(t, context.Cause(lease.Context()), "over by the database's clock")
		require.Equal(t, before, row(t, db, "job"))
		requireTimeout(t, lease.Release(), "job", false) // nobody came
		require.Nil(t, row(t, db, "job"))

		lease = acquire(t, db, "job")
		testdb.Expire(t, db, "job")
		requireTimeout(t, lease.Renew(), "job", true)
		acquire(t, db, "job")
		requireTimeout(t, lease.Release(), "job", true) // somebody came
		requireHeld(t, db, "job")

		brief := []dbmutex.Option{dbmutex.WithTTL(300 * time.Millisecond), dbmutex.WithRenewal()}
		err = db.Mutex("renewed", brief...).Do(func(ctx context.Context) error {
			testdb.Expire(t, db, "renewed")
			requireEnds(t, ctx)
			return nil
		})
		requireTimeout(t, err, "renewed", false)
	})
}

func TestTheEndOfTheWorkCutsNoRenewalOff(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		for took := time.Hour; took > 500*time.Millisecond; { // on a machine so slow, a renewal may need more than its grace
			out := &logs{}
			db, other := open(t, d, &gorm.Config{Logger: out.logger(logger.Warn)}), open(t, d)
			pool, err := db.DB()
			require.NoError(t, err)
			pool.SetMaxOpenConns(1)
			before := session(t, db)
			var ended time.Time
			err = db.Mutex("job", dbmutex.WithTTL(9*time.Second), dbmutex.WithRenewal()).Do(func(context.Context) error {
				tx := other.Begin() // it stands for a disk or a network that takes its time
				require.NoError(t, tx.Exec(`SELECT 1 FROM db_mutexes FOR UPDATE`).Error)
				for _, times := range []int{1, 2} { // it does not only look whether it may
					require.Eventually(t, func() bool { return pool.Stats().InUse > 0 }, time.Minute, time.Millisecond, times)
					time.Sleep(20 * time.Millisecond)
				}
				time.AfterFunc(50*time.Millisecond, func() { tx.Rollback() })
				ended = time.Now()
				return nil
			})
			require.NoError(t, err)
			if took = time.Since(ended); took <= 500*time.Millisecond {
				require.Empty(t, out.String())
				require.Equal(t, before, session(t, db), "the connection is still there")
			}
		}
	})
}

// session is the number of the session that a handle's pool of one has.
func session(t *testing.T, db *dbmutex.DB) (number int64) {
	t.Helper()
	require.NoError(t, db.Raw(testdb.At(db.Name(), "").Session).Scan(&number).Error)
	return number
}

func TestARenewalThatGetsNoConnectionIsToldOf(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		out := &logs{}
		db := open(t, d, &gorm.Config{Logger: out.logger(logger.Warn)})
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1)
		var cause error
		err = db.Mutex("job", dbmutex.WithTTL(3*time.Second), dbmutex.WithRenewal()).Do(func(ctx context.Context) error {
			conn, err := pool.Conn(context.Background()) // the work keeps the only connection
			require.NoError(t, err)
			defer func() { _ = conn.Close() }()
			requireEnds(t, ctx)
			cause = context.Cause(ctx)
			return ctx.Err()
		})
		for _, told := range []string{timeoutOf(t, err, "job", false).Error(), cause.Error(), out.String()} {
			require.Contains(t, told, `renew "job"`)
			require.Contains(t, told, "no connection of the pool became free")
		}
	})
}
