package dbmutex_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/schema"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// leaseContext is that of a transaction's lease.
func leaseContext(tx *gorm.DB) context.Context {
	lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
	return lease.Context()
}

func poolOf(t *testing.T, db *dbmutex.DB) *sql.DB {
	t.Helper()
	pool, err := db.DB()
	require.NoError(t, err)
	return pool
}

const short = 30 * time.Millisecond

func TestALateRunThatNobodyFollowedIsRecorded(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		once := db.Once("late", time.Hour, dbmutex.WithTTL(short))
		value, err := dbmutex.OnceValue(once, func(ctx context.Context) (string, error) {
			requireEnds(t, ctx)
			return "made", nil
		})
		requireTimeout(t, err, "late", false)
		require.Equal(t, "made", value)
		require.Equal(t, `"made"`, string(requireDone(t, once).Result))

		once = db.Once("late transaction", time.Hour, dbmutex.WithTTL(short))
		require.NoError(t, once.Transaction(func(tx *gorm.DB) error {
			requireEnds(t, leaseContext(tx))
			return nil
		}))
		requireDone(t, once)

		once = db.Once("late failure", time.Hour, dbmutex.WithTTL(short))
		err = once.Do(func(ctx context.Context) error {
			requireEnds(t, ctx)
			return errWork
		})
		require.ErrorIs(t, err, errWork)
		requireTimeout(t, err, "late failure", false)
		requireNotDone(t, once)
	})
}

func TestARunThatHasLostItsLeaseRecordsNothing(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		other := open(t, d).WithContext(limited(t))
		var token int64
		follow := func() {
			next := other.Once("lost", time.Hour, dbmutex.WithWait(dbmutex.Forever))
			require.NoError(t, next.Do(func(ctx context.Context) error {
				lease, _ := dbmutex.LeaseFrom(ctx)
				token = lease.Token()
				return nil
			}))
		}
		once := db.Once("lost", time.Hour, dbmutex.WithTTL(short))
		value, err := dbmutex.OnceValue(once, func(context.Context) (int, error) {
			follow()
			return 1, nil
		})
		requireTimeout(t, err, "lost", true)
		require.Equal(t, 1, value)
		record := requireDone(t, once)
		require.Equal(t, token, record.Token, "the record is the other's")
		require.Nil(t, record.Result)

		require.NoError(t, once.Forget())
		requireTimeout(t, once.Do(func(context.Context) error {
			follow()
			return once.Forget()
		}), "lost", true)
		requireNotDone(t, once)

		if !d.OneWriter { // there nobody can follow
			require.NoError(t, db.Exec(`CREATE TABLE effects (n integer)`).Error)
			requireTimeout(t, once.Transaction(func(tx *gorm.DB) error {
				err := tx.Exec(`INSERT INTO effects VALUES (1)`).Error
				follow()
				return err
			}), "lost", true)
			require.Equal(t, token, requireDone(t, once).Token)
			var n int64
			require.NoError(t, db.Table("effects").Count(&n).Error)
			require.Zero(t, n)
		}
	})
}

// What a statement has committed within stays, but there is no record that says that it was all.
func TestATransactionThatWasEndedWithinIsNotRecorded(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		require.NoError(t, db.Exec(`CREATE TABLE effects (n integer UNIQUE)`).Error)
		require.NoError(t, db.Exec(`INSERT INTO effects VALUES (0)`).Error)
		once := db.Once("effect", time.Hour)
		for i, end := range d.EndsWithin {
			err := once.Transaction(func(tx *gorm.DB) error {
				require.NoError(t, tx.Exec(`INSERT INTO effects VALUES (?)`, i+1).Error)
				tx.Session(&gorm.Session{Logger: logger.Discard}).Exec(end)
				return nil
			})
			require.ErrorIs(t, err, gorm.ErrInvalidTransaction, end)
			require.NotErrorIs(t, err, dbmutex.ErrTimeout, end)
			requireNotDone(t, once)
		}
		require.NoError(t, once.Transaction(func(tx *gorm.DB) error { return tx.Exec(`INSERT INTO effects VALUES (9)`).Error }),
			"others may try at once")
		requireDone(t, once)
	})
}

