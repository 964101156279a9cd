package dbmutex_test

import (
	"errors"
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

// lockedOut is a SQLite file in the mode that is SQLite's default, and a reader that keeps writers from committing, which
// not every driver follows with a rollback.
func lockedOut(t *testing.T, opts ...gorm.Option) (db, other *dbmutex.DB, read func() (end func())) {
	d := testdb.SQLite(t)
	require.NoError(t, d.Open(t).Exec(`PRAGMA journal_mode = DELETE`).Error)
	db, other = openTwice(t, d, opts...)
	require.NoError(t, db.Exec(`PRAGMA busy_timeout = 10`).Error)
	require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
	pool, err := other.DB()
	require.NoError(t, err)
	pool.SetMaxOpenConns(1)
	require.NoError(t, other.Exec(`PRAGMA busy_timeout = 0`).Error)
	return db, other, func() func() {
		reader := d.Open(t).Begin()
		var n int
		require.NoError(t, reader.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
		return func() { require.NoError(t, reader.Rollback().Error) }
	}
}

func TestTheProgramsOwnCommitThatIsLockedOut(t *testing.T) {
	t.Parallel()
	for _, prepare := range []bool{false, true} {
		db, other, read := lockedOut(t, &gorm.Config{PrepareStmt: prepare, Logger: logger.Discard})
		fail := func() {
			t.Helper()
			end := read()
			err := db.Gorm.Transaction(func(tx *gorm.DB) error { return tx.Exec(`INSERT INTO made VALUES (1)`).Error })
			require.ErrorContains(t, err, "locked")
			end()
		}
		fail()
		lease := acquire(t, db, "job")
		requireHeld(t, other, "job")
		fail()
		require.NoError(t, lease.Renew())
		fail()
		require.NoError(t, lease.Release())
		require.Nil(t, row(t, other, "job"))
		fail()
		require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error {
			return tx.Exec(`INSERT INTO made VALUES (2)`).Error
		}))
		var ids []int
		require.NoError(t, other.Raw(`SELECT id FROM made`).Scan(&ids).Error)
		require.Equal(t, []int{2}, ids)
	}
}

func TestTransactionsCommitThatIsLockedOut(t *testing.T) {
	t.Parallel()
	for _, prepare := range []bool{false, true} {
		out := &logs{}
		db, other, read := lockedOut(t, &gorm.Config{PrepareStmt: prepare, Logger: out.logger(logger.Warn)})
		end, deletes := func() {}, 0
		require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("test:end", func(tx *gorm.DB) {
			if strings.HasPrefix(tx.Statement.SQL.String(), "DELETE") {
				if deletes++; deletes == 2 { // the release on its own, once the COMMIT has failed
					end()
				}
			}
		}))
		err := db.Mutex("job").Transaction(func(tx *gorm.DB) error {
			end = read()
			return tx.Exec(`INSERT INTO made VALUES (1)`).Error
		})
		require.ErrorContains(t, err, "locked")
		require.Equal(t, 2, deletes)
		require.NoError(t, other.Exec(`INSERT INTO made VALUES (2)`).Error, "the file is not locked")
		require.Nil(t, row(t, other, "job"))
		require.NotContains(t, out.String(), warning, "the error has told of it")
		var ids []int
		require.NoError(t, db.Raw(`SELECT id FROM made`).Scan(&ids).Error)
		require.Equal(t, []int{2}, ids)
		exercise(t, db)
	}
}

func TestMigratesCommitThatIsLockedOut(t *testing.T) {
	t.Parallel()
	db, other, read := lockedOut(t)
	require.NoError(t, db.Migrator().DropTable(&dbmutex.DBMutex{}))
	end, tries := read(), 0
	require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("test:end", func(tx *gorm.DB) {
		if strings.HasPrefix(tx.Statement.SQL.String(), "CREATE TABLE") {
			if tries++; tries == 2 {
				end()
			}
		}
	}))
	require.NoError(t, db.Migrate())
	require.Equal(t, 2, tries)
	requireFree(t, other, "job")
}

func TestAStatementThatIsLockedOutLeavesNoTransaction(t *testing.T) {
	t.Parallel()
	out := &logs{}
	db, other, read := lockedOut(t, &gorm.Config{Logger: out.logger(logger.Warn)})
	var end atomic.Pointer[func()]
	tries := 0
	endAfterThree := func(tx *gorm.DB) {
		if strings.HasPrefix(tx.Statement.SQL.String(), "SELECT") {
			return
		}
		if tries++; tries == 4 {
			(*end.Load())()
		}
	}
	require.NoError(t, db.Callback().Row().Before("gorm:row").Register("test:end", endAfterThree))
	require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("test:end", endAfterThree))
	lockOut := func() {
		tries = 0
		ended := read()
		end.Store(&ended)
	}
	lockOut()
	lease := acquire(t, db, "job")
	requireHeld(t, other, "job")
	lockOut()
	require.NoError(t, lease.Renew())
	lockOut()
	require.NoError(t, lease.Release())
	require.Nil(t, row(t, other, "job"))
	require.NotContains(t, out.String(), warning)
}

func TestSQLiteWithARollbackJournal(t *testing.T) {
	t.Parallel()
	d := testdb.SQLite(t)
	db := open(t, d)
	require.NoError(t, db.Exec(`PRAGMA journal_mode = DELETE`).Error)
	exercise(t, db)
	var timeout int
	require.NoError(t, db.Exec(`PRAGMA busy_timeout = 1234`).Error)
	pool, err := db.DB()
	require.NoError(t, err)
	pool.SetMaxOpenConns(1)
	exercise(t, db)
	require.NoError(t, db.Raw(`PRAGMA busy_timeout`).Scan(&timeout).Error)
	require.Equal(t, 1234, timeout, "left as it was")
}

