package drivers_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mysqldriver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/mysql"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// mysqlServer is the server of the tests, with the variables of a session.
type mysqlServer struct {
	mariaDB   bool
	variables map[string]bool
}

func askMySQL(t *testing.T) (s mysqlServer) {
	db := testdb.MySQL(t).Open(t)
	var version string
	require.NoError(t, db.Raw(`SELECT VERSION()`).Scan(&version).Error)
	rows, err := db.Raw(`SHOW SESSION VARIABLES`).Rows()
	require.NoError(t, err)
	s = mysqlServer{strings.Contains(version, "MariaDB"), map[string]bool{}}
	for rows.Next() {
		var name string
		require.NoError(t, rows.Scan(&name, new(any)))
		s.variables[name] = true
	}
	require.NoError(t, errors.Join(rows.Err(), rows.Close()))
	return s
}

// withParameters is a MySQL DSN with these parameters alone.
func withParameters(t *testing.T, d *testdb.Database, parameters string) string {
	config, err := mysqldriver.ParseDSN(d.DSN)
	require.NoError(t, err)
	config.ParseTime = false
	dsn := config.FormatDSN()
	require.NotContains(t, dsn, "?")
	return dsn + "?" + parameters
}

// openMySQL opens a pool, closes it when the test ends, and registers the plugin.
func openMySQL(t *testing.T, config mysql.Config, gormConfig gorm.Config) *dbmutex.DB {
	gormConfig.Logger = logger.Discard
	gdb, err := gorm.Open(mysql.New(config), &gormConfig)
	require.NoError(t, err)
	pool, err := gdb.DB()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pool.Close()) })
	return testdb.Register(t, gdb, dbmutex.DefaultSettings()).WithContext(limited(t))
}

// requireEveryVerb runs every verb on a new table, while others look on in usual sessions, and lets holders race.
func requireEveryVerb(t *testing.T, d *testdb.Database, open func(t *testing.T) *dbmutex.DB) {
	t.Helper()
	db := open(t)
	require.NoError(t, db.Migrate(&payment{}))
	require.NoError(t, db.Migrate(&payment{})) // it changes nothing, or it would refuse
	other := d.Registered(t, dbmutex.DefaultSettings()).WithContext(limited(t))
	testdb.Exercise(t, db)
	requireExactIDs(t, db, other)
	requireTheSameRow(t, db, other)
	requireEffects(t, db, other)
	requireTakeOvers(t, db, other)
	requireMinHold(t, db, other)
	requireOneHolder(t, db, open(t), other)
}

// requireExactIDs holds mutexes whose ids a collation may take for the same.
func requireExactIDs(t *testing.T, db, other *dbmutex.DB) {
	t.Helper()
	ids := []string{"job", "JOB", "job ", "jób", "jo\u0301b", `j\'o"b`, strings.Repeat("😀", dbmutex.MaxLockIDLength)}
	var leases []*dbmutex.Lease
	for _, id := range ids {
		lease, err := db.Mutex(id, dbmutex.WithHolder("holder of "+id+" 😀")).Acquire()
		require.NoError(t, err, id)
		leases = append(leases, lease)
	}
	for i, id := range ids {
		testdb.RequireHeld(t, db, id)
		testdb.RequireHeld(t, other, id)
		for _, db := range []*dbmutex.DB{db, other} {
			holder, err := db.Mutex(id).Holder()
			require.NoError(t, err)
			require.Equal(t, id, holder.LockID)
			require.Equal(t, "holder of "+id+" 😀", holder.Holder)
		}
		require.NoError(t, leases[i].Renew())
		require.NoError(t, leases[i].Release())
		testdb.RequireFree(t, other, id)
	}
}

