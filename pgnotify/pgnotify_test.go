package pgnotify

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestListenHearsOfReleases(t *testing.T) {
	db := testdb.Postgres(t).Mutexes(t, dbmutex.DefaultSettings())
	pool, err := db.DB()
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ready, heard, ended := make(chan struct{}), make(chan string, 10), make(chan error, 1)
	go func() {
		ended <- listen(ctx, pool, []string{"dbmutex"}, func() { close(ready) }, func(_, payload string) { heard <- payload })
	}()
	<-ready
	work := func(context.Context) error { return nil }
	require.NoError(t, db.Mutex("never expires", dbmutex.WithoutTTL()).Do(work)) // does not notify
	require.NoError(t, db.Mutex("job's id, 'quoted'").Do(work))
	select {
	case payload := <-heard:
		require.Regexp(t, `^\d+ job's id, 'quoted'$`, payload)
	case <-ctx.Done():
		require.Fail(t, "no notification")
	}
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
}

func TestListenNeedsPgx(t *testing.T) {
	pool, err := testdb.SQLite(t).Open(t).DB()
	require.NoError(t, err)
	err = listen(context.Background(), pool, []string{"dbmutex"}, nil, nil)
	require.ErrorContains(t, err, "not pgx")
}

func TestAPoolerInTransactionModeIsFoundOut(t *testing.T) {
	cluster := testdb.NewCluster(t)
	pool, err := sql.Open("pgx", cluster.PgBouncer(t)+" default_query_exec_mode=exec")
	require.NoError(t, err)
	defer func() { require.NoError(t, pool.Close()) }()
	ready := func() { t.Error("it takes itself for one that hears") }
	err = listen(context.Background(), pool, []string{"dbmutex"}, ready, func(string, string) {})
	require.ErrorIs(t, err, errUnproven)

	for range 10 {
		var channels int
		require.NoError(t, pool.QueryRow(`SELECT count(*) FROM pg_listening_channels()`).Scan(&channels))
		require.Zero(t, channels, "a stranger's session listens")
	}
}
