package dbmutex_test

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

var errRefused = errors.New("refused")

// refusing makes statements that do a verb fail with an error, while it is set.
func refusing(t *testing.T, db *dbmutex.DB, d *testdb.Database, verb string, failure error) *atomic.Bool {
	t.Helper()
	on := &atomic.Bool{}
	refuse := func(tx *gorm.DB) {
		if on.Load() && d.Verb(tx.Statement.SQL.String()) == verb {
			_ = tx.AddError(failure)
		}
	}
	require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("refuse "+verb, refuse))
	require.NoError(t, db.Callback().Row().Before("gorm:row").Register("refuse "+verb, refuse))
	return on
}

func requireRecordSoon(t *testing.T, o *dbmutex.Once) {
	t.Helper()
	require.Eventually(t, func() bool {
		record, err := o.Done()
		return err == nil && record != nil
	}, time.Minute, 10*time.Millisecond)
}

func TestASuccessThatTheDatabaseRefusesToRecordMayRunAgain(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		refuse := refusing(t, db, d, "record", errRefused)
		refuse.Store(true)
		once := db.Once("job", time.Hour)
		err := once.Do(nothing)
		require.ErrorIs(t, err, errRefused)
		require.ErrorContains(t, err, `record the success of "job"`)
		require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		require.ErrorIs(t, once.Transaction(func(*gorm.DB) error { return nil }), errRefused)
		requireNotDone(t, once)
		refuse.Store(false)
		require.NoError(t, once.Do(nothing), "it was released")
		requireDone(t, once)
	})
}

func TestARefusedSuccessWhoseReleaseIsRefusedLastsForItsTTL(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		db, seen := observed(t, d)
		record, release := refusing(t, db, d, "record", errRefused), refusing(t, db, d, "release", errWork)
		record.Store(true)
		release.Store(true)
		once := db.Once("job", time.Hour)
		value, err := dbmutex.OnceValue(once, func(context.Context) (int, error) { return 7, nil })
		require.Equal(t, 7, value)
		requireBoth := func(err error) {
			require.ErrorIs(t, err, errRefused)
			require.ErrorContains(t, err, `record the success of "job": `+errRefused.Error())
			require.ErrorIs(t, err, errWork)
			require.ErrorContains(t, err, `release "job": `+errWork.Error())
			require.NotContains(t, err.Error(), "background")
			require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		}
		requireBoth(err)
		ended := seen.last(t, dbmutex.LeaseEnded)
		require.Equal(t, dbmutex.OutcomeUnknown, ended.Outcome)
		requireBoth(ended.Err)
		record.Store(false)
		release.Store(false)
		require.ErrorIs(t, once.Do(nothing), dbmutex.ErrNotAcquired)
		requireNotDone(t, once)
		testdb.ExpireOnces(t, db, false, "lock_id = 'job'")
		require.NoError(t, once.Do(nothing))
		requireDone(t, once)
	})
}

func TestARefusedSuccessIsReleasedLater(t *testing.T) {
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		once := db.Once("job", time.Hour, dbmutex.WithTTL(time.Hour))
		var fails atomic.Bool
		pool.refuse = func(statement string) error {
			switch pool.Verb(statement) {
			case "record":
				return pool.Errors.Forbidden
			case "release":
				if fails.Load() {
					return &net.OpError{Op: "dial", Err: errWork} // it is tried again
				}
			}
			return nil
		}
		fails.Store(true)
		err := once.Do(nothing)
		require.ErrorIs(t, err, pool.Errors.Forbidden)
		require.ErrorContains(t, err, `record the success of "job": `+pool.Errors.Forbidden.Error())
		require.ErrorContains(t, err, `release "job"`)
		require.ErrorContains(t, err, "it goes on in the background")
		require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		fails.Store(false)
		ran := errors.New("ran")
		again := open(t, pool.Database).WithContext(limited(t)).Once("job", time.Hour, dbmutex.WithWait(dbmutex.Forever))
		require.ErrorIs(t, again.Do(func(context.Context) error { return ran }), ran)
		requireNotDone(t, once)
	})
}