func TestReadersDoNotStarveARollbackJournal(t *testing.T) {
	t.Parallel()
	d := testdb.SQLite(t)
	db := open(t, d)
	require.NoError(t, db.Exec(`PRAGMA journal_mode = DELETE`).Error)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		reader := open(t, d)
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				tx := reader.Begin()
				var n int
				tx.Raw(`SELECT count(*) FROM db_mutexes`).Scan(&n)
				time.Sleep(10 * time.Millisecond)
				tx.Rollback()
			}
		})
	}
	for range 5 {
		lease := acquire(t, db, "job")
		require.NoError(t, lease.Renew())
		require.NoError(t, lease.Release())
	}
	close(stop)
	wg.Wait()
}

// rollbackJournal opens a SQLite file in the mode that is SQLite's default, and a reader that keeps writers from committing.
func rollbackJournal(t *testing.T) (db *dbmutex.DB, d *testdb.Database, read func() (end func())) {
	d = testdb.SQLite(t)
	db = open(t, d)
	require.NoError(t, db.Exec(`PRAGMA journal_mode = DELETE`).Error)
	return db, d, func() func() {
		reader := d.Open(t).Begin()
		var n int
		require.NoError(t, reader.Raw(`SELECT count(*) FROM db_mutexes`).Scan(&n).Error)
		return func() { require.NoError(t, reader.Rollback().Error) }
	}
}

func TestATakeOverThatIsNotCommittedIsNone(t *testing.T) {
	t.Parallel()
	db, d, read := rollbackJournal(t)
	old := acquire(t, db, "job")
	testdb.Expire(t, db, "job")
	end := read()
	requirePinned(t, db, d, "job")
	end()
	require.Greater(t, acquire(t, db, "job").Token(), old.Token())
}

func TestAnAcquireThatIsNotCommittedIsNone(t *testing.T) {
	t.Parallel()
	db, d, read := rollbackJournal(t)
	dbs := []*dbmutex.DB{db, open(t, d), open(t, d)}
	for range 3 {
		end := read()
		outcomes := make(chan error, len(dbs))
		for _, db := range dbs {
			go func() {
				_, err := db.Mutex("job").Acquire()
				outcomes <- err
			}()
		}
		time.Sleep(200 * time.Millisecond)
		end()
		holders := 0
		for range dbs {
			if err := <-outcomes; err == nil {
				holders++
			} else {
				require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
			}
		}
		require.Equal(t, 1, holders)
		require.NoError(t, db.Mutex("job").ForceRelease())
	}
}

func TestWaitingForAnotherWriterIsNotLogged(t *testing.T) {
	t.Parallel()
	d := testdb.SQLite(t)
	out := &logs{}
	db := open(t, d, &gorm.Config{Logger: out.logger(logger.Warn)})
	lease := acquire(t, db, "job")
	other := open(t, d).Begin()
	require.NoError(t, other.Exec(`CREATE TABLE made (id integer)`).Error)
	done := make(chan error, 1)
	go func() { done <- errors.Join(lease.Renew(), lease.Release()) }()
	time.Sleep(300 * time.Millisecond)
	require.NoError(t, other.Commit().Error)
	require.NoError(t, <-done)
	require.Empty(t, out.String())
}

// writing keeps SQLite's file from other writers for a while.
func writing(t *testing.T, d *testdb.Database, while time.Duration) (wait func()) {
	letGo := d.Hang(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(while)
		letGo()
	}()
	return func() { <-done }
}

func TestAMutexThatRanOutIsNotHeldWhileOthersWrite(t *testing.T) {
	t.Parallel()
	uses := map[string]func(m *dbmutex.Mutex) error{
		"do":          func(m *dbmutex.Mutex) error { return m.Do(nothing) },
		"transaction": func(m *dbmutex.Mutex) error { return m.Transaction(func(*gorm.DB) error { return nil }) },
	}
	for name, use := range uses {
		for _, by := range []string{"MinHold", "crash"} {
			d := testdb.SQLite(t)
			db := open(t, d)
			if by == "MinHold" {
				require.NoError(t, db.Mutex("job", dbmutex.WithMinHold(time.Minute)).Do(nothing))
			} else {
				acquire(t, db, "job")
			}
			testdb.Expire(t, db, "job")
			wait := writing(t, d, 300*time.Millisecond)
			holder, err := db.Mutex("job").Holder()
			require.NoError(t, err)
			require.Nil(t, holder)
			require.NoError(t, use(db.Mutex("job")), "%s, %s", name, by)
			wait()
		}
	}
}

func TestAWaitOutlastsAnotherWriter(t *testing.T) {
	t.Parallel()
	for name, use := range map[string]func(db *dbmutex.DB) error{
		"do": func(db *dbmutex.DB) error { return db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing) },
		"transaction": func(db *dbmutex.DB) error {
			return db.Mutex("job", dbmutex.WithWait(time.Minute)).Transaction(func(*gorm.DB) error { return nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := testdb.SQLite(t)
			db := open(t, d)
			defer writing(t, d, 7*time.Second)()
			require.NoError(t, use(db))
		})
	}
	t.Run("a wait that is over", func(t *testing.T) {
		t.Parallel()
		d := testdb.SQLite(t)
		db := open(t, d)
		letGo := d.Hang(t)
		err := db.Mutex("job", dbmutex.WithWait(6*time.Second)).Do(nothing)
		require.ErrorContains(t, err, "database is locked")
		require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
		letGo()
	})
}
