package dbmutex_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// The tests of this file are about what MySQL and MariaDB alone have.

// with is a database whose sessions have settings, as the DSN of go-sql-driver gives them.
func with(d *testdb.Database, settings string) *testdb.Database {
	return testdb.MySQLAt(d.DSN + "&" + settings)
}

func TestIDsAreExactWhateverTheCharset(t *testing.T) {
	t.Parallel()
	for _, charset := range []string{"latin1", "utf8mb4", "utf8mb3 COLLATE utf8mb3_general_ci", "ucs2"} {
		d := testdb.MySQL(t)
		require.NoError(t, d.Open(t).Exec(`ALTER DATABASE CHARACTER SET `+charset).Error)
		connections := []string{"charset=utf8mb4", "charset=latin1", "charset=utf8", "charset=utf8&interpolateParams=true"}
		for _, connection := range connections {
			db := with(d, connection).Registered(t, dbmutex.DefaultSettings())
			require.NoError(t, db.AutoMigrate(&dbmutex.DBMutex{}))
			ids := []string{"job", "JOB", "job ", "jób", "jo\u0301b", "job\t", strings.Repeat("\U0001F512", 256)}
			for _, id := range ids {
				const holder = "h\u00f6st \U0001F512"
				lease := acquire(t, db, id, dbmutex.WithHolder(holder))
				held, err := db.Mutex(id).Holder()
				require.NoError(t, err)
				require.Equal(t, id, held.LockID, connection)
				require.Equal(t, holder, held.Holder, connection)
				var other *dbmutex.HeldError
				require.ErrorAs(t, db.Mutex(id).Do(nothing), &other)
				require.Equal(t, holder, other.Holder)
				require.NoError(t, lease.Renew())
			}
			for _, id := range ids {
				require.NoError(t, db.Mutex(id).ForceRelease())
			}
		}
	}
}

func TestASecondAutoMigrateAltersNothing(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	out := &logs{}
	for range 2 {
		db := d.Registered(t, dbmutex.DefaultSettings(), &gorm.Config{Logger: out.logger(logger.Info)})
		require.NoError(t, db.AutoMigrate(&dbmutex.DBMutex{}))
		require.NoError(t, db.AutoMigrate(&dbmutex.DBMutex{}))
		require.NoError(t, db.Migrate())
		exercise(t, db)
	}
	for _, table := range []string{"db_mutexes", "db_onces"} {
		require.Equal(t, 1, strings.Count(out.String(), "CREATE TABLE `"+table))
	}
	require.Equal(t, 2, strings.Count(out.String(), "CREATE TABLE"))
	require.NotContains(t, out.String(), "ALTER TABLE")
}

func TestAutoMigrateWithoutThePluginIsToldOf(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	plain := d.Open(t)
	require.NoError(t, plain.AutoMigrate(&dbmutex.DBMutex{}))
	db := d.Registered(t, dbmutex.DefaultSettings())
	err := db.Mutex("job").Do(nothing)
	require.ErrorContains(t, err, "cannot be used")
	require.ErrorContains(t, err, "the plugin was registered before")
	require.NoError(t, db.AutoMigrate(&dbmutex.DBMutex{}))
	exercise(t, db)
	require.NoError(t, plain.AutoMigrate(&dbmutex.DBMutex{})) // it alters the columns back
	require.ErrorContains(t, d.Registered(t, dbmutex.DefaultSettings()).Mutex("job").Do(nothing), "cannot be used")
}

func TestAReleaseKeepsTheRow(t *testing.T) {
	t.Parallel()
	db := open(t, testdb.MySQL(t))
	var first dbmutex.DBMutex
	last := int64(0)
	for i := range 10 {
		lease := acquire(t, db, "job")
		require.Greater(t, lease.Token(), last)
		last = lease.Token()
		require.NoError(t, lease.Release())
		var there dbmutex.DBMutex
		require.NoError(t, db.Where("lock_id = ?", "job").Take(&there).Error)
		require.Empty(t, there.LeaseID)
		if i == 0 {
			first = there
		}
		require.Equal(t, first.ID, there.ID)
	}
	require.NoError(t, db.Mutex("job").ForceRelease(), "a free row is nobody's")
	holder, err := db.Mutex("job").Holder()
	require.NoError(t, err)
	require.Nil(t, holder)
}

