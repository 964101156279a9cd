//go:build unix

package faults_test

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/faults"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// The tests of this file break a database server of their own.

func TestItSurvivesACrashOfTheServer(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		s := d.NewServer(t, d.Unhurried...)
		d = s.Database()
		require.NoError(t, open(t, d).Exec(`CREATE TABLE lost (id integer)`).Error)
		if d.AsyncCommit[0] == "" {
			survives(t, s, d)
			return
		}
		for _, setting := range d.AsyncCommit[1:] {
			t.Run(setting, func(t *testing.T) { survives(t, s, d.With(d.AsyncCommit[0], setting)) })
		}
		db := openDSN(t, d.With(d.AsyncCommit[0], d.AsyncCommit[1]).DSN)
		require.NoError(t, db.Exec(`INSERT INTO lost VALUES (1)`).Error)
		crash(t, s)
		var n int
		reconnect(t, db)
		require.NoError(t, db.Raw(`SELECT count(*) FROM lost`).Scan(&n).Error)
		require.Zero(t, n, "the test can tell what is lost")
	})
}

func crash(t *testing.T, s *testdb.Server) {
	t.Helper()
	s.Stop(t, "immediate")
	s.Start(t)
}

func survives(t *testing.T, s *testdb.Server, d *testdb.Database) {
	db := d.Registered(t, dbmutex.DefaultSettings()).WithContext(limited(t))
	// Each is the last that the server does before its crash. Any commit that waits would save earlier ones, too.
	last := map[string]func() (lease *dbmutex.Lease){
		"acquire": func() *dbmutex.Lease { return acquire(t, db, "acquire") },
		"take-over": func() *dbmutex.Lease {
			acquire(t, db, "take-over")
			testdb.Expire(t, db, "take-over")
			return acquire(t, db, "take-over")
		},
		"renew": func() *dbmutex.Lease {
			lease := acquire(t, db, "renew")
			require.NoError(t, testdb.Taken(db.Gorm).Where("lock_id = ?", "renew").
				Update("expires_at", time.Now().Add(time.Minute)).Error) // so that a renewal which is lost shows
			require.NoError(t, lease.Renew())
			return lease
		},
	}
	var leases []*dbmutex.Lease
	for name, do := range last {
		leases = append(leases, do())
		crash(t, s)
		requireHeldAfterRestart(t, db, name)
		expires := row(t, db, name).ExpiresAt
		require.Greater(t, time.Until(*expires), dbmutex.DefaultTTL/2, name)
	}
	for _, lease := range leases {
		requireHeld(t, db, lease.LockID())
		require.NoError(t, lease.Context().Err(), "the crash was no loss")
		require.NoError(t, lease.Renew())
		require.NoError(t, lease.Release())
	}

	once := db.Once("done", time.Hour)
	require.NoError(t, once.Do(nothing))
	crash(t, s)
	reconnect(t, db)
	requireRecord(t, once, true)
	require.NoError(t, once.Forget())
	crash(t, s)
	reconnect(t, db)
	requireRecord(t, once, false)

	lease := acquire(t, db, "never expires", dbmutex.WithoutTTL())
	require.NoError(t, lease.Release())
	crash(t, s)
	require.Nil(t, rowAfterRestart(t, db, "never expires"), "nobody could take it over")

	require.NoError(t, db.Mutex("released").ForceRelease())
	lease = acquire(t, db, "released", dbmutex.WithTTL(5*time.Second))
	require.NoError(t, lease.Release())
	crash(t, s)
	require.Equal(t, d.AsyncRelease, rowAfterRestart(t, db, "released") != nil, "the release was lost")
	next, err := db.Mutex("released", dbmutex.WithWait(dbmutex.Forever)).Acquire()
	require.NoError(t, err, "which costs a TTL at the most")
	require.Greater(t, next.Token(), lease.Token())
	require.NoError(t, next.Release())
}

// reconnect lets the pool find out that its connections are gone.
func reconnect(t *testing.T, db *dbmutex.DB) {
	t.Helper()
	require.Eventually(t, func() bool { return db.Exec(`SELECT 1`).Error == nil }, time.Minute, time.Millisecond)
}

func rowAfterRestart(t *testing.T, db *dbmutex.DB, id string) *dbmutex.DBMutex {
	t.Helper()
	reconnect(t, db)
	return row(t, db, id)
}

func requireHeldAfterRestart(t *testing.T, db *dbmutex.DB, id string) {
	t.Helper()
	reconnect(t, db)
	requireHeld(t, db, id)
}

