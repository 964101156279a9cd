package dbmutex_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// On MySQL and MariaDB no statement of the lock's waits within the server.

// A renewal or a release that waits for a guard must not keep others out.
func TestAVerbThatWaitsForAGuardLocksNoOtherMutex(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"renew", "release", "force the release"} {
		t.Run(verb, func(t *testing.T) {
			d := testdb.MySQL(t)
			db := open(t, d).WithContext(limited(t))
			lease := acquire(t, db, "m")
			acquire(t, db, "z")
			tx := db.Gorm.Begin()
			require.NoError(t, tx.Error)
			require.NoError(t, lease.Guard(tx))
			done := make(chan error, 1)
			go func() {
				switch verb {
				case "renew":
					done <- lease.Renew()
				case "release":
					done <- lease.Release()
				default:
					done <- db.Mutex("m").ForceRelease()
				}
			}()
			require.Never(t, func() bool { return len(done) > 0 }, 100*time.Millisecond, 10*time.Millisecond, "it waits")
			for _, id := range []string{"l", "n", "a", "zz"} {
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				_, err := db.WithContext(ctx).Mutex(id).Acquire()
				cancel()
				require.NoError(t, err, "a new id waits: %s", id)
			}
			require.NoError(t, tx.Rollback().Error)
			require.NoError(t, <-done)
		})
	}
}

// Between a try's look and its take another lease may have come, and may be guarded.
func TestATryThatLooksBeforeAGuardDoesNotWaitForIt(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"new", "free"} {
		t.Run(level, func(t *testing.T) {
			d := testdb.MySQL(t)
			db := open(t, d)
			if level == "free" {
				requireFree(t, db, "job")
			}
			slow, pool := openFaulty(t, d)
			var tx *gorm.DB
			pool.mu.Lock()
			pool.refuse = func(statement string) error {
				if tx == nil && d.Verb(statement) == "acquire" {
					lease := acquire(t, db, "job")
					tx = db.Gorm.Begin()
					require.NoError(t, lease.Guard(tx))
				}
				return nil
			}
			pool.mu.Unlock()
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_, err := slow.WithContext(ctx).Mutex("job").Acquire()
			require.NotNil(t, tx)
			require.NoError(t, tx.Rollback().Error)
			var version string
			require.NoError(t, db.Raw(`SELECT VERSION()`).Scan(&version).Error)
			if level == "new" && !strings.Contains(version, "MariaDB") { // MySQL cannot be told not to wait
				require.ErrorIs(t, err, context.DeadlineExceeded)
				return
			}
			require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
		})
	}
}

// A session that reads what is not committed sees a release that is not one yet.
func TestATryThatReadsUncommittedDoesNotWaitForARelease(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	open(t, d)
	name := "transaction_isolation"
	var version string
	require.NoError(t, d.Open(t).Raw(`SELECT VERSION()`).Scan(&version).Error)
	if strings.Contains(version, "MariaDB") {
		name = "tx_isolation"
	}
	db := d.With(name, "'READ-UNCOMMITTED'").Registered(t, dbmutex.DefaultSettings())
	lease := acquire(t, db, "job")
	tx := db.Gorm.Begin()
	require.NoError(t, lease.ReleaseIn(tx))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := db.WithContext(ctx).Mutex("job").Acquire()
	require.NoError(t, tx.Rollback().Error)
	require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
}

// Guard after a deadlock that the work did not mind.
func TestAGuardNoticesThatItsTransactionHasEnded(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"CREATE TABLE other (id integer)", "COMMIT"} {
		db := open(t, testdb.MySQL(t))
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
		lease := acquire(t, db, "job")
		err := db.Gorm.Transaction(func(tx *gorm.DB) error {
			require.NoError(t, tx.Exec(`INSERT INTO made VALUES (1)`).Error)
			require.NoError(t, tx.Exec(how).Error)
			return lease.Guard(tx)
		})
		require.Error(t, err, how)
	}
}

// A guard at the end of a transaction that has read, after a renewal.
func TestAGuardAfterARenewalWorksAtEveryLevel(t *testing.T) {
	t.Parallel()
	db := open(t, testdb.MySQL(t))
	for _, level := range []sql.IsolationLevel{
		sql.LevelReadUncommitted, sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable,
	} {
		t.Run(level.String(), func(t *testing.T) {
			lease := acquire(t, db, "job "+level.String())
			tx := db.Gorm.Begin(&sql.TxOptions{Isolation: level})
			require.NoError(t, tx.Error)
			defer tx.Rollback()
			var n int
			require.NoError(t, tx.Raw(`SELECT count(*) FROM information_schema.tables`).Scan(&n).Error)
			require.NoError(t, tx.Raw(`SELECT count(*) FROM db_mutexes WHERE lock_id = 'nobody'`).Scan(&n).Error)
			require.NoError(t, lease.Renew())
			if err := lease.Guard(tx); err != nil && level > sql.LevelReadCommitted { // a server that compares snapshots
				require.ErrorContains(t, err, "1020")
				require.NotErrorIs(t, err, dbmutex.ErrTimeout)
			} else {
				require.NoError(t, err)
			}
		})
	}
}