func TestARecordWaitsForGuards(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		var ended atomic.Bool
		other := open(t, d)
		guard := func(ctx context.Context) {
			ended.Store(false)
			tx := other.Begin()
			require.NoError(t, tx.Error)
			lease, _ := dbmutex.LeaseFrom(ctx)
			require.NoError(t, lease.Guard(tx))
			time.AfterFunc(100*time.Millisecond, func() {
				ended.Store(true)
				tx.Rollback()
			})
		}
		require.NoError(t, db.Once("done", time.Hour).Do(func(ctx context.Context) error {
			guard(ctx)
			return nil
		}))
		require.True(t, ended.Load())
		if !d.OneWriter { // there the guard would wait for the transaction
			require.NoError(t, db.Once("committed", time.Hour).Transaction(func(tx *gorm.DB) error {
				guard(leaseContext(tx))
				return nil
			}))
			require.True(t, ended.Load())
		}
	})
}

func TestASQLiteFileInUTFHasResults(t *testing.T) {
	t.Parallel()
	db := testdb.SQLite(t).Registered(t, dbmutex.DefaultSettings())
	poolOf(t, db).SetMaxOpenConns(1)
	require.NoError(t, db.Exec(`PRAGMA encoding = 'UTF-16'`).Error)
	require.NoError(t, db.Migrate())
	for range 2 {
		value, err := dbmutex.OnceValue(db.Once("job", time.Hour), func(context.Context) (string, error) { return "é𝄞", nil })
		require.NoError(t, err)
		require.Equal(t, "é𝄞", value)
	}
	var encoding string
	require.NoError(t, db.Raw(`PRAGMA encoding`).Scan(&encoding).Error)
	require.Contains(t, encoding, "UTF-16")
}

func TestWorkThatEndsItsOwnLeaseIsNotRecorded(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		once := db.Once("job", time.Hour)
		err := once.Do(func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			return lease.Release()
		})
		require.ErrorContains(t, err, "ended its own lease")
		require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		requireNotDone(t, once)

		releaseIn := func(ctx context.Context, end error) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			return db.Gorm.Transaction(func(tx *gorm.DB) error { return errors.Join(lease.ReleaseIn(tx), end) })
		}
		err = once.Do(func(ctx context.Context) error { return releaseIn(ctx, nil) })
		require.ErrorContains(t, err, "ended its own lease")
		require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		requireNotDone(t, once)

		require.NoError(t, once.Do(func(ctx context.Context) error {
			require.ErrorIs(t, releaseIn(ctx, errWork), errWork)
			return nil
		}), "that was rolled back")
		requireDone(t, once)
	})
}

func TestWaitersGetTheRecord(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		waitersGetTheRecord(t, "here", db.WithContext(limited(t)))
		waitersGetTheRecord(t, "there, too", db.WithContext(limited(t)), open(t, d).WithContext(limited(t)))
	})
}

func waitersGetTheRecord(t *testing.T, id string, handles ...*dbmutex.DB) {
	t.Helper()
	var runs atomic.Int32
	began, end := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wait := func(db *dbmutex.DB, verb func(o *dbmutex.Once) error) {
		wg.Go(func() {
			if err := verb(db.Once(id, time.Hour, dbmutex.WithWait(dbmutex.Forever))); err != nil {
				t.Error(err)
			}
		})
	}
	wait(handles[0], func(o *dbmutex.Once) error {
		value, err := dbmutex.OnceValue(o, func(context.Context) (int, error) {
			close(began)
			<-end
			return 7, nil
		})
		require.Equal(t, 7, value)
		return err
	})
	<-began
	for range 3 {
		for _, handle := range handles {
			wait(handle, func(o *dbmutex.Once) error { return o.Do(counting(&runs)) })
			wait(handle, func(o *dbmutex.Once) error {
				value, err := dbmutex.OnceValue(o, func(ctx context.Context) (int, error) { return 0, counting(&runs)(ctx) })
				if value != 7 {
					t.Errorf("%d", value)
				}
				return err
			})
			wait(handle, func(o *dbmutex.Once) error {
				return o.Transaction(func(tx *gorm.DB) error { return counting(&runs)(leaseContext(tx)) })
			})
		}
	}
	for _, handle := range handles {
		m := dbmutex.MutexOfOnce(handle.Once(id, time.Hour))
		rest := func() bool { return dbmutex.Waiters(m) == 9 && dbmutex.Receivable(m) }
		require.Eventually(t, rest, time.Minute, time.Millisecond)
	}
	close(end)
	wg.Wait()
	require.Zero(t, runs.Load())
}