func TestACrashWhileHeldRenewedAndWaitedFor(t *testing.T) {
	t.Parallel()
	faults.OnServer(t, func(t *testing.T, s *testdb.Server, db *dbmutex.DB) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // some servers are slow to come back
		defer cancel()
		waited := make(chan error, 1)
		asked := questions(t, db)
		var last int64
		require.NoError(
			t,
			db.Mutex("job", dbmutex.WithTTL(45*time.Second), dbmutex.WithRenewal()).Do(func(held context.Context) error {
				lease, _ := dbmutex.LeaseFrom(held)
				last = lease.Token()
				first, _ := lease.ExpiresAt()
				before := asked.Load()
				go func() {
					waited <- db.WithContext(ctx).Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing)
				}()
				require.Eventually(t, func() bool { return asked.Load() > before }, time.Minute, time.Millisecond)
				s.Stop(t, "immediate")
				require.Error(t, lease.Renew(), "the server is away")
				s.Start(t)
				require.Eventually(
					t, func() bool { now, _ := lease.ExpiresAt(); return now.After(first) }, time.Minute, time.Millisecond,
				)
				return held.Err()
			}),
			"the crash was no loss",
		)
		if err := <-waited; err != nil { // it asked while the server was away
			require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
			require.NotErrorIs(t, err, context.DeadlineExceeded)
		}
		lease := acquire(t, db, "job")
		require.Greater(t, lease.Token(), last)
	})
}

// acquireForGood is for a lease whose server will be gone when the test ends.
func acquireForGood(t *testing.T, db *dbmutex.DB, id string) *dbmutex.Lease {
	t.Helper()
	lease, err := db.Mutex(id).Acquire()
	require.NoError(t, err)
	return lease
}

// https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION
func TestItSurvivesAFailoverToASynchronousStandby(t *testing.T) {
	t.Parallel()
	faults.OnCluster(t, func(t *testing.T, c *testdb.Cluster, db *dbmutex.DB) {
		standby := c.Standby(t, "standby")
		c.Set(t, "synchronous_standby_names = 'standby'")
		reconnect(t, db)
		require.Eventually(t, func() bool {
			var state string
			require.NoError(t, db.Raw(`SELECT coalesce(max(sync_state), '') FROM pg_stat_replication`).Scan(&state).Error)
			return state == "sync"
		}, time.Minute, 10*time.Millisecond)
		var leases []*dbmutex.Lease
		for _, setting := range []string{"on", "off", "remote_apply"} {
			db := openDSN(t, withSetting(c.DSN(), "synchronous_commit", setting))
			for _, id := range []string{"one", "two"} {
				lease := acquireForGood(t, db, setting+" "+id)
				require.NoError(t, lease.Renew())
				leases = append(leases, lease)
			}
		}
		require.Error(t, openDSN(t, standby.DSN()).Mutex("job").Do(nothing), "a standby locks nothing")

		c.Stop(t, "immediate")
		standby.Promote(t)
		promoted := openDSN(t, standby.DSN())
		var last int64
		for _, lease := range leases {
			requireHeld(t, promoted, lease.LockID())
			last = max(last, lease.Token())
		}
		require.Greater(t, acquireForGood(t, promoted, "job").Token(), last)
	})
}

