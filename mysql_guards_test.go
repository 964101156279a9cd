package dbmutex_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// Nobody else asks for these ids, so that none is ever held, whatever its neighbours do.
func TestAMutexThatNobodyHasIsNotCalledHeld(t *testing.T) {
	for _, kind := range []string{"new", "free"} {
		t.Run(kind, func(t *testing.T) {
			d := testdb.MySQL(t)
			open(t, d)
			var wg sync.WaitGroup
			var mu sync.Mutex
			failures := map[string]int{}
			for g := range 16 {
				db := d.Registered(t, dbmutex.DefaultSettings())
				wg.Go(func() {
					for i := range 60 {
						id := fmt.Sprintf("%04d %02d", i, g)
						if kind == "free" {
							id = fmt.Sprintf("%02d", g)
						}
						lease, err := db.Mutex(id).Acquire()
						if err == nil && rand.N(2) == 0 {
							err = db.Gorm.Transaction(lease.ReleaseIn)
						}
						if err == nil {
							err = lease.Release()
						}
						if err != nil {
							mu.Lock()
							failures[err.Error()]++
							mu.Unlock()
						}
					}
				})
			}
			wg.Wait()
			require.Empty(t, failures)
		})
	}
}

// Several guards, and nested ones, in one transaction.
func TestGuardsAndSavepointsInOneTransaction(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		db := open(t, d)
		one, two := acquire(t, db, "one"), acquire(t, db, "two")
		require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error {
			require.NoError(t, one.Guard(tx))
			require.NoError(t, tx.SavePoint("own").Error)
			require.NoError(t, two.Guard(tx))
			require.NoError(t, tx.Transaction(func(tx *gorm.DB) error { return one.Guard(tx) }))
			require.NoError(t, tx.RollbackTo("own").Error)
			require.NoError(t, one.Guard(tx))
			return two.ReleaseIn(tx)
		}))
		require.NoError(t, db.Mutex("three").Transaction(func(tx *gorm.DB) error {
			lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
			require.NoError(t, one.Guard(tx))
			require.NoError(t, lease.Guard(tx))
			require.NoError(t, tx.Transaction(func(tx *gorm.DB) error { return one.Guard(tx) }))
			return one.ReleaseIn(tx)
		}))
		require.NoError(t, one.Release())
		require.NoError(t, two.Release())
		requireFree(t, db, "one")
		requireFree(t, db, "two")
		requireFree(t, db, "three")
	})
}