// The head of the queue hangs, so that the other waiter never comes to ask.
func TestAWaiterThatNeverAskedGetsTheRecord(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		once := db.Once("job", time.Hour, dbmutex.WithWait(time.Second))
		dbmutex.JoinAsHead(t, dbmutex.MutexOfOnce(once))
		require.NoError(t, open(t, d).Once("job", time.Hour).Do(func(context.Context) error {
			require.ErrorIs(t, once.Do(nothing), dbmutex.ErrNotAcquired)
			return nil
		}))
		dbmutex.SawHeld(dbmutex.MutexOfOnce(once))
		require.NoError(t, once.Do(func(context.Context) error { return errWork }))
		require.NoError(t, once.Transaction(func(*gorm.DB) error { return errWork }))
	})
}

func TestARepeatedOnceIsOneTryThatWritesNothing(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		once := db.Once("job", time.Hour)
		require.NoError(t, once.Do(nothing))
		statements := func(db *dbmutex.DB, run func() error) (texts []string) {
			out := &logs{}
			traced := db.Session(&gorm.Session{Logger: out.logger(logger.Info)})
			*db = *traced
			require.NoError(t, run())
			for _, line := range strings.Split(out.String(), "\n") {
				if i := strings.Index(line, "[rows:"); i >= 0 {
					texts = append(texts, line[i:])
				}
			}
			return texts
		}
		held := *db
		acquire(t, db, "held")
		tries := statements(&held, func() error {
			_, err := held.Mutex("held").Acquire()
			require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
			return nil
		})
		repeated := *db
		require.Len(t, statements(&repeated, func() error { return repeated.Once("job", time.Hour).Do(nothing) }), len(tries))
		require.Len(t, tries, 1)

		observer := d.Open(t)
		pool, err := observer.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1)
		look := func() (seen []map[string]any) {
			require.NoError(t, observer.Raw(d.Written).Scan(&seen).Error)
			return seen
		}
		for giveUp := time.Now().Add(time.Minute); time.Now().Before(giveUp); { // others write now and then
			before := look()
			for range 10 {
				require.NoError(t, once.Do(nothing))
			}
			if reflect.DeepEqual(before, look()) {
				return
			}
		}
		require.Fail(t, "repeated runs wrote")
	})
}

func TestARecordIsKeptForAsLongAsItShould(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		for _, keep := range []time.Duration{time.Minute + 1, 24 * time.Hour, 100 * year, math.MaxInt64} {
			for verb, run := range map[string]func(*dbmutex.Once) error{
				"Do":          func(once *dbmutex.Once) error { return once.Do(nothing) },
				"Transaction": func(once *dbmutex.Once) error { return once.Transaction(func(*gorm.DB) error { return nil }) },
			} {
				once := db.Once(verb+keep.String(), keep)
				require.NoError(t, run(once))
				record := requireDone(t, once)
				requireLasts(t, keep, record.CreationTime, record.CreationTime.Add(time.Minute), *record.ExpiresAt)
				require.NoError(t, once.Do(func(context.Context) error { return errWork }))
			}
		}
	})
}

func TestIdsOfOncesAreComparedByteForByte(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		var runs atomic.Int32
		ids := []string{"job", "JOB", "job ", " job", "jöb", "jo\u0308b", "𝄞", strings.Repeat("𝄞", 256)}
		for range 2 {
			for _, id := range ids {
				require.NoError(t, db.Once(id, time.Hour).Do(counting(&runs)))
				require.Equal(t, id, requireDone(t, db.Once(id, time.Hour)).LockID)
			}
		}
		require.EqualValues(t, len(ids), runs.Load())
	})
}

func TestOnceOnAPoolOfOneConnection(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1)
		exerciseOnce(t, db)
		var wg sync.WaitGroup
		var runs atomic.Int32
		for range 8 {
			wg.Go(func() {
				once := db.WithContext(limited(t)).Once("many", time.Hour, dbmutex.WithWait(dbmutex.Forever))
				if err := once.Transaction(func(tx *gorm.DB) error { return counting(&runs)(leaseContext(tx)) }); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, runs.Load())
	})
}

