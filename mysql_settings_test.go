package dbmutex_test

import (
	"context"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// The tests of this file run every verb on MySQL in sessions, and on tables, that somebody has set up in an unusual way.

func TestTriggersOnTheTable(t *testing.T) {
	t.Parallel()
	for event, body := range map[string]string{
		"BEFORE INSERT": `SET @x = 1`, "AFTER INSERT": `INSERT INTO audit (n) VALUES (LAST_INSERT_ID(7))`,
		"BEFORE UPDATE": `SET @x = 1`, "AFTER UPDATE": `INSERT INTO audit (n) VALUES (LAST_INSERT_ID(7))`,
	} {
		t.Run(event, func(t *testing.T) {
			db := open(t, testdb.MySQL(t))
			require.NoError(t, db.Exec(`CREATE TABLE audit (id bigint AUTO_INCREMENT PRIMARY KEY, n bigint)`).Error)
			require.NoError(t, db.Exec(`CREATE TRIGGER noting `+event+` ON db_mutexes FOR EACH ROW `+body).Error)
			exercise(t, db)
			last := int64(0)
			for _, opts := range [][]dbmutex.Option{nil, nil, {dbmutex.WithoutTTL()}} {
				lease := acquire(t, db, "job", opts...)
				require.Greater(t, lease.Token(), last)
				last = lease.Token()
				require.NoError(t, lease.Renew())
				testdb.Expire(t, db, "job")
				next := acquire(t, db, "job", opts...)
				require.Greater(t, next.Token(), last)
				last = next.Token()
				require.Equal(t, last, row(t, db, "job").Token)
				require.NoError(t, next.Renew())
				require.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout)
				require.NoError(t, next.Release())
				require.ErrorIs(t, next.Renew(), dbmutex.ErrTimeout)
			}
		})
	}
}

func TestTheSessionsTimeZoneAndTheDriversDoNotMatter(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	plain := open(t, d)
	locations := []string{"UTC", "Asia/Kolkata", "America/St_Johns", "Local"}
	for i, zone := range []string{"+00:00", "+05:30", "-11:30", "+12:59", "SYSTEM"} {
		for _, parse := range []string{"true", "false"} {
			location := locations[i%len(locations)]
			t.Run(fmt.Sprint(zone, " ", location, " ", parse), func(t *testing.T) {
				dsn := with(d.With("time_zone", "'"+zone+"'"), "parseTime="+parse+"&loc="+url.QueryEscape(location)).DSN
				db := testdb.MySQLAt(dsn).Registered(t, dbmutex.DefaultSettings()).WithContext(limited(t))
				var is string
				require.NoError(t, db.Raw(`SELECT @@time_zone`).Scan(&is).Error)
				require.Equal(t, zone, is)
				requireSessionsAgree(t, plain, db)
			})
		}
	}
}

// An account that may write, but whose session or transaction may not.
func TestASessionThatIsReadOnly(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	lease := acquire(t, open(t, d), "held")
	var variable string
	require.NoError(t, d.Open(t).Raw(`SHOW VARIABLES WHERE Variable_name IN ('tx_read_only', 'transaction_read_only')`).Row().
		Scan(&variable, new(string)))
	reader := d.With(variable, "1")
	require.ErrorContains(t, refusedBy(t, reader), "1792")
	requireHeld(t, reader.Registered(t, dbmutex.DefaultSettings()), "held")
	require.NoError(t, lease.Release())
}