// requireTheSameRow compares what is told of a lease in both sessions, with a TTL and without.
func requireTheSameRow(t *testing.T, db, other *dbmutex.DB) {
	t.Helper()
	for name, opt := range map[string]dbmutex.Option{"hour": dbmutex.WithTTL(time.Hour), "no end": dbmutex.WithoutTTL()} {
		for _, holds := range []*dbmutex.DB{db, other} {
			lease, err := holds.Mutex(name, opt).Acquire()
			require.NoError(t, err)
			mine, err := db.Mutex(name).Holder()
			require.NoError(t, err)
			theirs, err := other.Mutex(name).Holder()
			require.NoError(t, err)
			require.Equal(t, theirs, mine)
			require.InDelta(t, time.Now().Unix(), mine.CreationTime.Unix(), 60)
			var held *dbmutex.HeldError
			require.ErrorAs(t, db.Mutex(name).Do(nothing), &held)
			require.True(t, held.Since.Equal(mine.CreationTime))
			if name == "no end" {
				require.Nil(t, mine.ExpiresAt)
				require.Nil(t, held.ExpiresAt)
			} else {
				require.Equal(t, time.Hour, mine.ExpiresAt.Sub(mine.CreationTime))
				require.True(t, held.ExpiresAt.Equal(*mine.ExpiresAt))
				require.NoError(t, lease.Renew())
				renewed, err := other.Mutex(name).Holder()
				require.NoError(t, err)
				require.True(t, renewed.ExpiresAt.After(*mine.ExpiresAt))
			}
			require.NoError(t, lease.Release())
		}
	}
}

// requireEffects commits and rolls back what belongs to a lease.
func requireEffects(t *testing.T, db, other *dbmutex.DB) {
	t.Helper()
	paid := func() (n int64) {
		require.NoError(t, other.Model(&payment{}).Count(&n).Error)
		return n
	}
	pay := func(tx *gorm.DB) error { return tx.Create(&payment{}).Error }
	require.NoError(t, db.Mutex("pay").Transaction(pay))
	require.EqualValues(t, 1, paid())
	testdb.RequireFree(t, other, "pay")

	failed := errors.New("failed")
	err := db.Mutex("pay").Transaction(func(tx *gorm.DB) error { return errors.Join(pay(tx), failed) })
	require.ErrorIs(t, err, failed)
	require.EqualValues(t, 1, paid())
	testdb.RequireFree(t, other, "pay")

	within := func(end func(*gorm.DB) error) func(*gorm.DB) error {
		return func(tx *gorm.DB) error {
			if err := pay(tx); err != nil {
				return err
			}
			return end(tx)
		}
	}
	lease, err := db.Mutex("pay").Acquire()
	require.NoError(t, err)
	require.NoError(t, db.Gorm.Transaction(within(lease.Guard)))
	require.EqualValues(t, 2, paid())
	testdb.RequireHeld(t, other, "pay")
	require.NoError(t, db.Gorm.Transaction(within(lease.ReleaseIn)))
	require.EqualValues(t, 3, paid())
	testdb.RequireFree(t, other, "pay")
	require.NoError(t, lease.Release())

	lease, err = db.Mutex("pay").Acquire()
	require.NoError(t, err)
	require.NoError(t, other.Mutex("pay").ForceRelease())
	require.ErrorIs(t, db.Gorm.Transaction(within(lease.Guard)), dbmutex.ErrTimeout)
	require.ErrorIs(t, db.Gorm.Transaction(within(lease.ReleaseIn)), dbmutex.ErrTimeout)
	require.EqualValues(t, 3, paid())
	testdb.RequireTimeout(t, lease.Release(), "pay", true)
}

// requireTakeOvers takes mutexes over in both directions.
func requireTakeOvers(t *testing.T, db, other *dbmutex.DB) {
	t.Helper()
	last := int64(0)
	for _, pair := range [][2]*dbmutex.DB{{db, other}, {other, db}} {
		short, err := pair[0].Mutex("over", dbmutex.WithTTL(time.Millisecond)).Acquire()
		require.NoError(t, err)
		next, err := pair[1].Mutex("over", dbmutex.WithWait(dbmutex.Forever)).Acquire()
		require.NoError(t, err)
		require.Greater(t, short.Token(), last)
		require.Greater(t, next.Token(), short.Token())
		last = next.Token()
		require.ErrorIs(t, short.Renew(), dbmutex.ErrTimeout)
		testdb.RequireTimeout(t, short.Release(), "over", true)
		require.NoError(t, next.Release())
	}
}