func TestOnceUnderSettingsOfGORMs(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		for name, config := range map[string]*gorm.Config{
			"a prefix":            {NamingStrategy: schema.NamingStrategy{TablePrefix: "app_"}},
			"prepared statements": {PrepareStmt: true},
			"translated errors":   {TranslateError: true},
			"no transactions":     {SkipDefaultTransaction: true},
		} {
			config.Logger = logger.Discard
			db := open(t, d, config)
			t.Run(name, func(t *testing.T) { exerciseOnce(t, db) })
		}
		require.True(t, open(t, d).Migrator().HasTable("app_db_onces"))
	})
}

func TestTheTableOfOnceMayBeMissing(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out := &logs{}
		db := d.Registered(t, dbmutex.DefaultSettings(), &gorm.Config{Logger: out.logger(logger.Error)})
		require.NoError(t, db.AutoMigrate(&dbmutex.DBMutex{}))
		exercise(t, db)
		_, err := db.Prune()
		require.NoError(t, err)
		require.Empty(t, out.String())
		for verb, err := range map[string]error{
			"acquire":            db.Once("job", time.Hour).Do(nothing),
			"read the record of": func() error { _, err := db.Once("job", time.Hour).Done(); return err }(),
			"forget":             db.Once("job", time.Hour).Forget(),
			"list the leases":    func() error { _, err := db.Leases(dbmutex.LeaseQuery{Once: true}); return err }(),
		} {
			require.ErrorContains(t, err, "dbmutex: "+verb)
			require.ErrorContains(t, err, `table "db_onces" is missing: run AutoMigrate(&dbmutex.DBOnce{})`)
		}
		require.NoError(t, db.AutoMigrate(&dbmutex.DBMutex{}, &dbmutex.DBOnce{}))
		exerciseOnce(t, db)
		require.NoError(t, db.Migrate())
	})
}

// Whatever else may be lost on the way is in internal/faults. There is no way to SQLite, but the end of a context.
func TestARecordWhoseAnswerIsLostIsItsOwn(t *testing.T) {
	t.Parallel()
	db, pool := openFaulty(t, testdb.SQLite(t))
	var tries *atomic.Int32
	once := db.Once("job", time.Hour)
	require.NoError(t, once.Do(func(context.Context) error {
		tries = pool.after("COMMIT", func() error { return context.DeadlineExceeded })
		return nil
	}))
	require.Greater(t, tries.Load(), int32(1))
	requireDone(t, once)
}

func TestForgetSparesARecordThatIsMadeMeanwhile(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		once, other := db.Once("job", time.Hour), open(t, d).Once("job", time.Hour)
		require.NoError(t, once.Do(nothing))
		first, again := requireDone(t, once), false
		require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("again", func(tx *gorm.DB) {
			if !again && d.Verb(tx.Statement.SQL.String()) == "release" {
				again = true
				require.NoError(t, other.Forget())
				require.NoError(t, other.Do(nothing))
			}
		}))
		require.NoError(t, once.Forget())
		require.True(t, again)
		require.Greater(t, requireDone(t, once).Token, first.Token)
	})
}

func TestAForgetWhoseAnswerIsLostSparesALaterRecord(t *testing.T) {
	t.Parallel()
	eachFaulty(t, func(t *testing.T, db *dbmutex.DB, pool *faultyPool) {
		once, other := db.Once("job", time.Hour), open(t, pool.Database).Once("job", time.Hour)
		require.NoError(t, once.Do(nothing))
		first := requireDone(t, once)
		tries := pool.after("release", func() error {
			require.NoError(t, other.Do(nothing))
			return io.ErrUnexpectedEOF
		})
		require.NoError(t, once.Forget())
		require.Greater(t, tries.Load(), int32(1))
		require.Greater(t, requireDone(t, once).Token, first.Token)
	})
}

func TestNothingIsLeftOfAResultThatIsForgotten(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		once := db.Once("job", time.Hour)
		_, err := dbmutex.OnceValue(once, func(context.Context) (int, error) { return 7, nil })
		require.NoError(t, err)
		require.NoError(t, once.Forget())
		var n int64
		require.NoError(t, db.Model(&dbmutex.DBOnce{}).Where("result IS NOT NULL").Count(&n).Error)
		require.Zero(t, n)
	})
}

