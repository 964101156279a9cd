package dbmutex_test

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// CREATE INDEX CONCURRENTLY waits until every older snapshot has gone. A lock that kept a transaction open, or waited within
// a statement, could delay it for as long.
func TestIndexesAreMadeConcurrentlyWhileAMutexIsHeldAndWaitedFor(t *testing.T) {
	t.Parallel()
	d := testdb.PostgresAt(testdb.NewCluster(t).DSN()) // of its own, as other tests keep transactions open
	db, other := open(t, d).WithContext(limited(t)), open(t, d).WithContext(limited(t))
	require.NoError(t, db.Migrate(&customer{}))
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // also if the test fails, and then after the release
	lease := acquire(t, db, "job", dbmutex.WithRenewal())
	const waiters = 4
	for _, process := range []*dbmutex.DB{db, other} {
		for range waiters {
			wg.Go(func() {
				if err := process.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing); err != nil {
					t.Error(err)
				}
			})
		}
		require.Eventually(t, func() bool { return dbmutex.Waiters(process.Mutex("job")) == waiters },
			time.Minute, time.Millisecond)
	}

	var begin time.Time
	require.NoError(t, db.Raw(`SELECT clock_timestamp()`).Scan(&begin).Error)
	for _, statement := range []string{
		`CREATE INDEX CONCURRENTLY made_meanwhile ON customers (name)`, // by a program, on a table of its own
		`REINDEX TABLE CONCURRENTLY customers`,
		`REINDEX TABLE CONCURRENTLY db_mutexes`, // by an operator
	} {
		require.NoError(t, db.Exec(statement).Error, statement)
	}
	var invalid int
	require.NoError(t, db.Raw(`SELECT count(*) FROM pg_index WHERE NOT indisvalid`).Scan(&invalid).Error)
	require.Zero(t, invalid)
	require.Eventually(t, func() bool { // a transaction may have no snapshot
		var older int
		err := db.Raw(`SELECT count(*) FROM pg_stat_activity
			WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND xact_start < ?`, begin).Scan(&older).Error
		return err == nil && older == 0
	}, 20*time.Second, 10*time.Millisecond, "a transaction stays open")

	require.NoError(t, lease.Renew())
	require.NoError(t, lease.Release())
	wg.Wait()
	requireFree(t, db, "job")
}
