package dbmutex_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// A transaction that has lost its lease does not stand in the way of the next holder's.
func TestATransactionThatLostItsLeaseIsNoDeadlock(t *testing.T) {
	for _, rows := range []int{1, 50} {
		t.Run(fmt.Sprint(rows), func(t *testing.T) {
			d := testdb.MySQL(t)
			db := open(t, d).WithContext(limited(t))
			require.NoError(t, db.Exec(`CREATE TABLE counters (id integer PRIMARY KEY, n integer)`).Error)
			require.NoError(t, db.Exec(`INSERT INTO counters VALUES (1, 0)`).Error)
			next := make(chan error, 1)
			err := db.Mutex("job").Transaction(func(tx *gorm.DB) error {
				for i := range rows - 1 {
					require.NoError(t, tx.Exec(`INSERT INTO counters VALUES (?, 0)`, i+2).Error)
				}
				require.NoError(t, tx.Exec(`UPDATE counters SET n = n + 1 WHERE id = 1`).Error)
				testdb.Expire(t, db, "job")
				lease := acquire(t, db, "job")
				go func() {
					next <- db.Gorm.Transaction(func(tx *gorm.DB) error {
						if err := lease.Guard(tx); err != nil {
							return err
						}
						return tx.Exec(`UPDATE counters SET n = n + 1 WHERE id = 1`).Error
					})
				}()
				waitForLockWait(t, d)
				return nil
			})
			require.NoError(t, <-next, "the next holder's")
			require.ErrorIs(t, err, dbmutex.ErrTimeout)
			require.NotContains(t, err.Error(), "1213")
		})
	}
}

// TestDeadlocks races, if SCEPTIC is set.
func TestDeadlocks(t *testing.T) {
	if os.Getenv("SCEPTIC") == "" {
		t.Skip()
	}
	server := testdb.MySQL(t).NewServer(t, "innodb_print_all_deadlocks = ON", "innodb_flush_log_at_trx_commit = 2")
	for _, level := range []string{"READ-UNCOMMITTED", "READ-COMMITTED", "REPEATABLE-READ", "SERIALIZABLE"} {
		for _, ids := range []string{"one id", "16 ids", "new ids"} {
			t.Run(level+" "+ids, func(t *testing.T) { race(t, server.DSN(), level, ids) })
		}
	}
	log, err := os.ReadFile("/dev/null")
	_ = log
	require.NoError(t, err)
}

