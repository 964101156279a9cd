package faults_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/faults"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

// requireRecord says whether work is done, and gives its record.
func requireRecord(t *testing.T, o *dbmutex.Once, done bool) *dbmutex.DBOnce {
	t.Helper()
	record, err := o.Done()
	require.NoError(t, err)
	require.Equal(t, done, record != nil)
	return record
}

func TestAOnceIsSettledWhereverItBreaks(t *testing.T) {
	t.Parallel()
	for name, id := range map[string]func() string{"a new id": rand.Text, "a known id": func() string { return "job" }} {
		t.Run(name, func(t *testing.T) {
			faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
				id, ran := id(), 0
				var token int64
				arm(func() {})
				value, err := dbmutex.OnceValue(proxied.Once(id, time.Hour), func(ctx context.Context) (int, error) {
					ran++
					lease, _ := dbmutex.LeaseFrom(ctx)
					token = lease.Token()
					return 7, ctx.Err()
				})
				require.NoError(t, err, "its own record is no loss of the lease")
				require.Equal(t, 7, value)
				require.Equal(t, 1, ran)
				record := requireRecord(t, direct.Once(id, time.Hour), true)
				require.Equal(t, token, record.Token)
				require.Equal(t, "7", string(record.Result))
				require.NoError(t, direct.Once(id, time.Hour).Forget())
			})
		})
	}
}

func TestARecordIsReadWhereverItBreaks(t *testing.T) {
	t.Parallel()
	faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		value, err := dbmutex.OnceValue(direct.Once("job", time.Hour), func(context.Context) (int, error) { return 7, nil })
		require.NoError(t, err)
		require.Equal(t, 7, value)
		before := requireRecord(t, direct.Once("job", time.Hour), true)
		arm(func() {})
		value, err = dbmutex.OnceValue(proxied.Once("job", time.Hour), func(context.Context) (int, error) { panic("ran") })
		require.NoError(t, err)
		require.Equal(t, 7, value)
		require.Equal(t, before, requireRecord(t, direct.Once("job", time.Hour), true), "nothing is written")
	})
}

func TestForgetIsSettledWhereverItBreaks(t *testing.T) {
	t.Parallel()
	faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		once := direct.Once("job", time.Hour)
		require.NoError(t, once.Do(nothing))
		requireRecord(t, once, true)
		arm(func() {})
		require.NoError(t, proxied.Once("job", time.Hour).Forget())
		requireRecord(t, once, false)
	})
}

func TestAOncesTransactionIsSettledWhereverItBreaks(t *testing.T) {
	t.Parallel()
	var committed, rolledBack int
	faults.Positions(t, func(t *testing.T, direct, proxied *dbmutex.DB, arm func(func())) {
		require.NoError(t, direct.Exec(`CREATE TABLE IF NOT EXISTS made (id integer)`).Error)
		require.NoError(t, direct.Exec(`DELETE FROM made`).Error)
		once := direct.Once("job", time.Hour)
		arm(func() {})
		err := proxied.Once("job", time.Hour).Transaction(func(tx *gorm.DB) error {
			return tx.Exec(`INSERT INTO made VALUES (1)`).Error
		})
		var n int
		require.NoError(t, direct.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
		if err == nil {
			require.Equal(t, 1, n)
			requireRecord(t, once, true)
			committed++
		} else {
			require.Zero(t, n)
			require.NotErrorIs(t, err, dbmutex.ErrTimeout)
			require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
			require.NotContains(t, err.Error(), "unknown")
			requireRecord(t, once, false)
			require.NoError(t, once.Do(nothing), "others may try at once")
			rolledBack++
		}
		require.NoError(t, once.Forget())
	})
	if committed+rolledBack > 0 {
		require.Positive(t, rolledBack, "some statements of the transaction were lost")
	}
}

func TestALateRecordBringsNothingBack(t *testing.T) {
	faults.OnNetwork(t, func(t *testing.T, direct, proxied *dbmutex.DB, network *proxy.Proxy) {
		require.NoError(t, proxied.Once("warm", time.Hour).Do(nothing))
		late := false
		network.Choose(func(statement string) *proxy.Fault {
			if late || !does(network, statement, "record") {
				return nil
			}
			late = true
			return &proxy.Fault{Late: time.Hour}
		})
		once := direct.Once("job", time.Hour)
		require.NoError(t, proxied.Once("job", time.Hour).Do(nothing), "another request records it")
		require.True(t, late)
		first := requireRecord(t, once, true)
		require.NoError(t, once.Forget())
		network.Deliver()
		requireRecord(t, once, false)
		require.NoError(t, once.Do(nothing))
		require.Greater(t, requireRecord(t, once, true).Token, first.Token)
	})
}

// It had a record to forget, which is gone.
func TestALateForgetSparesALaterRecord(t *testing.T) {
	faults.OnNetwork(t, func(t *testing.T, direct, proxied *dbmutex.DB, network *proxy.Proxy) {
		once := direct.Once("job", time.Hour)
		require.NoError(t, proxied.Once("warm", time.Hour).Do(nothing))
		require.NoError(t, proxied.Once("warm", time.Hour).Forget())
		require.NoError(t, once.Do(nothing))
		late := false
		network.Choose(func(statement string) *proxy.Fault {
			if late || !does(network, statement, "release") {
				return nil
			}
			late = true
			return &proxy.Fault{Late: time.Hour}
		})
		require.NoError(t, proxied.Once("job", time.Hour).Forget())
		require.True(t, late)
		requireRecord(t, once, false)
		require.NoError(t, once.Do(nothing))
		network.Deliver()
		requireRecord(t, once, true)
	})
}

// The first request that was to record the success is lost, and somebody else runs before the second.
func TestARecordThatFindsAnotherRunInItsPlaceIsALoss(t *testing.T) {
	faults.OnNetwork(t, func(t *testing.T, direct, proxied *dbmutex.DB, network *proxy.Proxy) {
		require.NoError(t, proxied.Once("warm", time.Hour).Do(nothing))
		once, lost := direct.Once("job", time.Hour), false
		network.Choose(func(statement string) *proxy.Fault {
			if lost || !does(network, statement, "record") {
				return nil
			}
			lost = true
			if err := errors.Join(once.ForceRelease(), once.Do(nothing)); err != nil {
				t.Error(err)
			}
			return &proxy.Fault{Unsent: true}
		})
		var token int64
		err := proxied.Once("job", time.Hour).Do(func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			token = lease.Token()
			return nil
		})
		testdb.RequireTimeout(t, err, "job", true)
		require.True(t, lost)
		require.Greater(t, requireRecord(t, once, true).Token, token)
	})
}