func TestPruningSparesWhatIsKeptOrRuns(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		testdb.Records(t, db, 250)
		testdb.ExpireOnces(t, db, false, "lock_id < 'many-00220'")
		once := db.Once("job", time.Hour)
		crashed := func(id string, longAgo bool) {
			_, err := dbmutex.MutexOfOnce(db.Once(id, time.Hour, dbmutex.WithTTL(time.Hour))).Acquire()
			require.NoError(t, err)
			testdb.ExpireOnces(t, db, longAgo, "lock_id = ?", id)
		}
		crashed("ran out", false)
		crashed("ran out long ago", true)
		rows := func() (n int64) {
			require.NoError(t, db.Model(&dbmutex.DBOnce{}).Where("lease_id <> ''").Count(&n).Error)
			return n
		}
		require.NoError(t, once.Do(func(context.Context) error {
			for _, want := range []int64{153, 53, 32, 32} {
				require.NoError(t, dbmutex.PruneRecords(once))
				require.Equal(t, want, rows())
			}
			return nil
		}))
		requireDone(t, once)
		requireDone(t, db.Once("many-00249", time.Hour))
		require.NotNil(t, testdb.OnceRow(t, db, "ran out"), "its work may be late")
		require.Nil(t, testdb.OnceRow(t, db, "ran out long ago"))
		removed, err := db.Prune()
		require.NoError(t, err)
		require.EqualValues(t, 1, removed-freeRows(t, d, removed))
		require.Nil(t, testdb.OnceRow(t, db, "ran out"))
		require.EqualValues(t, 31, rows())
	})
}

// freeRows is how many of the rows that Prune has removed may be free ones, of one row that is none.
func freeRows(t *testing.T, d *testdb.Database, removed int64) int64 {
	t.Helper()
	if d.KeepsTokens {
		return removed - 1
	}
	return 0
}

func TestTokensOfOncesGrowAfterPruning(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		last := int64(0)
		once := db.Once("job", time.Hour)
		for range 3 {
			for name, end := range map[string]func(){
				"forgotten": func() { require.NoError(t, once.Forget()) },
				"over":      func() { testdb.ExpireOnces(t, db, false, "lock_id = 'job'") },
				"pruned": func() {
					testdb.ExpireOnces(t, db, false, "lock_id = 'job'")
					require.NoError(t, dbmutex.PruneRecords(once))
					require.Nil(t, testdb.OnceRow(t, db, "job"))
				},
				"pruned by hand": func() {
					testdb.ExpireOnces(t, db, false, "lock_id = 'job'")
					_, err := db.Prune()
					require.NoError(t, err)
				},
			} {
				require.NoError(t, once.Do(nothing))
				token := requireDone(t, once).Token
				require.Greater(t, token, last, name)
				last = token
				end()
			}
		}
	})
}

func TestPruningPassesWhatIsLocked(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.ManyWriters, func(t *testing.T, d *testdb.Database) {
		db := open(t, d).WithContext(limited(t))
		testdb.Records(t, db, 3)
		testdb.ExpireOnces(t, db, false, "lock_id < 'many-00003'")
		tx := open(t, d).Begin()
		require.NoError(t, tx.Exec(`UPDATE db_onces SET holder = 'locked' WHERE lock_id = 'many-00001'`).Error)
		require.NoError(t, dbmutex.PruneRecords(db.Once("job", time.Hour)))
		require.Nil(t, testdb.OnceRow(t, db, "many-00000"))
		require.NotNil(t, testdb.OnceRow(t, db, "many-00001"))
		require.Nil(t, testdb.OnceRow(t, db, "many-00002"))
		require.NoError(t, tx.Rollback().Error)
	})
}