func race(t *testing.T, dsn, level, ids string) {
	name := "s" + strings.ToLower(strings.NewReplacer("-", "", " ", "").Replace(level+ids))
	root := testdb.MySQLAt(dsn).Open(t)
	require.NoError(t, root.Exec(`CREATE DATABASE `+name).Error)
	var version string
	require.NoError(t, root.Raw(`SELECT VERSION()`).Scan(&version).Error)
	variable := "transaction_isolation"
	if strings.Contains(version, "MariaDB") {
		variable = "tx_isolation"
	}
	dsn = strings.Replace(dsn, "/?", "/"+name+"?", 1)
	d := withParam(t, dsn, variable, "'"+level+"'")
	admin := open(t, d)
	require.NoError(t, admin.Exec(`CREATE TABLE counters (id varchar(64) PRIMARY KEY, n integer)`).Error)
	deadlocks := func() (n int) {
		require.NoError(t, root.Raw(`SELECT count FROM information_schema.innodb_metrics WHERE name = 'lock_deadlocks'`).Scan(&n).Error)
		return n
	}
	before := deadlocks()
	var ops, tries, helds, renews, guards, transactions, timeouts, takeovers, swept, adminErrs, works atomic.Int64
	var mu sync.Mutex
	failures := map[string]int{}
	fail := func(what string, err error) {
		text := what + ": " + err.Error()
		mu.Lock()
		defer mu.Unlock()
		failures[text[:min(len(text), 300)]]++
	}
	last := map[string]int64{}
	seen := func(id string) int64 { mu.Lock(); defer mu.Unlock(); return last[id] }
	won := func(id string, token, least int64) {
		mu.Lock()
		defer mu.Unlock()
		if token <= least {
			failures[fmt.Sprintf("TOKEN FELL: %d after %d", token, least)]++
		}
		last[id] = max(last[id], token)
	}
	var fresh atomic.Int64
	choose := func() string {
		switch ids {
		case "one id":
			return "job"
		case "16 ids":
			return fmt.Sprintf("job %02d", rand.N(16))
		}
		if rand.N(4) == 0 {
			fresh.Add(1)
		}
		return fmt.Sprintf("job %08d", fresh.Load()*2+int64(rand.N(8)))
	}
	end := time.Now().Add(4 * time.Second)
	var wg sync.WaitGroup
	for range 16 {
		db := d.Registered(t, dbmutex.DefaultSettings())
		wg.Go(func() {
			for time.Now().Before(end) {
				ops.Add(1)
				id := choose()
				ttl := time.Minute
				if rand.N(4) == 0 {
					ttl = time.Millisecond
				}
				least := seen(id)
				opts := []dbmutex.Option{dbmutex.WithTTL(ttl)}
				if rand.N(4) == 0 {
					transactions.Add(1)
					inWork := false
					err := db.Mutex(id, opts...).Transaction(func(tx *gorm.DB) error {
						inWork = true
						lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
						won(id, lease.Token(), least)
						err := tx.Exec(`INSERT INTO counters VALUES (?, 1) ON DUPLICATE KEY UPDATE n = n + 1`, id).Error
						if err != nil {
							works.Add(1)
							return errWork
						}
						inWork = false
						return nil
					})
					switch {
					case err == nil:
					case errors.Is(err, dbmutex.ErrNotAcquired):
						helds.Add(1)
					case errors.Is(err, dbmutex.ErrTimeout):
						timeouts.Add(1)
						if strings.Contains(err.Error(), "Error 1") {
							fail("transaction, timeout", err)
						}
					case errors.Is(err, errWork):
					default:
						fail(fmt.Sprint("transaction ", inWork), err)
					}
					continue
				}
				tries.Add(1)
				lease, err := db.Mutex(id, opts...).Acquire()
				if errors.Is(err, dbmutex.ErrNotAcquired) {
					helds.Add(1)
					continue
				}
				if err != nil {
					fail("acquire", err)
					continue
				}
				won(id, lease.Token(), least)
				switch rand.N(4) {
				case 0:
					renews.Add(1)
					if err := lease.Renew(); err != nil && !errors.Is(err, dbmutex.ErrTimeout) {
						fail("renew", err)
					}
				case 1, 2:
					guards.Add(1)
					tx := db.Gorm.Begin()
					if tx.Error != nil {
						fail("begin", tx.Error)
						break
					}
					err := lease.Guard(tx)
					if err != nil && !errors.Is(err, dbmutex.ErrTimeout) {
						fail("guard", err)
					}
					if err == nil {
						if rand.N(2) == 0 {
							if err := lease.ReleaseIn(tx); err != nil && !errors.Is(err, dbmutex.ErrTimeout) {
								fail("release in", err)
							}
						}
						if err := tx.Commit().Error; err != nil && tx.Error == nil {
							fail("commit", err)
						}
					}
				}
				err = lease.Release()
				if errors.Is(err, dbmutex.ErrTimeout) {
					timeouts.Add(1)
					var timeout *dbmutex.TimeoutError
					if errors.As(err, &timeout) && timeout.Lost {
						takeovers.Add(1)
					}
				} else if err != nil {
					fail("release", err)
				}
			}
		})
	}
	wg.Go(func() { // an hour passes for rows that are free
		for time.Now().Before(end) {
			var rows []int64
			if err := admin.Raw(`SELECT id FROM db_mutexes WHERE lease_id = '' ORDER BY rand() LIMIT 8`).Scan(&rows).Error; err != nil {
				adminErrs.Add(1)
			}
			for _, id := range rows {
				err := admin.Exec(`UPDATE db_mutexes SET expires_at = expires_at - INTERVAL 2 HOUR WHERE id = ? AND lease_id = ''`, id).Error
				if err != nil {
					adminErrs.Add(1)
				}
			}
			time.Sleep(2 * time.Millisecond)
		}
	})
	wg.Wait()
	var left int64
	require.NoError(t, admin.Model(&dbmutex.DBMutex{}).Count(&left).Error)
	var maxID int64
	require.NoError(t, admin.Raw(`SELECT COALESCE(MAX(id), 0) FROM db_mutexes`).Scan(&maxID).Error)
	swept.Store(maxID - left)
	t.Logf("%s %s %s: ops %d, tries %d, held %d, guards %d, renews %d, transactions %d, timeouts %d (lost %d), rows left %d of ids to %d; "+
		"deadlocks in the server %d; errors of the work %d, of the admin %d; failures %v",
		version, level, ids, ops.Load(), tries.Load(), helds.Load(), guards.Load(), renews.Load(), transactions.Load(), timeouts.Load(),
		takeovers.Load(), left, maxID, deadlocks()-before, works.Load(), adminErrs.Load(), failures)
}

var (
	_ context.Context
	_ sql.IsolationLevel
)