// What a verb needs of a table that is there, and what it does without.
func TestPrivilegesThatAreMissing(t *testing.T) {
	t.Parallel()
	const seen = ` ON db_mutexes`
	requireDenied := func(t *testing.T, err error, command string) {
		t.Helper()
		require.ErrorContains(t, err, command+" command denied")
		require.ErrorContains(t, err, "1142")
		require.NotErrorIs(t, err, dbmutex.ErrNotAcquired)
		require.NotErrorIs(t, err, dbmutex.ErrTimeout)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
	}
	forever := dbmutex.WithWait(dbmutex.Forever)
	t.Run("DELETE is for old rows alone", func(t *testing.T) {
		d := testdb.MySQL(t)
		owner := open(t, d)
		for i := range 100 {
			requireFree(t, owner, fmt.Sprint("old ", i))
		}
		require.NoError(t, owner.Exec(`UPDATE db_mutexes SET expires_at = expires_at - INTERVAL 2 HOUR`).Error)
		out := &logs{}
		db := d.Granted(t, "SELECT, INSERT, UPDATE"+seen).
			Registered(t, dbmutex.DefaultSettings(), &gorm.Config{Logger: out.logger(logger.Warn)})
		exercise(t, db)
		for i := range 100 {
			requireFree(t, db, fmt.Sprint("new ", i))
			requireFree(t, db, "job")
		}
		var n int64
		require.NoError(t, owner.Model(&dbmutex.DBMutex{}).Where("lock_id LIKE 'old %'").Count(&n).Error)
		require.EqualValues(t, 100, n)
		require.NotContains(t, out.String(), "denied")
	})
	t.Run("INSERT is for new mutexes", func(t *testing.T) {
		d := testdb.MySQL(t)
		requireFree(t, open(t, d), "there")
		db := as(t, d, "SELECT, UPDATE, DELETE"+seen)
		requireFree(t, db, "there")
		requireDenied(t, db.Mutex("new", forever).Do(nothing), "INSERT")
	})
	t.Run("UPDATE is for everything", func(t *testing.T) {
		d := testdb.MySQL(t)
		requireFree(t, open(t, d), "there")
		db := as(t, d, "SELECT, INSERT, DELETE"+seen)
		for _, id := range []string{"there", "new"} {
			requireDenied(t, db.Mutex(id, forever).Do(nothing), "UPDATE")
		}
		require.Nil(t, row(t, db, "new"))
	})
	t.Run("SELECT says who holds it", func(t *testing.T) {
		d := testdb.MySQL(t)
		acquire(t, open(t, d), "held", dbmutex.WithHolder("the one"))
		db := as(t, d, "SELECT"+seen)
		holder, err := db.Mutex("held").Holder()
		require.NoError(t, err)
		require.Equal(t, "the one", holder.Holder)
		requireHeld(t, db, "held")
	})
	t.Run("SELECT is for everything", func(t *testing.T) {
		d := testdb.MySQL(t)
		open(t, d)
		db := as(t, d, "INSERT, UPDATE, DELETE"+seen)
		require.ErrorContains(t, db.Mutex("job", forever).Do(nothing), "denied")
	})
	t.Run("CREATE is for Migrate", func(t *testing.T) {
		d := testdb.MySQL(t)
		require.NoError(t, d.Open(t).Exec(`CREATE TABLE mine (id integer)`).Error)
		requireDenied(t, as(t, d, "SELECT, INSERT, UPDATE, DELETE ON mine").Migrate(), "CREATE")
	})
}

// A release waits for a guard, however short a time the session waits for a row.
func TestAReleaseOutlastsTheSessionsLockWaitTimeout(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	other := open(t, d)
	db := d.With("innodb_lock_wait_timeout", "1").Registered(t, dbmutex.DefaultSettings())
	for name, end := range map[string]func(*dbmutex.Lease) error{
		"Release":      (*dbmutex.Lease).Release,
		"ForceRelease": func(l *dbmutex.Lease) error { return db.Mutex(l.LockID()).ForceRelease() },
		"Renew":        (*dbmutex.Lease).Renew,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lease := acquire(t, db, name)
			tx := other.Begin()
			require.NoError(t, lease.Guard(tx))
			ended := make(chan error, 1)
			go func() { ended <- end(lease) }()
			time.Sleep(2500 * time.Millisecond)
			require.Empty(t, ended)
			require.NoError(t, tx.Commit().Error)
			require.NoError(t, <-ended)
		})
	}
}

func TestALookForATransactionCostsTheDriverNothing(t *testing.T) {
	t.Parallel()
	for _, interpolate := range []string{"true", "false"} {
		db := open(t, with(testdb.MySQL(t), "interpolateParams="+interpolate))
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1)
		statements := func() (n int) { // of which this is one
			require.NoError(t, db.Raw(`SHOW SESSION STATUS WHERE Variable_name = 'Questions'`).Row().Scan(new(string), &n))
			return n
		}
		require.NoError(t, db.Mutex("job").Do(nothing))
		before := statements()
		require.NoError(t, db.Mutex("job").Do(nothing))
		require.Equal(t, before+1+2, statements(), "an acquire and a release")
	}
}

func TestAPreparedStatementOutlivesAChangeOfTheTable(t *testing.T) {
	t.Parallel()
	for _, prepare := range []bool{false, true} {
		out := &logs{}
		db := open(t, testdb.MySQL(t), &gorm.Config{Logger: out.logger(logger.Error), PrepareStmt: prepare})
		for _, holder := range []string{"varchar(300)", "mediumtext", "longtext"} {
			exercise(t, db)
			lease := acquire(t, db, "job")
			require.NoError(t, db.Exec(`ALTER TABLE db_mutexes MODIFY holder `+holder+` CHARACTER SET utf8mb4 NOT NULL`).Error)
			require.NoError(t, lease.Renew())
			requireHeld(t, db, "job")
			require.NoError(t, lease.Release())
		}
		require.Empty(t, out.String())
	}
}