func TestPruningUsesTheIndex(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		testdb.Records(t, db, 3000)
		testdb.ExpireOnces(t, db, false, "lock_id < 'many-00010'")
		require.NoError(t, db.Exec(d.Analyze).Error)
		var statements []string
		note := func(tx *gorm.DB) { statements = append(statements, tx.Statement.SQL.String()) }
		require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("note", note))
		require.NoError(t, db.Callback().Row().Before("gorm:row").Register("note", note))
		require.NoError(t, dbmutex.PruneRecords(db.Once("job", time.Hour)))
		require.NotEmpty(t, statements)
		plans := catalog(t, d.Registered(t, dbmutex.DefaultSettings()), d.Explain+statements[0])
		require.Contains(t, plans, "idx_db_onces_expires_at", statements[0])
		require.Contains(t, strings.ReplaceAll(plans, `\u003c`, "<"), d.Searches)
		require.NotContains(t, plans, "Seq Scan")
	})
}

func TestOnceIsListed(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		require.NoError(t, db.Once("a done", time.Hour).Do(nothing))
		require.NoError(t, db.Once("b over", time.Hour).Do(nothing))
		testdb.ExpireOnces(t, db, false, "lock_id = 'b over'")
		acquire(t, db, "a mutex")
		require.NoError(t, db.Once("c runs", time.Hour).Do(func(context.Context) error {
			leases, err := db.Leases(dbmutex.LeaseQuery{Once: true})
			require.NoError(t, err)
			require.Len(t, leases, 2)
			require.Equal(t, []string{"a done", "c runs"}, []string{leases[0].LockID, leases[1].LockID})
			require.True(t, leases[0].Done())
			require.Equal(t, requireDone(t, db.Once("a done", time.Hour)).Token, leases[0].Token)
			require.False(t, leases[1].Done())
			var all []string
			for lease, err := range db.AllLeases(dbmutex.LeaseQuery{Once: true, State: dbmutex.LeasesAll, Limit: 1}) {
				require.NoError(t, err)
				all = append(all, fmt.Sprint(lease.LockID, " ", lease.Done(), lease.Expired()))
			}
			require.Equal(t, []string{"a done true false", "b over true true", "c runs false false"}, all)
			mutexes, err := db.Leases(dbmutex.LeaseQuery{})
			require.NoError(t, err)
			require.Len(t, mutexes, 1)
			require.False(t, mutexes[0].Done())
			return nil
		}))
	})
}

func TestARecordIsNotifiedOf(t *testing.T) {
	d := testdb.Postgres(t)
	db := open(t, d)
	conn, err := pgx.Connect(limited(t), d.DSN)
	require.NoError(t, err)
	_, err = conn.Exec(limited(t), `LISTEN dbmutex`)
	require.NoError(t, err)
	id := "notified " + rand.Text()
	require.NoError(t, db.Once(id, time.Hour).Do(nothing))
	notification, err := conn.WaitForNotification(limited(t))
	for err == nil && !strings.HasSuffix(notification.Payload, " "+id) { // another test's
		notification, err = conn.WaitForNotification(limited(t))
	}
	require.NoError(t, err)
	require.NoError(t, conn.Close(limited(t)))
}

func TestARecordThatMayNotNotifyIsMade(t *testing.T) {
	d := testdb.Postgres(t)
	out, refused := &logs{}, 0
	pool := &faultyPool{DB: poolOf(t, open(t, d)), Database: d}
	pool.refuse = func(statement string) error {
		if d.Verb(statement) == "record" && strings.Contains(statement, "pg_notify") {
			refused++
			return &sqlError{"54000"} // too many notifications in the queue
		}
		return nil
	}
	db := d.MutexesOn(t, pool, dbmutex.DefaultSettings(), &gorm.Config{Logger: out.logger(logger.Error)})
	once := db.Once("job", time.Hour)
	require.NoError(t, once.Do(nothing))
	requireDone(t, once)
	require.Equal(t, 1, refused)
	require.Empty(t, out.String())
}