func TestARowThatThisProcessFreedIsTakenWithoutALook(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	out := &logs{}
	db := open(t, d, &gorm.Config{Logger: out.logger(logger.Info)})
	other := open(t, d)
	requireFree(t, db, "job")
	looks := func() int { return strings.Count(out.String(), "SELECT id, ") }
	before := looks()
	for range 3 {
		requireFree(t, db, "job")
	}
	require.Equal(t, before, looks())

	lease := acquire(t, other, "job", dbmutex.WithHolder("the other"))
	var held *dbmutex.HeldError
	require.ErrorAs(t, db.Mutex("job").Do(nothing), &held)
	require.Equal(t, "the other", held.Holder)
	require.NoError(t, lease.Release())
	requireFree(t, db, "job")

	lease = acquire(t, other, "job", dbmutex.WithTTL(time.Millisecond))
	<-lease.Context().Done()
	require.Eventually(t, func() bool { return db.Mutex("job").Do(nothing) == nil }, time.Minute, time.Millisecond)
	require.True(t, lease.Lost())

	require.NoError(t, other.Exec(`DELETE FROM db_mutexes`).Error)
	again := acquire(t, db, "job")
	require.Greater(t, again.Token(), lease.Token())
	require.ErrorIs(t, other.Mutex("job").Do(nothing), dbmutex.ErrNotAcquired)

	require.NoError(t, again.Release())
	require.NoError(t, other.Exec(`TRUNCATE db_mutexes`).Error) // ids begin anew
	for n := int64(1); n <= again.Token()>>24; n++ {
		requireFree(t, other, fmt.Sprint(n))
	}
	acquire(t, db, "job")
	requireHeld(t, other, "job")
}

// Some new rows have some others looked at.
// The row says how a transaction ended, should anybody ask.
func TestPruneKeepsTheRecordOfATransactionForAnHour(t *testing.T) {
	t.Parallel()
	db := open(t, testdb.MySQL(t))
	require.NoError(t, db.Mutex("job").Transaction(func(*gorm.DB) error { return nil }))
	for _, want := range []int64{0, 1} {
		removed, err := db.Prune()
		require.NoError(t, err)
		require.Equal(t, want, removed)
		require.NoError(t, db.Exec(`UPDATE db_mutexes SET expires_at = expires_at - INTERVAL 2 HOUR`).Error)
	}
}

func TestPruneKeepsARowWhoseTokensCouldFall(t *testing.T) {
	t.Parallel()
	db := open(t, testdb.MySQL(t))
	lease := acquire(t, db, "job")
	require.NoError(t, db.Exec(`UPDATE db_mutexes SET token = (id + 1) << 24`).Error)
	testdb.Expire(t, db, "job")
	removed, err := db.Prune()
	require.NoError(t, err)
	require.Zero(t, removed)
	next := acquire(t, db, "job")
	require.Greater(t, next.Token(), lease.Token())
}

func TestRowsThatHaveBeenFreeForAnHourAreRemoved(t *testing.T) {
	t.Parallel()
	db := open(t, testdb.MySQL(t))
	const hourAgo = `UPDATE db_mutexes SET expires_at = UTC_TIMESTAMP(6) - INTERVAL 61 MINUTE WHERE lock_id `
	tokens := map[string]int64{}
	for i := range 200 {
		lease := acquire(t, db, fmt.Sprint("old ", i))
		tokens[lease.LockID()] = lease.Token()
		require.NoError(t, lease.Release())
	}
	for _, id := range []string{"ended", "worn out"} {
		acquire(t, db, id)
	}
	lease := acquire(t, db, "never ends", dbmutex.WithoutTTL())
	require.NoError(t, db.Exec(hourAgo+`<> 'never ends'`).Error)
	require.NoError(t, db.Exec(`UPDATE db_mutexes SET lease_id = '', token = (id + 1) << 24 WHERE lock_id = 'worn out'`).Error)
	left := func(pattern string) (ids []string) {
		rows := db.Model(&dbmutex.DBMutex{}).Where("lock_id LIKE ?", pattern).Order("lock_id")
		require.NoError(t, rows.Pluck("lock_id", &ids).Error)
		return ids
	}
	pin := db.Gorm.Begin() // it is not waited for
	require.NoError(t, lease.Guard(pin))
	fresh := 0
	require.Eventually(t, func() bool {
		fresh++
		err := db.Mutex(fmt.Sprint("new ", fresh)).Transaction(func(*gorm.DB) error { return nil })
		require.NoError(t, err)
		return len(left("old %")) == 0
	}, time.Minute, time.Millisecond)
	for range 100 {
		fresh++
		requireFree(t, db, fmt.Sprint("new ", fresh))
	}
	require.NoError(t, pin.Rollback().Error)
	require.Len(t, left("new %"), fresh, "they have not been free for an hour")
	require.Equal(t, []string{"ended"}, left("ended"), "a lease that ran out tells who did not release")
	require.Equal(t, []string{"never ends"}, left("never ends"))
	require.Equal(t, []string{"worn out"}, left("worn out"), "its token is greater than that of the next row")
	for id, token := range tokens {
		require.Greater(t, acquire(t, db, id).Token(), token)
	}
}

