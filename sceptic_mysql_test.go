package dbmutex_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// withParam is a MySQL DSN whose sessions have a variable.
func withParam(t testing.TB, dsn, name, value string) *testdb.Database {
	t.Helper()
	config, err := driver.ParseDSN(dsn)
	require.NoError(t, err)
	if config.Params == nil {
		config.Params = map[string]string{}
	}
	config.Params[name] = value
	return testdb.MySQLAt(config.FormatDSN())
}

// one limits a handle's pool to one connection.
func one(t testing.TB, db *dbmutex.DB) *sql.DB {
	t.Helper()
	pool, err := db.DB()
	require.NoError(t, err)
	pool.SetMaxOpenConns(1)
	pool.SetMaxIdleConns(1)
	return pool
}

// A procedure that begins a transaction and fails answers with an error alone, which has no status.
func TestATransactionThatAFailedProcedureLeftOpenIsSeen(t *testing.T) {
	d := testdb.MySQL(t)
	other := open(t, d)
	require.NoError(t, other.Exec(`CREATE PROCEDURE breaks() BEGIN START TRANSACTION; SIGNAL SQLSTATE '45000'; END`).Error)
	db := d.Registered(t, dbmutex.DefaultSettings())
	one(t, db)
	for _, verb := range []string{"acquire", "take over", "renew", "release"} {
		t.Run(verb, func(t *testing.T) {
			id := strings.ReplaceAll(verb, " ", "-")
			lease := acquire(t, db, id)
			switch verb {
			case "acquire":
				require.NoError(t, lease.Release())
			case "take over":
				testdb.Expire(t, other, id)
			}
			before := row(t, other, id)
			require.Error(t, db.Exec(`CALL breaks()`).Error)
			switch verb {
			case "renew":
				require.NoError(t, lease.Renew())
				require.True(t, row(t, other, id).ExpiresAt.After(*before.ExpiresAt), "the renewal is not committed")
			case "release":
				require.NoError(t, lease.Release())
				require.Nil(t, row(t, other, id), "the release is not committed")
			default:
				_, err := db.Mutex(id).Acquire()
				require.NoError(t, err)
				_, err = db.Mutex("another").Holder() // the same connection
				require.NoError(t, err)
				requireHeld(t, other, id)
			}
		})
	}
}

// completion_type makes every ROLLBACK and COMMIT begin another transaction.
func TestAChainedTransactionIsSeen(t *testing.T) {
	d := testdb.MySQL(t)
	other := open(t, d)
	db := withParam(t, d.DSN, "completion_type", "1").Registered(t, dbmutex.DefaultSettings())
	one(t, db)
	require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
	require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error { return tx.Exec(`INSERT INTO made VALUES (1)`).Error }))
	acquire(t, db, "job")
	_, err := db.Mutex("another").Holder() // on the same connection
	require.NoError(t, err)
	requireHeld(t, other, "job")
}

// init_connect runs after the server's answer to the log-in, for users who are not administrators.
func TestASessionThatTheServerTookOutOfAutocommitHoldsNothingBack(t *testing.T) {
	server := testdb.MySQL(t).NewServer(t, "init_connect = 'SET autocommit = 0'")
	config, err := driver.ParseDSN(server.DSN())
	require.NoError(t, err)
	root := testdb.MySQLAt(server.DSN()).Open(t)
	for _, statement := range []string{
		`CREATE DATABASE locks`, `CREATE USER app@'%' IDENTIFIED BY 'app'`, `GRANT ALL ON locks.* TO app@'%'`,
	} {
		require.NoError(t, root.Exec(statement).Error)
	}
	config.DBName = "locks"
	other := testdb.MySQLAt(config.FormatDSN()).Mutexes(t, dbmutex.DefaultSettings())
	config.User, config.Passwd, config.AllowNativePasswords = "app", "app", true
	db := testdb.MySQLAt(config.FormatDSN()).Registered(t, dbmutex.DefaultSettings())
	pool, err := db.DB()
	require.NoError(t, err)
	fresh := func() { // the next connection is a new one
		pool.SetMaxIdleConns(0)
		pool.SetMaxIdleConns(1)
	}
	fresh()
	lease := acquire(t, db, "job")
	pool.SetMaxOpenConns(1)
	_, err = db.Mutex("another").Holder() // on the same connection
	require.NoError(t, err)
	requireHeld(t, other, "job")
	fresh()
	require.NoError(t, lease.Release())
	require.Nil(t, row(t, other, "job"))
}