func requireMinHold(t *testing.T, db, other *dbmutex.DB) {
	t.Helper()
	mutex := db.Mutex("min", dbmutex.WithTTL(2*time.Hour), dbmutex.WithMinHold(time.Hour))
	require.NoError(t, mutex.Do(nothing))
	testdb.RequireHeld(t, db, "min")
	testdb.RequireHeld(t, other, "min")
	holder, err := db.Mutex("min").Holder()
	require.NoError(t, err)
	require.Equal(t, time.Hour, holder.ExpiresAt.Sub(holder.CreationTime))
	testdb.Expire(t, other, "min")
	testdb.RequireFree(t, other, "min")

	lease, err := mutex.Acquire()
	require.NoError(t, err)
	require.NoError(t, db.Gorm.Transaction(lease.ReleaseIn))
	testdb.RequireHeld(t, other, "min")
	require.NoError(t, db.Mutex("min").ForceRelease())
	testdb.RequireFree(t, other, "min")
}

// requireOneHolder lets the handles race.
func requireOneHolder(t *testing.T, handles ...*dbmutex.DB) {
	t.Helper()
	const goroutines, rounds = 2, 10
	var inside, ran atomic.Int32
	var wg sync.WaitGroup
	for _, db := range handles {
		for range goroutines {
			wg.Go(func() {
				for range rounds {
					err := db.Mutex("race", dbmutex.WithWait(dbmutex.Forever)).Do(func(context.Context) error {
						defer inside.Add(-1)
						if inside.Add(1) > 1 {
							t.Error("two holders")
						}
						ran.Add(1)
						return nil
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
	require.EqualValues(t, len(handles)*goroutines*rounds, ran.Load())
}

// set is a parameter of a DSN that sets a variable of the session.
func set(name, value string) string { return name + "=" + url.QueryEscape(value) }

func TestNoParameterOfAMySQLDSNMatters(t *testing.T) {
	server := askMySQL(t)
	parameters := []string{
		"", "parseTime=true", "interpolateParams=true", "interpolateParams=true&parseTime=true",
		"clientFoundRows=true", "clientFoundRows=true&interpolateParams=true",
		"multiStatements=true", "multiStatements=true&interpolateParams=true",
		"rejectReadOnly=true", "checkConnLiveness=false", "compress=true",
		"loc=Asia%2FTokyo", "loc=Asia%2FTokyo&parseTime=true", "loc=Local&parseTime=true&interpolateParams=true",
		"timeTruncate=1h", "timeTruncate=1h&parseTime=true&interpolateParams=true",
		"charset=latin1", "charset=latin1&interpolateParams=true", "charset=binary",
		"charset=utf8", "charset=utf8&interpolateParams=true", "charset=gbk", "charset=utf8mb3,utf8",
		"charset=utf8mb4", "charset=utf8mb4&collation=utf8mb4_general_ci", "collation=latin1_swedish_ci",
		"autocommit=0", "autocommit=0&interpolateParams=true",
	}
	levels := []string{"'READ-UNCOMMITTED'", "'READ-COMMITTED'", "'REPEATABLE-READ'", "'SERIALIZABLE'"}
	values := map[string][]string{
		"time_zone":             {"'+09:00'", "'-12:00'"},
		"tx_isolation":          levels,
		"transaction_isolation": levels,
		"sql_mode": {
			"''", "'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'", "'ANSI,TRADITIONAL'", "'NO_AUTO_VALUE_ON_ZERO,NO_UNSIGNED_SUBTRACTION'",
			"'PAD_CHAR_TO_FULL_LENGTH,HIGH_NOT_PRECEDENCE'",
		},
		"completion_type":          {"'CHAIN'"},
		"auto_increment_increment": {"7"},
		"character_set_results":    {"'latin1'"},
		"foreign_key_checks":       {"0"},
		"unique_checks":            {"0"},
		"innodb_lock_wait_timeout": {"1"},
		"optimizer_switch":         {"'derived_merge=off'", "'index_merge=off,materialization=off,semijoin=off'"},
		"sql_auto_is_null":         {"1"},
		"sql_log_bin":              {"0"},
		"sql_safe_updates":         {"1"},
		"sql_select_limit":         {"1000"}, // with sql_safe_updates, what the client's --safe-updates sets
	}
	if server.mariaDB {
		values["sql_mode"] = append(values["sql_mode"], "'SIMULTANEOUS_ASSIGNMENT'", "'ORACLE'", "'TIME_ROUND_FRACTIONAL'",
			"'SIMULTANEOUS_ASSIGNMENT,ANSI_QUOTES,NO_BACKSLASH_ESCAPES'")
	}
	for name, all := range values {
		for _, value := range all {
			if server.variables[name] {
				parameters = append(parameters, set(name, value), set(name, value)+"&interpolateParams=true")
			}
		}
	}
	parameters = append(parameters, "foreign_key_checks=0&unique_checks=0") // loads in bulk into an empty table
	for _, parameters := range parameters {
		t.Run(parameters, func(t *testing.T) {
			t.Parallel()
			d := testdb.MySQL(t)
			dsn := withParameters(t, d, parameters)
			requireEveryVerb(t, d, func(t *testing.T) *dbmutex.DB {
				return openMySQL(t, mysql.Config{DSN: dsn}, gorm.Config{})
			})
		})
	}
}

func TestNoOptionOfGORMMattersOnMySQL(t *testing.T) {
	for name, config := range map[string]gorm.Config{
		"PrepareStmt":            {PrepareStmt: true},
		"TranslateError":         {TranslateError: true},
		"QueryFields":            {QueryFields: true},
		"SkipDefaultTransaction": {SkipDefaultTransaction: true},
		"all":                    {PrepareStmt: true, TranslateError: true, QueryFields: true, SkipDefaultTransaction: true},
	} {
		for _, parameters := range []string{"", "interpolateParams=true&parseTime=true", "autocommit=0"} {
			t.Run(name+" "+parameters, func(t *testing.T) {
				t.Parallel()
				d := testdb.MySQL(t)
				dsn := withParameters(t, d, parameters)
				requireEveryVerb(t, d, func(t *testing.T) *dbmutex.DB { return openMySQL(t, mysql.Config{DSN: dsn}, config) })
			})
		}
	}
}

func TestNoOptionOfGORMsDriverMattersOnMySQL(t *testing.T) {
	precision := 0
	for name, config := range map[string]mysql.Config{
		"SkipInitializeWithVersion": {SkipInitializeWithVersion: true},
		"DefaultStringSize":         {DefaultStringSize: 10},
		"DefaultDatetimePrecision":  {DefaultDatetimePrecision: &precision},
		"DisableWithReturning":      {DisableWithReturning: true},
		"what old servers lack": {
			DontSupportRenameIndex: true, DontSupportRenameColumn: true, DontSupportForShareClause: true,
			DontSupportNullAsDefaultValue: true, DontSupportRenameColumnUnique: true, DontSupportDropConstraint: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := testdb.MySQL(t)
			config.DSN = withParameters(t, d, "parseTime=true")
			requireEveryVerb(t, d, func(t *testing.T) *dbmutex.DB { return openMySQL(t, config, gorm.Config{}) })
		})
	}
}

func TestAMySQLPoolOfOneConnectionIsEnough(t *testing.T) {
	for _, parameters := range []string{"", "interpolateParams=true&parseTime=true", "autocommit=0"} {
		for _, prepare := range []bool{false, true} {
			t.Run(parameters, func(t *testing.T) {
				t.Parallel()
				d := testdb.MySQL(t)
				dsn := withParameters(t, d, parameters)
				requireEveryVerb(t, d, func(t *testing.T) *dbmutex.DB {
					db := openMySQL(t, mysql.Config{DSN: dsn}, gorm.Config{PrepareStmt: prepare})
					pool, err := db.DB()
					require.NoError(t, err)
					pool.SetMaxOpenConns(1)
					return db
				})
			})
		}
	}
}

// wrappedConnector hides the driver's type, as packages that trace statements do.
type wrappedConnector struct{ driver.Connector }

func (c wrappedConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return wrappedConn{conn.(mysqlConn)}, nil
}

type mysqlConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

type wrappedConn struct{ mysqlConn }

func TestAMySQLDriverMayBeWrapped(t *testing.T) {
	for _, parameters := range []string{"", "interpolateParams=true&parseTime=true", "autocommit=0", "clientFoundRows=true"} {
		t.Run(parameters, func(t *testing.T) {
			t.Parallel()
			d := testdb.MySQL(t)
			config, err := mysqldriver.ParseDSN(withParameters(t, d, parameters))
			require.NoError(t, err)
			connector, err := mysqldriver.NewConnector(config)
			require.NoError(t, err)
			requireEveryVerb(t, d, func(t *testing.T) *dbmutex.DB {
				pool := sql.OpenDB(wrappedConnector{connector})
				return openMySQL(t, mysql.Config{Conn: pool}, gorm.Config{})
			})
		})
	}
}