func TestARefusalAfterALostAnswerIsNone(t *testing.T) {
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		var refuse atomic.Bool
		pool.refuse = func(statement string) error {
			if refuse.Load() && pool.Verb(statement) == "record" {
				return pool.Errors.Forbidden
			}
			return nil
		}
		for _, own := range []bool{true, false} { // or somebody else's record
			refuse.Store(false)
			seen, other := &recorder{}, open(t, pool.Database).Once("job", time.Hour)
			once := db.Once("job", time.Hour, dbmutex.WithObserver(seen))
			pool.after("record", func() error {
				refuse.Store(true)
				if !own {
					require.NoError(t, other.Forget())
					require.NoError(t, other.Do(nothing))
				}
				return io.ErrUnexpectedEOF
			})
			err := once.Do(nothing)
			requireDone(t, once)
			if own {
				require.NoError(t, err)
				require.Equal(t, dbmutex.OutcomeRecorded, seen.last(t, dbmutex.LeaseEnded).Outcome)
			} else {
				require.ErrorIs(t, err, pool.Errors.Forbidden)
			}
			require.NoError(t, other.Forget())
		}
	})
}

// keepsTheConnection is work that takes the pool's only connection and leaves it so.
func keepsTheConnection(t *testing.T, db *dbmutex.DB) (work func(context.Context) error, letGo func()) {
	t.Helper()
	pool := poolOf(t, db)
	pool.SetMaxOpenConns(1)
	var conn *sql.Conn
	return func(ctx context.Context) (err error) {
		conn, err = pool.Conn(ctx)
		return err
	}, func() { require.NoError(t, conn.Close()) }
}

func TestASuccessThatCannotBeRecordedInTimeIsRecordedLater(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		t.Parallel()
		once := db.Once("job", time.Hour)
		work, letGo := keepsTheConnection(t, db)
		err := once.Do(work)
		require.ErrorContains(t, err, `record the success of "job"`)
		require.ErrorContains(t, err, "it goes on in the background")
		letGo()
		requireRecordSoon(t, once)
	})
}

// refusedLater runs work whose success cannot be recorded in time, and then is refused, as are these verbs. It returns when
// the log has what the last of them is refused with.
func refusedLater(t *testing.T, d *testdb.Database, verbs ...string) (*dbmutex.Once, *recorder) {
	t.Helper()
	out := &logs{}
	db, seen := observed(t, d, &gorm.Config{Logger: out.logger(logger.Error)})
	once := db.Once("job", time.Hour, dbmutex.WithTTL(time.Hour))
	work, letGo := keepsTheConnection(t, db)
	var last error
	var refuse []*atomic.Bool
	for _, verb := range verbs {
		last = errors.New(verb + " refused")
		refuse = append(refuse, refusing(t, db, d, verb, last))
	}
	err := once.Do(work)
	require.ErrorContains(t, err, `record the success of "job"`)
	require.ErrorContains(t, err, "it goes on in the background")
	require.NotContains(t, err.Error(), "refused")
	for _, on := range refuse {
		on.Store(true)
	}
	letGo()
	require.Eventually(t, func() bool { return strings.Contains(out.String(), last.Error()) }, time.Minute, time.Millisecond)
	return once, seen
}

func TestASuccessThatIsRefusedLaterMayRunAgain(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		once, seen := refusedLater(t, d, "record")
		ran := errors.New("ran")
		again := open(t, d).WithContext(limited(t)).Once("job", time.Hour, dbmutex.WithWait(dbmutex.Forever))
		require.ErrorIs(t, again.Do(func(context.Context) error { return ran }), ran, "it was released")
		requireNotDone(t, once)
		require.Equal(t, append(uneventful[:3:3], "lease ended: unknown"), seen.told("job"), "nothing is told after the end")
	})
}

func TestASuccessThatIsRefusedLaterWithItsReleaseLastsForItsTTL(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		once, seen := refusedLater(t, d, "record", "release")
		require.Equal(t, append(uneventful[:3:3], "lease ended: unknown"), seen.told("job"))
		db := open(t, d)
		require.ErrorIs(t, db.Once("job", time.Hour).Do(nothing), dbmutex.ErrNotAcquired)
		requireNotDone(t, once)
		testdb.ExpireOnces(t, db, false, "lock_id = 'job'")
		require.NoError(t, db.Once("job", time.Hour).Do(nothing))
		requireDone(t, once)
	})
}