func TestALateRecordIsKeptNoLonger(t *testing.T) {
	faults.OnNetwork(t, func(t *testing.T, direct, proxied *dbmutex.DB, network *proxy.Proxy) {
		require.NoError(t, proxied.Once("warm", time.Hour).Do(nothing))
		late := false
		network.Choose(func(statement string) *proxy.Fault {
			if late || !does(network, statement, "record") {
				return nil
			}
			late = true
			return &proxy.Fault{Late: time.Hour}
		})
		require.NoError(t, proxied.Once("job", time.Hour).Do(nothing))
		before := requireRecord(t, direct.Once("job", time.Hour), true)
		network.Deliver()
		require.Equal(t, before.ExpiresAt, requireRecord(t, direct.Once("job", time.Hour), true).ExpiresAt)
	})
}

// The children's Once.
func init() {
	tasks["once"] = testprocess.WithMutexes(func(db *dbmutex.DB, stdin io.Reader) error {
		err := db.Once("job", time.Hour, dbmutex.WithTTL(shortTTL), dbmutex.WithRenewal()).Do(func(context.Context) error {
			fmt.Println("holds")
			_, _ = io.Copy(io.Discard, stdin)
			return nil
		})
		fmt.Println("Do:", err)
		return nil
	})
	tasks["once in a transaction"] = testprocess.WithMutexes(func(db *dbmutex.DB, stdin io.Reader) error {
		return db.Once("job", time.Hour, dbmutex.WithTTL(shortTTL)).Transaction(func(tx *gorm.DB) error {
			err := tx.Exec(`INSERT INTO made VALUES (1)`).Error
			fmt.Println("holds")
			_, _ = io.Copy(io.Discard, stdin)
			return err
		})
	})
}

func TestAOnceWhoseProcessIsKilledRunsAgain(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
		once := db.WithContext(limited(t)).Once("job", time.Hour, dbmutex.WithWait(dbmutex.Forever))
		for _, task := range []string{"once", "once in a transaction"} {
			p := testprocess.Start(t, d, task)
			require.Equal(t, "holds", p.Line(t))
			require.ErrorIs(t, db.Once("job", time.Hour).Do(nothing), dbmutex.ErrNotAcquired)
			p.Kill(t)
			ran := errors.New("ran")
			require.ErrorIs(t, once.Do(func(context.Context) error { return ran }), ran, "%s", task)
			requireRecord(t, once, false)
		}
		require.NoError(t, once.Transaction(func(tx *gorm.DB) error { return tx.Exec(`INSERT INTO made VALUES (1)`).Error }))
		var n int
		require.NoError(t, db.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
		require.Equal(t, 1, n, "of three tries one has an effect")
	})
}

// A waiter of another process gets the record as soon as it asks again.
func TestWaitersOfOtherProcessesGetTheRecord(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		p := testprocess.Start(t, d, "once")
		require.Equal(t, "holds", p.Line(t))
		outcomes := make(chan error, 3)
		for range cap(outcomes) {
			go func() {
				once := db.WithContext(limited(t)).Once("job", time.Hour, dbmutex.WithWait(dbmutex.Forever))
				outcomes <- once.Do(func(context.Context) error { return errors.New("ran") })
			}()
		}
		p.CloseInput(t)
		require.Equal(t, "Do: <nil>", p.Line(t))
		require.NoError(t, p.Wait())
		for range cap(outcomes) {
			require.NoError(t, <-outcomes)
		}
		requireRecord(t, db.Once("job", time.Hour), true)
	})
}
