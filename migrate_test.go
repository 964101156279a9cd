package dbmutex_test

import (
	"context"
	"log"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

type customer struct {
	ID   int64
	Name string `gorm:"size:100;uniqueIndex"`
}

type payment struct {
	ID         int64
	CustomerID int64
	Customer   customer
	Amount     int `gorm:"index;not null"`
}

func TestMigrateFromEveryReplicaAtOnce(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		const replicas, rounds = 12, 8
		var dbs []*dbmutex.DB
		for range replicas {
			dbs = append(dbs, d.Registered(t, dbmutex.Settings{SkipHeld: true, MinHold: time.Hour}))
		}
		for range rounds {
			var wg sync.WaitGroup
			start := make(chan struct{})
			for _, db := range dbs {
				wg.Go(func() {
					<-start
					if err := db.WithContext(limited(t)).Migrate(&customer{}, &payment{}); err != nil {
						t.Error(err)
					}
				})
			}
			close(start)
			wg.Wait()
			require.NoError(t, dbs[0].Create(&payment{Customer: customer{Name: "one"}, Amount: 1}).Error)
			exercise(t, open(t, d))
			require.NoError(t, dbs[0].Migrator().DropTable(&payment{}, &customer{}, &dbmutex.DBMutex{}))
		}
	})
}

func TestMigrateWaitsUntilTheContextIsDone(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		acquire(t, db, "dbmutex.Migrate")
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, db.WithContext(ctx).Migrate(&customer{}), context.DeadlineExceeded)
		require.False(t, db.Migrator().HasTable(&customer{}))
		require.NoError(t, db.WithContext(limited(t)).Migrate(), "the lock's own table needs no turn")
	})
}

func TestMigrateLogsNoError(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out := &logs{}
		db := d.Registered(t, dbmutex.DefaultSettings(), &gorm.Config{Logger: out.logger(logger.Warn)})
		require.NoError(t, db.Migrate(&customer{}), "there is no table yet")
		require.NoError(t, db.Migrate(&customer{}))
		require.Empty(t, out.String())
	})
}

func TestMigrateGivesTheModelsError(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		type broken struct {
			Name string `gorm:"type:no((such type"`
		}
		err := db.Migrate(&broken{})
		require.ErrorContains(t, err, "syntax")
		require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		requireFree(t, db, "dbmutex.Migrate")
	})
}

func TestMigrateKeepsTheTableFromShrinking(t *testing.T) {
	t.Parallel()
	db := openDSN(t, testdb.Postgres(t).DSN)
	require.NoError(t, db.Migrate())
	require.NoError(
		t,
		db.Exec(
			`INSERT INTO db_mutexes (lock_id, creation_time, holder, lease_id)
			SELECT n, now(), '', n FROM generate_series(1, 5000) n`,
		).Error,
	)
	require.NoError(t, db.Exec(`DELETE FROM db_mutexes`).Error)
	require.NoError(t, db.Exec(`VACUUM ANALYZE db_mutexes`).Error)
	var plan string
	require.NoError(t, db.Raw(`EXPLAIN SELECT FROM db_mutexes WHERE lock_id = 'job'`).Scan(&plan).Error)
	require.Contains(t, plan, "Index")

	require.NoError(t, db.Exec(`ALTER TABLE db_mutexes SET (vacuum_truncate = on)`).Error)
	require.NoError(t, db.Migrate())
	var options string
	require.NoError(t, db.Raw(`SELECT reloptions::text FROM pg_class WHERE oid = 'db_mutexes'::regclass`).Scan(&options).Error)
	require.Equal(t, "{vacuum_truncate=on}", options, "what somebody has set stays")
}

func TestMigrateByARoleThatDoesNotOwnTheTable(t *testing.T) {
	t.Parallel()
	dsn := testdb.NewCluster(t).DSN()
	owner := openDSN(t, dsn)
	require.NoError(t, owner.AutoMigrate(&dbmutex.DBMutex{})) // which leaves something to set
	for _, statement := range []string{
		`CREATE ROLE guest`, `GRANT ALL ON SCHEMA public TO guest`, `GRANT ALL ON ALL TABLES IN SCHEMA public TO guest`,
		`GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO guest`,
	} {
		require.NoError(t, owner.Exec(statement).Error)
	}
	guest := openDSN(t, withSetting(dsn, "role", "guest"))
	require.NoError(t, guest.Migrate())
	requireFree(t, guest, "job")
}

func TestReplicasMigrateANewDatabaseInSilence(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		out := &logs{}
		logging := logger.New(log.New(out, "", 0), logger.Config{LogLevel: logger.Error})
		var wg sync.WaitGroup
		for range 8 {
			db := d.Registered(t, dbmutex.DefaultSettings(), &gorm.Config{Logger: logging})
			wg.Go(func() {
				if err := db.Migrate(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.Empty(t, out.String())
	})
}

func TestMigrateWaitsForOtherReplicasInSilence(t *testing.T) {
	t.Parallel()
	waits := func(k *testdb.Kind) bool { return k.Migrating != "" }
	testdb.EachOf(t, waits, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		out := &logs{}
		logging := logger.New(log.New(out, "", 0), logger.Config{LogLevel: logger.Warn, SlowThreshold: 400 * time.Millisecond})
		db := d.Registered(t, dbmutex.DefaultSettings(), &gorm.Config{Logger: logging})
		other := d.Open(t).Begin()
		require.NoError(t, other.Exec(d.Migrating).Error)
		done := make(chan error, 1)
		go func() { done <- db.Migrate() }()
		time.Sleep(time.Second)
		require.Empty(t, done)
		require.NoError(t, other.Commit().Error)
		require.NoError(t, <-done)
		require.Empty(t, out.String())
	})
}
