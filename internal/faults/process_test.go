//go:build unix

package faults_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// The tests of this file kill and pause processes that hold a mutex.

func TestAHolderThatIsKilled(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
		db = db.WithContext(limited(t))
		for _, task := range []string{"hold", "pay"} {
			p := testprocess.Start(t, d, task)
			require.Equal(t, "holds", p.Line(t))
			requireHeld(t, db, "job")
			p.Kill(t)
			began := time.Now()
			require.NoError(t, db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing))
			t.Logf("%s: free %v after the holder was killed, with a TTL of %v", task, time.Since(began), shortTTL)
			require.Nil(t, row(t, db, "job"))
		}
		var n int
		require.NoError(t, db.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
		require.Zero(t, n)
	})
}

func TestAHolderThatPausesBeyondItsLease(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		db = db.WithContext(limited(t))
		p := testprocess.Start(t, d, "hold")
		require.Equal(t, "holds", p.Line(t))
		require.NoError(t, p.Process.Signal(syscall.SIGSTOP))
		next, err := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
		require.NoError(t, err)
		require.NoError(t, p.Process.Signal(syscall.SIGCONT))
		p.CloseInput(t)
		// Its timer may not have had its turn yet, but Do knows at the latest.
		require.Contains(t, p.Line(t), "ended: ")
		require.Contains(t, p.Line(t), "Do: "+dbmutex.ErrTimeout.Error())
		require.NoError(t, p.Wait())
		require.NoError(t, next.Release(), "the late release leaves the successor alone")
	})
}

func TestATransactionThatPausesBeyondItsLease(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
		db = db.WithContext(limited(t))
		p := testprocess.Start(t, d, "pay")
		require.Equal(t, "holds", p.Line(t))
		require.NoError(t, p.Process.Signal(syscall.SIGSTOP))
		acquired := make(chan *dbmutex.Lease, 1)
		go func() {
			next, _ := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire()
			acquired <- next
		}()
		wantMade, outcome := 0, "Transaction: "+dbmutex.ErrTimeout.Error()
		if d.OneWriter { // nobody else can write until the transaction has ended
			time.Sleep(2 * shortTTL)
			wantMade, outcome = 1, "Transaction: <nil>"
		} else {
			acquired <- <-acquired
		}
		require.NoError(t, p.Process.Signal(syscall.SIGCONT))
		p.CloseInput(t)
		require.Contains(t, p.Line(t), outcome)
		require.NoError(t, p.Wait())
		next := <-acquired
		require.NotNil(t, next)
		require.NoError(t, next.Release())
		var n int
		require.NoError(t, db.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
		require.Equal(t, wantMade, n)
	})
}