// waitForLockWait waits until a transaction on the server waits for a lock. The server looks again only if it is not asked
// for 100 ms.
func waitForLockWait(t testing.TB, d *testdb.Database) {
	t.Helper()
	db := d.Open(t)
	require.Eventually(t, func() bool {
		var n int
		const waiting = `SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'`
		require.NoError(t, db.Raw(waiting).Scan(&n).Error)
		return n > 0
	}, time.Minute, 200*time.Millisecond)
}

// A transaction that has lost its lease does not stand in the way of the next holder's.
func TestATransactionThatLostItsLeaseIsNoDeadlock(t *testing.T) {
	t.Parallel()
	for _, rows := range []int{1, 50} {
		t.Run(fmt.Sprint(rows), func(t *testing.T) {
			d := testdb.MySQL(t)
			db := open(t, d).WithContext(limited(t))
			require.NoError(t, db.Exec(`CREATE TABLE counters (id integer PRIMARY KEY, n integer)`).Error)
			require.NoError(t, db.Exec(`INSERT INTO counters VALUES (1, 0)`).Error)
			next := make(chan error, 1)
			err := db.Mutex("job").Transaction(func(tx *gorm.DB) error {
				for i := range rows - 1 {
					require.NoError(t, tx.Exec(`INSERT INTO counters VALUES (?, 0)`, i+2).Error)
				}
				require.NoError(t, tx.Exec(`UPDATE counters SET n = n + 1 WHERE id = 1`).Error)
				testdb.Expire(t, db, "job")
				lease := acquire(t, db, "job")
				go func() {
					next <- db.Gorm.Transaction(func(tx *gorm.DB) error {
						if err := lease.Guard(tx); err != nil {
							return err
						}
						return tx.Exec(`UPDATE counters SET n = n + 1 WHERE id = 1`).Error
					})
				}()
				waitForLockWait(t, d)
				return nil
			})
			require.NoError(t, <-next, "the next holder's")
			require.ErrorIs(t, err, dbmutex.ErrTimeout)
			require.NotContains(t, err.Error(), "1213")
		})
	}
}

// A transaction that began to read before the lease was acquired does not take what it has read for what is.
func TestAGuardInAnOldSnapshotWaitsForAnotherGuard(t *testing.T) {
	t.Parallel()
	for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
		for _, poolOfOne := range []bool{false, true} {
			t.Run(fmt.Sprint(level, poolOfOne), func(t *testing.T) {
				d := testdb.MySQL(t)
				other, db := open(t, d).WithContext(limited(t)), open(t, d).WithContext(limited(t))
				requireFree(t, db, "job")
				old := db.Gorm.Begin(&sql.TxOptions{Isolation: level})
				require.NoError(t, old.Error)
				require.NoError(t, old.Raw(`SELECT count(*) FROM db_mutexes WHERE id > 1000000`).Row().Scan(new(int)))
				lease := acquire(t, db, "job")
				if poolOfOne {
					one(t, db)
				}
				first := other.Gorm.Begin()
				require.NoError(t, lease.Guard(first))
				done := make(chan error, 1)
				go func() { done <- lease.Guard(old) }()
				require.Never(t, func() bool { return len(done) > 0 }, 300*time.Millisecond, 10*time.Millisecond, "it waits")
				require.NoError(t, first.Rollback().Error)
				err := <-done
				old.Rollback()
				if err != nil { // a server that compares snapshots
					require.ErrorContains(t, err, "1020")
					require.NotErrorIs(t, err, dbmutex.ErrTimeout)
				}
			})
		}
	}
}

// Nor is a lease that was lost called pinned.
func TestAGuardOfALostLeaseSaysSoWhileTheNextIsPinned(t *testing.T) {
	t.Parallel()
	for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
		t.Run(level.String(), func(t *testing.T) {
			db := open(t, testdb.MySQL(t)).WithContext(limited(t))
			lease := acquire(t, db, "job")
			late := db.Gorm.Begin(&sql.TxOptions{Isolation: level})
			require.NoError(t, late.Raw(`SELECT count(*) FROM db_mutexes WHERE id = 0`).Row().Scan(new(int)))
			testdb.Expire(t, db, "job")
			next := acquire(t, db, "job")
			pinned := db.Gorm.Begin()
			require.NoError(t, next.Guard(pinned))
			require.ErrorIs(t, lease.Guard(late), dbmutex.ErrTimeout)
			require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)
			require.NoError(t, pinned.Commit().Error)
		})
	}
}