// What the documentation says cannot be had: an asynchronous standby may not know of the last leases.
func TestAFailoverToAnAsynchronousStandbyLosesLeases(t *testing.T) {
	t.Parallel()
	faults.OnCluster(t, func(t *testing.T, c *testdb.Cluster, db *dbmutex.DB) {
		standby := c.Standby(t, "standby")
		reconnect(t, db)
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
		acquireForGood(t, db, "known")
		var lsn string
		require.NoError(t, db.Raw(`SELECT pg_current_wal_flush_lsn()`).Scan(&lsn).Error)
		behind := openDSN(t, standby.DSN())
		require.Eventually(t, func() bool {
			var replayed bool
			require.NoError(t, behind.Raw(`SELECT pg_last_wal_replay_lsn() >= ?::pg_lsn`, lsn).Scan(&replayed).Error)
			return replayed
		}, time.Minute, 10*time.Millisecond)
		standby.Stop(t, "fast")

		lost := acquireForGood(t, db, "lost")
		require.NoError(t, db.Mutex("payment").Transaction(func(tx *gorm.DB) error {
			return tx.Exec(`INSERT INTO made VALUES (1)`).Error
		}))
		c.Stop(t, "immediate")
		standby.Start(t)
		standby.Promote(t)

		promoted := openDSN(t, standby.DSN())
		requireHeld(t, promoted, "known")
		second := acquireForGood(t, promoted, "lost")
		require.NoError(t, lost.Context().Err(), "two holders: the first believes in its lease until it asks")
		require.NoError(t, second.Context().Err())
		var n int
		require.NoError(t, promoted.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
		require.Zero(t, n, "what a Transaction did is lost with its lease")
	})
}

func TestStepsOfTheServersClock(t *testing.T) {
	t.Parallel()
	faults.OnServer(t, func(t *testing.T, s *testdb.Server, db *dbmutex.DB) {
		clock := s.Clock(t)
		reconnect(t, db)
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
		db = db.WithContext(limited(t))
		dbNow := func() time.Time { return row(t, db, acquire(t, db, rand.Text()).LockID()).CreationTime }

		// Forward: leases end early, and somebody else may come in. The holder is told, and Transaction is not fooled.
		held := acquire(t, db, "forward")
		err := db.Mutex("forward tx").Transaction(func(tx *gorm.DB) error {
			require.NoError(t, tx.Exec(`INSERT INTO made VALUES (1)`).Error)
			clock.Set(t, time.Hour)
			require.InDelta(t, time.Now().Add(time.Hour).Unix(), dbNow().Unix(), 120)
			acquire(t, db, "forward tx")
			return nil
		})
		require.ErrorIs(t, err, dbmutex.ErrTimeout)
		var n int
		require.NoError(t, db.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
		require.Zero(t, n)
		next := acquire(t, db, "forward")
		require.Greater(t, next.Token(), held.Token())
		require.ErrorIs(t, held.Renew(), dbmutex.ErrTimeout)
		require.ErrorIs(t, held.Release(), dbmutex.ErrTimeout)

		// Nobody came in, so nothing is lost. But the mutex was free for a moment, and no renewal changes that.
		early := acquire(t, db, "nobody came")
		clock.Set(t, 2*time.Hour)
		_ = timeoutOf(t, early.Renew(), "nobody came", true)
		requireEnds(t, early.Context())
		_ = timeoutOf(t, early.Release(), "nobody came", false)
		early = acquire(t, db, "nobody came")
		clock.Set(t, 3*time.Hour)
		require.NoError(t, early.Release(), "it never heard of that")
		clock.Set(t, 2*time.Hour)

		// Back: leases last longer, by as much. Nobody gets in early, and a renewal puts it right.
		renewed, crashed := acquire(t, db, "renewed"), acquire(t, db, "crashed")
		clock.Set(t, time.Hour)
		requireHeld(t, db, "renewed")
		requireHeld(t, db, "crashed")
		require.NoError(t, renewed.Renew())
		require.Less(t, row(t, db, "renewed").ExpiresAt.Sub(dbNow()), dbmutex.DefaultTTL+time.Minute)
		require.Greater(t, row(t, db, "crashed").ExpiresAt.Sub(dbNow()), dbmutex.DefaultTTL+50*time.Minute)
		require.NoError(t, renewed.Release())
		require.NoError(t, crashed.Release(), "releases heed no clock")
		lease := acquire(t, db, "renewed")
		require.Greater(t, lease.Token(), renewed.Token(), "nor do tokens")
	})
}

// A SQLite file's clock is that of the machine, which is each process's own.
func TestStepsOfSQLitesClock(t *testing.T) {
	t.Parallel()
	d := testdb.SQLite(t)
	db := open(t, d)
	held := acquire(t, db, "job")
	clock := testdb.NewClock(t)
	try := func() string {
		p := testprocess.Start(t, d, "try", clock.Environment(t)...)
		defer p.End(t)
		return p.Line(t)
	}
	clock.Set(t, -time.Hour)
	require.Equal(t, "held", try())
	clock.Set(t, 10*time.Minute)
	require.Equal(t, "held", try())
	clock.Set(t, time.Hour)
	require.Equal(t, "acquired and released", try())
	require.ErrorIs(t, held.Release(), dbmutex.ErrTimeout)
}

func TestReadOnlyAfterAFailover(t *testing.T) {
	t.Parallel()
	faults.OnServer(t, func(t *testing.T, s *testdb.Server, _ *dbmutex.DB) {
		d := s.Database().Ordinary(t)
		setting, refusal := d.ReadOnly[0], d.ReadOnly[1]
		db := d.Registered(t, dbmutex.DefaultSettings())
		lease := acquire(t, db, "held", dbmutex.WithTTL(time.Minute))
		before, _ := lease.ExpiresAt()
		readOnly := func(on bool) {
			s.Set(t, setting+" = "+map[bool]string{false: "off", true: "on"}[on])
			require.Eventually(t, func() bool {
				return on == (db.Exec(`UPDATE db_mutexes SET holder = holder WHERE false`).Error != nil)
			}, time.Minute, time.Millisecond)
		}
		readOnly(true)
		for _, err := range []error{
			db.Mutex("job").Do(func(context.Context) error { panic("ran") }),
			lease.Renew(),
			lease.Release(),
			db.Mutex("held").ForceRelease(),
		} {
			require.ErrorContains(t, err, refusal)
			require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
			require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		}
		after, _ := lease.ExpiresAt()
		require.Equal(t, before, after)
		readOnly(false)
		require.NoError(t, lease.Release(), "it may be called again")
		requireFree(t, db, "held")
	})
}

func TestAFullDisk(t *testing.T) {
	t.Parallel()
	t.Run("tmpfs", func(t *testing.T) {
		faults.OnServer(t, func(t *testing.T, s *testdb.Server, db *dbmutex.DB) {
			disk := smallDisk(t)
			s.Move(t, disk+"/data")
			t.Cleanup(func() { s.Stop(t, "immediate") })
			full(t, db,
				func() (err error) {
					for i := 0; i < 100 && err == nil; i++ { // each alone: MariaDB dies if there is no room to roll back
						err = db.Exec(`INSERT INTO filler VALUES (1, repeat('x', 1000))`).Error
					}
					return err
				},
				func() error { return db.Exec(`DROP TABLE filler`).Error })
		})
	})
	t.Run("a SQLite file", func(t *testing.T) {
		db := open(t, testdb.SQLite(t))
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1)
		full(t, db,
			func() error { return db.Exec(`PRAGMA max_page_count = 8`).Error },
			func() error { return db.Exec(`PRAGMA max_page_count = 1000000`).Error })
	})
}

// full acquires mutexes until the disk is full.
func full(t *testing.T, db *dbmutex.DB, fill, empty func() error) {
	first := acquire(t, db, "first")
	var failed error
	var leases []*dbmutex.Lease
	for range 100_000 {
		_ = fill()
		lease, err := db.Mutex(rand.Text(), dbmutex.WithHolder(rand.Text()+rand.Text()+rand.Text()+rand.Text())).Acquire()
		if failed = err; err != nil {
			break
		}
		leases = append(leases, lease)
	}
	require.Error(t, failed, "the disk is full")
	require.NotErrorIs(t, failed, dbmutex.ErrNotAcquired)
	require.NotErrorIs(t, failed, dbmutex.ErrTimeout)
	requireHeld(t, db, "first")
	require.NoError(t, first.Context().Err())
	t.Logf("after %d leases: %v", len(leases), failed)

	require.NoError(t, empty())
	require.NoError(t, first.Renew())
	require.NoError(t, first.Release())
	for _, lease := range leases {
		require.NoError(t, lease.Release())
	}
	var n int64
	require.NoError(t, testdb.Taken(db.Gorm).Count(&n).Error)
	require.Zero(t, n, "what failed has left nothing")
	requireFree(t, db, "first")
}

// smallDisk mounts a file system of 2 MiB that a server may write to; the test is skipped if it may not.
func smallDisk(t *testing.T) string {
	folder, err := os.MkdirTemp("/tmp", "dbmutex-disk-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.Remove(folder) })
	out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=2m,mode=0777", "tmpfs", folder).CombinedOutput()
	if err != nil {
		t.Skipf("mounting a small file system: %v, %s", err, out)
	}
	t.Cleanup(func() {
		out, err := exec.Command("umount", folder).CombinedOutput()
		require.NoError(t, err, "%s", out)
	})
	return folder
}

func TestPgBouncerInTransactionMode(t *testing.T) {
	t.Parallel()
	faults.OnCluster(t, func(t *testing.T, c *testdb.Cluster, db *dbmutex.DB) {
		type customer struct {
			ID   int64
			Name string `gorm:"size:100;uniqueIndex"`
		}
		pooler := c.PgBouncer(t)
		for _, mode := range []string{"exec", "simple_protocol"} { // as the README says
			t.Run(mode, func(t *testing.T) {
				pooled := openDSN(t, withSetting(pooler, "default_query_exec_mode", mode))
				other := openDSN(t, withSetting(pooler, "default_query_exec_mode", mode)).WithContext(limited(t))
				require.NoError(t, pooled.Migrate(&customer{}))
				exercise(t, pooled)

				lease := acquire(t, pooled, "job", dbmutex.WithTTL(time.Second), dbmutex.WithRenewal())
				waited := make(chan error, 1)
				go func() { waited <- other.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing) }()
				first, _ := lease.ExpiresAt()
				require.Eventually(
					t, func() bool { now, _ := lease.ExpiresAt(); return now.After(first) }, time.Minute, time.Millisecond,
				)
				require.NoError(t, lease.Release())
				require.NoError(t, <-waited, "without LISTEN, by asking")

				for range 20 { // more than the pooler has connections
					acquire(t, pooled, rand.Text())
				}
				errWork := errors.New("failed")
				require.ErrorIs(t, pooled.Mutex("job").Transaction(func(tx *gorm.DB) error { return errWork }), errWork)
				require.NoError(t, pooled.Mutex("job").Transaction(func(tx *gorm.DB) error { return tx.Exec(`SELECT 1`).Error }))
				require.Nil(t, row(t, db, "job"))
			})
		}
	})
}