func TestASessionWithoutAutocommitHasItForTheLock(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	other := open(t, d)
	db := with(d, "autocommit=0").Registered(t, dbmutex.DefaultSettings())
	pool, err := db.DB()
	require.NoError(t, err)
	pool.SetMaxOpenConns(1)
	require.NoError(t, db.Mutex("job").Do(func(context.Context) error { requireHeld(t, other, "job"); return nil }))
	requireFree(t, other, "job")
	exercise(t, db)
	var on bool
	require.NoError(t, db.Raw(`SELECT @@autocommit`).Scan(&on).Error)
	require.False(t, on, "the program's own statements go on as they were")
}

func TestDDLInATransactionIsReported(t *testing.T) {
	t.Parallel()
	for _, prepare := range []bool{false, true} {
		d := testdb.MySQL(t)
		db := open(t, d, &gorm.Config{PrepareStmt: prepare})
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
		err := db.Mutex("job").Transaction(func(tx *gorm.DB) error {
			require.NoError(t, tx.Exec(`INSERT INTO made VALUES (1)`).Error)
			require.NoError(t, tx.Exec(`CREATE TABLE another (id integer)`).Error)
			return tx.Exec(`INSERT INTO made VALUES (2)`).Error
		})
		require.ErrorIs(t, err, gorm.ErrInvalidTransaction)
		require.ErrorContains(t, err, "implicit commit")
		require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		requireFree(t, db, "job")
	}
}

func TestADeadlockThatTheWorkIgnoresIsReported(t *testing.T) {
	t.Parallel()
	db := open(t, testdb.MySQL(t))
	require.NoError(t, db.Exec(`CREATE TABLE made (id integer PRIMARY KEY, n integer)`).Error)
	require.NoError(t, db.Exec(`INSERT INTO made VALUES (1, 0), (2, 0), (3, 0)`).Error)
	err := db.Mutex("job").Transaction(func(tx *gorm.DB) error {
		require.NoError(t, tx.Exec(`UPDATE made SET n = 1 WHERE id = 1`).Error)
		rival := db.Begin() // it has written more, so that the other is the victim
		require.NoError(t, rival.Exec(`UPDATE made SET n = 2 WHERE id >= 2`).Error)
		done := make(chan error, 1)
		go func() { done <- rival.Exec(`UPDATE made SET n = 2 WHERE id = 1`).Error }()
		var failed error
		require.Eventually(t, func() bool {
			failed = tx.Session(&gorm.Session{NewDB: true}).Exec(`UPDATE made SET n = 1 WHERE id = 2`).Error
			return failed != nil
		}, time.Minute, time.Millisecond)
		require.ErrorContains(t, failed, "1213")
		require.NoError(t, <-done)
		require.NoError(t, rival.Commit().Error)
		return tx.Exec(`UPDATE made SET n = 1 WHERE id = 3`).Error // commits at once
	})
	require.ErrorIs(t, err, gorm.ErrInvalidTransaction)
	require.ErrorContains(t, err, "a deadlock")
	requireFree(t, db, "job")
}

// What another has written over, nobody can tell any more.
func TestACommitWhoseAnswerIsLostIsAskedForAtTheRow(t *testing.T) {
	t.Parallel()
	db, pool := openFaulty(t, testdb.MySQL(t))
	for name, test := range map[string]struct {
		lose  string
		taken bool
		want  string
	}{
		"committed":  {lose: "COMMIT"},
		"undone":     {lose: "ROLLBACK", want: "unexpected EOF"},
		"taken over": {lose: "COMMIT", taken: true, want: "whether it committed is unknown"},
	} {
		for _, minHold := range []time.Duration{0, time.Minute} {
			id := name + minHold.String()
			pool.setLose(func(statement string) error {
				if statement != test.lose {
					return nil
				}
				pool.lose = nil
				pool.mu.Unlock()
				defer pool.mu.Lock()
				if test.taken {
					require.NoError(t, db.Mutex(id).ForceRelease())
					acquire(t, db, id)
				}
				return io.ErrUnexpectedEOF
			})
			err := db.Mutex(id, dbmutex.WithMinHold(minHold)).Transaction(func(*gorm.DB) error { return nil })
			if test.want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, test.want)
				require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			}
		}
	}
}

// InnoDB locks gaps between rows.
func TestAPinnedLeaseKeepsNoOtherIDOut(t *testing.T) {
	t.Parallel()
	for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
		db := open(t, testdb.MySQL(t)).WithContext(limited(t))
		for _, pin := range []func(*dbmutex.Lease, *gorm.DB) error{(*dbmutex.Lease).Guard, (*dbmutex.Lease).ReleaseIn} {
			lease := acquire(t, db, "m")
			tx := db.Gorm.Begin(&sql.TxOptions{Isolation: level})
			require.NoError(t, pin(lease, tx))
			for _, id := range []string{"l", "l\xf4\x8f\xbf\xbf", "m ", "m!", "n", "a", "z"} {
				requireFree(t, db, id)
			}
			require.NoError(t, tx.Rollback().Error)
			require.NoError(t, lease.Release())
			require.NoError(t, db.Exec(`DELETE FROM db_mutexes`).Error)
		}
	}
}

