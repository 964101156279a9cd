package drivers_test

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// openPgxpool opens a PostgreSQL database through a pgxpool that has one connection, as a program does that also uses pgx
// by itself.
func openPgxpool(t *testing.T, d *testdb.Database, prepare bool) (*dbmutex.DB, *sql.DB, *pgxpool.Pool) {
	t.Helper()
	config, err := pgxpool.ParseConfig(d.DSN)
	require.NoError(t, err)
	config.MaxConns = 1
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	standard := stdlib.OpenDBFromPool(pool)
	t.Cleanup(func() { require.NoError(t, standard.Close()) })
	db := d.MutexesOn(t, standard, dbmutex.DefaultSettings(), &gorm.Config{PrepareStmt: prepare})
	return db.WithContext(limited(t)), standard, pool
}

func eachPgxpool(t *testing.T, test func(t *testing.T, d *testdb.Database, prepare bool)) {
	for _, prepare := range []bool{false, true} {
		t.Run(fmt.Sprintf("prepare=%t", prepare), func(t *testing.T) { test(t, testdb.Postgres(t), prepare) })
	}
}

func TestAPgxpoolOfOneConnectionIsEnough(t *testing.T) {
	eachPgxpool(t, func(t *testing.T, d *testdb.Database, prepare bool) {
		db, _, pool := openPgxpool(t, d, prepare)
		testdb.Exercise(t, db)

		require.NoError(t, db.Migrate(&payment{}))
		require.NoError(t, db.Mutex("job", dbmutex.WithRenewal()).Do(func(ctx context.Context) error {
			conn, err := pool.Acquire(ctx) // the lease has not kept it
			require.NoError(t, err)
			_, err = conn.Exec(ctx, `INSERT INTO payments (amount) VALUES (1)`)
			conn.Release()
			return err
		}))
		require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error { return tx.Create(&payment{Amount: 2}).Error }))
		var amounts []int
		require.NoError(t, db.Model(&payment{}).Order("amount").Pluck("amount", &amounts).Error)
		require.Equal(t, []int{1, 2}, amounts)
	})
}

func TestWaitersTakeTurnsThroughPgxpoolsOfOneConnection(t *testing.T) {
	eachPgxpool(t, func(t *testing.T, d *testdb.Database, prepare bool) {
		const processes, goroutines, rounds = 2, 3, 10
		var inside atomic.Int32
		var wg sync.WaitGroup
		for range processes {
			db, _, _ := openPgxpool(t, d, prepare)
			for range goroutines {
				wg.Go(func() {
					for range rounds {
						err := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(func(context.Context) error {
							defer inside.Add(-1)
							if inside.Add(1) > 1 {
								t.Error("two holders")
							}
							return db.Exec(`SELECT 1`).Error
						})
						if err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
		}
		wg.Wait()
	})
}

func TestNoVerbRunsInATransactionThatWasLeftOpenInAPgxpool(t *testing.T) {
	eachPgxpool(t, func(t *testing.T, d *testdb.Database, prepare bool) {
		db, standard, _ := openPgxpool(t, d, prepare)
		leave := func() {
			t.Helper()
			conn, err := standard.Conn(limited(t))
			require.NoError(t, err)
			_, err = conn.ExecContext(limited(t), `BEGIN; UPDATE db_mutexes SET holder = holder`)
			require.NoError(t, err)
			require.NoError(t, conn.Close())
		}
		other := d.Registered(t, dbmutex.DefaultSettings()).WithContext(limited(t))
		leave()
		lease, err := db.Mutex("job").Acquire()
		require.NoError(t, err)
		testdb.RequireHeld(t, other, "job")
		leave()
		require.NoError(t, lease.Renew())
		leave()
		require.NoError(t, lease.Release())
		testdb.RequireFree(t, other, "job")
	})
}