// A renewal or a release that waits for a guard must not keep others out.
func TestAVerbThatWaitsForAGuardLocksNoOtherMutex(t *testing.T) {
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
			waitForLockWait(t, d)
			for _, id := range []string{"l", "n", "a", "zz"} {
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				_, err := db.WithContext(ctx).Mutex(id).Acquire()
				cancel()
				require.NoError(t, err, "a new id waits: %s", id)
			}
			require.NoError(t, tx.Rollback().Error)
			<-done
		})
	}
}

// waitForLockWait waits until a transaction on the server waits for a lock.
func waitForLockWait(t testing.TB, d *testdb.Database) {
	t.Helper()
	db := d.Open(t)
	require.Eventually(t, func() bool {
		var n int
		require.NoError(t, db.Raw(`SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'`).Scan(&n).Error)
		return n > 0
	}, time.Minute, 5*time.Millisecond)
}

// Between a try's look and its take another lease may have come, and may be guarded.
func TestATryThatLooksBeforeAGuardDoesNotWaitForIt(t *testing.T) {
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
			require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
		})
	}
}

// A session that reads what is not committed sees a release that is not one yet.
func TestATryThatReadsUncommittedDoesNotWaitForARelease(t *testing.T) {
	d := testdb.MySQL(t)
	open(t, d)
	name := "transaction_isolation"
	var version string
	require.NoError(t, d.Open(t).Raw(`SELECT VERSION()`).Scan(&version).Error)
	if strings.Contains(version, "MariaDB") {
		name = "tx_isolation"
	}
	db := withParam(t, d.DSN, name, "'READ-UNCOMMITTED'").Registered(t, dbmutex.DefaultSettings())
	lease := acquire(t, db, "job")
	tx := db.Gorm.Begin()
	require.NoError(t, lease.ReleaseIn(tx))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	holder, holderErr := db.Mutex("job").Holder()
	_, err := db.WithContext(ctx).Mutex("job").Acquire()
	forced := db.WithContext(ctx).Mutex("job").ForceRelease()
	require.NoError(t, tx.Rollback().Error)
	require.NoError(t, holderErr)
	t.Logf("holder %v; try %v; forced %v", holder, err, forced)
	require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
	require.NotNil(t, holder)
	if forced == nil {
		require.Nil(t, row(t, db, "job"), "ForceRelease said that it did")
	}
}

// Rows of mutexes that only Transaction releases go, too.
func TestRowsThatTransactionsFreedAreRemoved(t *testing.T) {
	db := open(t, testdb.MySQL(t))
	for i := range 40 {
		require.NoError(t, db.Mutex(fmt.Sprint("old ", i)).Transaction(func(*gorm.DB) error { return nil }))
	}
	require.NoError(t, db.Exec(`UPDATE db_mutexes SET expires_at = expires_at - INTERVAL 2 HOUR`).Error)
	for range 100 {
		require.NoError(t, db.Mutex("job").Transaction(func(*gorm.DB) error { return nil }))
	}
	var n int64
	require.NoError(t, db.Model(&dbmutex.DBMutex{}).Count(&n).Error)
	require.LessOrEqual(t, n, int64(2))
}

// A token grows after its row was removed by hand, however often the mutex was taken before.
func TestATokenGrowsAfterItsRowWasRemovedByHand(t *testing.T) {
	db := open(t, testdb.MySQL(t))
	requireFree(t, db, "job")
	require.NoError(t, db.Exec(`UPDATE db_mutexes SET token = GREATEST(token, id << 24) + (2 << 24)`).Error) // as after 33 million
	before := acquire(t, db, "job")
	require.NoError(t, before.Release())
	require.NoError(t, db.Exec(`DELETE FROM db_mutexes`).Error)
	require.Greater(t, acquire(t, db, "job").Token(), before.Token())
}

func TestASessionsOwnClockIsNotTheDatabases(t *testing.T) {
	d := testdb.MySQL(t)
	db := open(t, d)
	acquire(t, db, "job")
	off := withParam(t, d.DSN, "timestamp", "4000000000").Registered(t, dbmutex.DefaultSettings())
	requireHeld(t, off, "job")
}

// Guard after a deadlock that the work did not mind.
func TestAGuardNoticesThatItsTransactionHasEnded(t *testing.T) {
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
			require.NoError(t, lease.Guard(tx))
		})
	}
}

var _ = errors.Is