// A renewal that waited for a guard may find that the time is over by then.
func TestARenewalThatWaitedRevivesNothing(t *testing.T) {
	t.Parallel()
	db := open(t, testdb.MySQL(t))
	lease := acquire(t, db, "job", dbmutex.WithTTL(2*time.Second))
	tx := db.Gorm.Begin()
	require.NoError(t, lease.Guard(tx))
	renewed := make(chan error, 1)
	go func() { renewed <- lease.Renew() }()
	require.Eventually(t, func() bool {
		holder, err := db.Mutex("job").Holder()
		require.NoError(t, err)
		return holder == nil
	}, time.Minute, 10*time.Millisecond)
	require.NoError(t, tx.Commit().Error)
	require.ErrorIs(t, <-renewed, dbmutex.ErrTimeout)
	time.Sleep(100 * time.Millisecond) // for a statement that was cut off
	holder, err := db.Mutex("job").Holder()
	require.NoError(t, err)
	require.Nil(t, holder, "a mutex that was free for a moment stays free")
}

func TestLocksOfTheLockDoNotDeadlock(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t).NewServer(t, "innodb_print_all_deadlocks = ON", "max_connections = 1000").Database()
	ids := map[string]func(worker, i int) string{
		"one":         func(int, int) string { return "job" },
		"many":        func(worker, _ int) string { return fmt.Sprint("job ", worker) },
		"neighbours":  func(worker, i int) string { return fmt.Sprintf("job %d %d", i, worker) },
		"one of many": func(worker, i int) string { return fmt.Sprint("job ", (worker+i)%4) },
	}
	for _, level := range []string{"READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"} {
		require.NoError(t, d.Open(t).Exec(`SET GLOBAL TRANSACTION ISOLATION LEVEL `+level).Error)
		db := open(t, d).WithContext(limited(t)) // a new pool
		for name, id := range ids {
			var wg sync.WaitGroup
			for worker := range 16 {
				wg.Go(func() {
					for i := range 20 {
						if err := cycle(db, id(worker, i), i); err != nil {
							t.Errorf("%s, %s: %v", level, name, err)
							return
						}
					}
				})
			}
			wg.Wait()
		}
	}
	var engine, state string
	require.NoError(t, open(t, d).Raw(`SHOW ENGINE INNODB STATUS`).Row().Scan(&engine, new(string), &state))
	require.NotContains(t, state, "LATEST DETECTED DEADLOCK")
}

// cycle uses a mutex in one of the ways that there are.
func cycle(db *dbmutex.DB, id string, i int) error {
	var err error
	switch m := db.Mutex(id); i % 5 {
	case 0, 1:
		err = m.Do(nothing)
	case 2:
		err = m.Transaction(func(*gorm.DB) error { return nil })
	case 3:
		var lease *dbmutex.Lease
		if lease, err = m.Acquire(); err == nil {
			err = errors.Join(db.Gorm.Transaction(lease.Guard), lease.Release())
		}
	case 4:
		err = db.Mutex(id, dbmutex.WithTTL(time.Millisecond)).Do(func(ctx context.Context) error { return ctx.Err() })
	}
	if errors.Is(err, dbmutex.ErrNotAcquired) || errors.Is(err, dbmutex.ErrTimeout) {
		return nil
	}
	return err
}

// A server that cannot prepare statements for a while gets the release later.
func TestAReleaseGoesOnWhileTheServerPreparesNothing(t *testing.T) {
	t.Parallel()
	server := testdb.MySQL(t).NewServer(t)
	root := testdb.MySQLAt(server.DSN()).Open(t)
	require.NoError(t, root.Exec(`CREATE DATABASE locks`).Error)
	config, err := driver.ParseDSN(server.DSN())
	require.NoError(t, err)
	config.DBName = "locks"
	db := testdb.MySQLAt(config.FormatDSN()).Mutexes(t, dbmutex.DefaultSettings())
	lease := acquire(t, db, "job")
	require.NoError(t, root.Exec(`SET GLOBAL max_prepared_stmt_count = 0`).Error)
	err = lease.Release()
	require.NoError(t, root.Exec(`SET GLOBAL max_prepared_stmt_count = 16382`).Error)
	require.ErrorContains(t, err, "it goes on in the background")
	require.Eventually(t, func() bool { return row(t, db, "job") == nil }, time.Minute, 10*time.Millisecond)
}