func TestObserversAreToldOfOnces(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		var mu sync.Mutex
		var told []string
		db := open(t, d)
		observer := watching(func(e dbmutex.Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Previous != nil {
				t.Error("a record is no lease that ran out")
			}
			if e.Outcome != 0 {
				told = append(told, fmt.Sprint(e.Kind, ": ", e.Outcome, ", ", e.Once, ", ", e.Err))
			}
		})
		once := db.Once("job", time.Hour, dbmutex.WithObserver(observer))
		require.ErrorIs(t, once.Do(func(context.Context) error { return errWork }), errWork)
		require.NoError(t, once.Do(nothing))
		require.NoError(t, once.Do(nothing))
		testdb.ExpireOnces(t, db, false, "lock_id = 'job'")
		require.NoError(t, once.Transaction(func(*gorm.DB) error { return nil }))
		require.NoError(t, once.Transaction(func(*gorm.DB) error { return nil }))
		require.NoError(t, db.Mutex("job", dbmutex.WithObserver(observer)).Do(nothing))
		require.Equal(t, []string{
			"acquire ended: acquired, true, <nil>", "lease ended: released, true, <nil>",
			"acquire ended: acquired, true, <nil>", "lease ended: recorded, true, <nil>",
			"acquire ended: done, true, <nil>",
			"acquire ended: acquired, true, <nil>", "lease ended: recorded, true, <nil>",
			"acquire ended: done, true, <nil>",
			"acquire ended: acquired, false, <nil>", "lease ended: released, false, <nil>",
		}, told)
	})
}

// watching is an observer that adds nothing.
type watching func(dbmutex.Event)

// Observe tells of the event.
func (w watching) Observe(ctx context.Context, e dbmutex.Event) context.Context {
	w(e)
	return ctx
}

func TestAResultThatIsNoTextIsNotRecorded(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		once := db.Once("job", time.Hour)
		_, err := dbmutex.OnceValue(once, func(context.Context) (json.RawMessage, error) {
			return json.RawMessage("\"\xff\""), nil
		})
		require.ErrorIs(t, err, dbmutex.ErrInvalidResult)
		requireNotDone(t, once)
	})
}

// noon is a tick's time.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.FixedZone("somewhere", 3600))

func TestTickIsTheSameForClocksThatDiffer(t *testing.T) {
	t.Parallel()
	require.Equal(t, "job@2026-03-01T11:00:00Z", dbmutex.Tick("job", noon, time.Minute))
	for _, off := range []time.Duration{-29 * time.Second, -1, 1, 29 * time.Second} {
		require.Equal(t, dbmutex.Tick("job", noon, time.Minute), dbmutex.Tick("job", noon.Add(off), time.Minute), off)
	}
	require.NotEqual(t, dbmutex.Tick("job", noon, time.Minute), dbmutex.Tick("job", noon.Add(31*time.Second), time.Minute))
	for _, every := range []time.Duration{0, -time.Minute} {
		require.Equal(t, "job@2026-03-01T11:00:00.000000001Z", dbmutex.Tick("job", noon.Add(1), every))
	}
}

func TestTickIsTheSameWhereverTheMachineIs(t *testing.T) {
	for _, zone := range []string{"UTC", "Asia/Tokyo"} {
		p := testprocess.Start(t, testdb.SQLite(t), "tick", "TZ="+zone)
		require.Equal(t, "job@2026-03-01T11:00:00Z", p.Line(t), zone)
	}
}

func TestForceReleaseEndsARunAndSparesARecord(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		once, operator := db.Once("job", time.Hour, dbmutex.WithoutTTL()), open(t, d).Once("job", time.Hour)
		require.NoError(t, operator.ForceRelease(), "there is nothing")
		requireTimeout(t, once.Do(func(context.Context) error {
			require.ErrorIs(t, operator.Forget(), dbmutex.ErrNotAcquired)
			require.NoError(t, operator.ForceRelease())
			return nil
		}), "job", true)
		requireNotDone(t, once)
		require.NoError(t, operator.Do(nothing))
		require.NoError(t, operator.ForceRelease())
		requireDone(t, once)
	})
}

// oneTable gives every model the same.
type oneTable struct{ schema.NamingStrategy }

// TableName is that of every model.
func (oneTable) TableName(string) string { return "locks" }

func TestMutexesAndOncesNeedTablesOfTheirOwn(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		db := d.Registered(t, dbmutex.DefaultSettings(), &gorm.Config{NamingStrategy: oneTable{}})
		require.NoError(t, db.AutoMigrate(&dbmutex.DBMutex{}))
		require.NoError(t, db.Mutex("job").Do(nothing))
		require.NoError(t, db.Migrate())
		_, err := db.Prune()
		require.NoError(t, err)
		require.ErrorIs(t, db.Once("job", time.Hour).Do(nothing), dbmutex.ErrInvalidSettings)
		require.False(t, db.Migrator().HasColumn(&dbmutex.DBMutex{}, "result"))
	})
}
