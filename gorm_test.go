package dbmutex_test

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"log"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/schema"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// masking is a logger that hides values, in place.
type masking struct{ logger.Interface }

func (masking) ParamsFilter(_ context.Context, sql string, params ...any) (string, []any) {
	for i := range params {
		params[i] = "***"
	}
	return sql, params
}

func TestGORMConfigs(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]*gorm.Config{
		"default":                {},
		"PrepareStmt":            {PrepareStmt: true},
		"SkipDefaultTransaction": {SkipDefaultTransaction: true},
		"TranslateError":         {TranslateError: true},
		"QueryFields":            {QueryFields: true},
		"all of these": {
			PrepareStmt: true, SkipDefaultTransaction: true, TranslateError: true, QueryFields: true, CreateBatchSize: 1,
		},
		"timeouts":            {DefaultContextTimeout: time.Minute, DefaultTransactionTimeout: time.Minute},
		"a logger that masks": {Logger: masking{logger.New(log.New(io.Discard, "", 0), logger.Config{LogLevel: logger.Info})}},
	} {
		t.Run(name, func(t *testing.T) {
			testdb.Each(t, func(t *testing.T, d *testdb.Database) {
				config := *config
				if config.Logger == nil {
					config.Logger = logger.Discard
				}
				db := open(t, d, &config)
				exercise(t, db)
				exercise(t, db.Session(&gorm.Session{PrepareStmt: true}))
				pool, err := db.DB()
				require.NoError(t, err)
				pool.SetMaxOpenConns(1)
				exercise(t, db)
			})
		})
	}
}

func TestQueryExecModes(t *testing.T) { // of pgx; poolers of connections want some of them
	t.Parallel()
	for _, mode := range []string{"simple_protocol", "exec", "cache_describe", "describe_exec"} {
		db := openDSN(t, withSetting(testdb.Postgres(t).DSN, "default_query_exec_mode", mode))
		require.NoError(t, db.Migrate(&customer{}))
		exercise(t, db)
	}
}

func TestDefaultIsolationLevels(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"read uncommitted", "read committed", "repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
				db := d.AtLevel(t, level).Registered(t, dbmutex.DefaultSettings())
				require.NoError(t, db.Migrate(&customer{}))
				exercise(t, db)
				var wg sync.WaitGroup
				for range 8 { // no error of the database's for anybody
					wg.Go(func() {
						for range 20 {
							if err := db.Mutex("busy").Do(nothing); err != nil && !errors.Is(err, dbmutex.ErrNotAcquired) {
								t.Error(err)
							}
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

func TestOneTableForEveryTenantOfASearchPath(t *testing.T) {
	t.Parallel()
	d := testdb.Postgres(t)
	db := open(t, d)
	pool, err := db.DB()
	require.NoError(t, err)
	pool.SetMaxOpenConns(1)
	before := currentSchema(t, db)
	tenant := before + "_tenant"
	require.NoError(t, db.Exec(`CREATE SCHEMA `+tenant).Error)
	t.Cleanup(func() { require.NoError(t, db.Exec(`DROP SCHEMA `+tenant+` CASCADE`).Error) })
	for range 40 {
		requireFree(t, db, "job") // draws from this tenant's sequence
	}
	require.NoError(t, db.Exec(`SET search_path = `+tenant).Error)
	require.NoError(t, db.Migrate())
	lease := acquire(t, db, "job")
	testdb.Expire(t, db, "job")
	next := acquire(t, db, "job")
	require.Greater(t, next.Token(), lease.Token())
	require.NoError(t, next.Release())
	require.NoError(t, db.Exec(`SET search_path = `+before).Error)
}

func TestTableNames(t *testing.T) {
	t.Parallel()
	for table, naming := range map[string]schema.NamingStrategy{
		"db_mutexes":      {},
		"app_db_mutexes":  {TablePrefix: "app_"},
		"db_mutex":        {SingularTable: true},
		"odd \"name\"_db": {TablePrefix: "odd \"name\"_", SingularTable: true},
		"DBMutex":         {SingularTable: true, NoLowerCase: true},
	} {
		t.Run(table, func(t *testing.T) {
			testdb.Each(t, func(t *testing.T, d *testdb.Database) {
				exercise(t, open(t, d, &gorm.Config{NamingStrategy: naming, Logger: logger.Discard}))
			})
		})
	}
}

func TestASchemaInThePrefix(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		plain, another := open(t, d), d.Another(t).Registered(t, dbmutex.DefaultSettings())
		locks := currentSchema(t, another)
		require.NotEqual(t, currentSchema(t, plain), locks)
		db := open(t, d, &gorm.Config{NamingStrategy: schema.NamingStrategy{TablePrefix: locks + "."}, Logger: logger.Discard})
		exercise(t, db)
		acquire(t, db, "job")
		require.NotNil(t, row(t, another, "job"))
		requireHeld(t, another, "job")
		requireFree(t, plain, "job") // another table is another lock
	})
}

func TestLeftOnTheHandle(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		for _, handle := range []*gorm.DB{
			db.Where("1 = 0"),
			db.Gorm.Where("nonsense = ?", 1).Limit(1).Order("nonsense"),
			db.Gorm.Table("nonsense"),
			db.Gorm.Model(&struct{ ID int }{}),
			db.Gorm.Select("nonsense").Session(&gorm.Session{}),
			db.Gorm.Unscoped(),
			db.Gorm.Scopes(func(tx *gorm.DB) *gorm.DB { return tx.Where("1 = 0") }),
		} {
			exercise(t, dbmutex.Wrap(handle))
			var n int64
			require.NoError(t, dbmutex.Wrap(handle).Mutex("job").Transaction(func(tx *gorm.DB) error {
				return testdb.Taken(tx).Count(&n).Error
			}))
			require.EqualValues(t, 1, n, "the transaction's handle is clean, too")
		}
	})
}

// poolOfOnesOwn is a pool that database/sql does not know, such as one for tracing.
type poolOfOnesOwn struct{ gorm.ConnPool }

func TestAPoolOfOnesOwn(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		db := open(t, d)
		db.Gorm = db.Gorm.Session(&gorm.Session{})
		db.Config.ConnPool = poolOfOnesOwn{db.Config.ConnPool}
		db.Statement.ConnPool = db.Config.ConnPool
		require.NoError(t, db.Mutex("job").Do(func(context.Context) error { requireHeld(t, db, "job"); return nil }))
	})
}

// A connection of the caller's own may have a transaction open that the handle does not show.
func TestABoundConnection(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		other := open(t, d)
		require.NoError(t, db.Gorm.Connection(func(c *gorm.DB) error {
			exercise(t, dbmutex.Wrap(c))

			tx := c.Begin()
			lease := acquire(t, dbmutex.Wrap(c).WithContext(limited(t)), "job")
			require.NoError(t, tx.Rollback().Error)
			requireHeld(t, other, "job")

			tx = c.Begin()
			require.NoError(t, lease.Renew())
			require.NoError(t, lease.Release())
			require.NoError(t, tx.Rollback().Error)
			require.Nil(t, row(t, other, "job"))

			level := sql.LevelReadCommitted
			if d.OneWriter { // not every driver takes one
				level = sql.LevelDefault
			}
			renewed := dbmutex.Wrap(c).Mutex("job", dbmutex.WithTTL(3*time.Second), dbmutex.WithRenewal())
			return renewed.Transaction(func(tx *gorm.DB) error {
				if d.OneWriter { // there are no renewals meanwhile
					return nil
				}
				rows, err := tx.Raw(`SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3`).Rows()
				require.NoError(t, err)
				lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
				first, _ := lease.ExpiresAt()
				require.Eventually(
					t, func() bool { now, _ := lease.ExpiresAt(); return now.After(first) }, time.Minute, time.Millisecond,
				)
				return rows.Close()
			}, &sql.TxOptions{Isolation: level})
		}))
	})
}

func TestDebugShowsTheStatements(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out := &logs{}
		db := open(t, d, &gorm.Config{Logger: out.logger(logger.Silent)})
		require.NoError(t, db.Mutex("job").Do(nothing))
		require.Empty(t, out.String())
		require.NoError(t, db.Debug().Mutex("nightly").Do(nothing))
		verbs := map[string]bool{}
		for _, statement := range regexp.MustCompile(`\[rows:\S+\] `).Split(out.String(), -1) { // what the logger puts before it
			verbs[d.Verb(statement)] = true
		}
		require.True(t, verbs["acquire"] && verbs["release"], out.String())
		require.Contains(t, out.String(), "nightly")
	})
}

func TestCallbacksSeeTheStatements(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		seen := 0
		count := func(*gorm.DB) { seen++ }
		require.NoError(t, db.Callback().Row().Before("gorm:row").Register("test:row", count))
		require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("test:raw", count))
		require.NoError(t, db.Mutex("job").Do(nothing))
		require.GreaterOrEqual(t, seen, 2)
	})
}

func TestOnePluginForManyDatabases(t *testing.T) {
	t.Parallel()
	plugin := dbmutex.New(dbmutex.DefaultSettings())
	for range 2 {
		testdb.Each(t, func(t *testing.T, d *testdb.Database) {
			gdb := d.Open(t)
			require.NoError(t, gdb.Use(plugin))
			require.NoError(t, dbmutex.Wrap(gdb).Migrate())
			exercise(t, dbmutex.Wrap(gdb))
		})
	}
}

func TestWrap(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		_, err := db.DB() // the method is not hidden by a field
		require.NoError(t, err)
		require.Equal(t, "dbmutex", dbmutex.New(dbmutex.Settings{}).Name())
		require.ErrorIs(t, db.Use(dbmutex.New(dbmutex.DefaultSettings())), gorm.ErrRegistered)
		type key struct{}
		ctx := context.WithValue(context.Background(), key{}, 1)
		require.NoError(t, db.WithContext(ctx).Session(&gorm.Session{}).Mutex("job").Do(func(ctx context.Context) error {
			require.Equal(t, 1, ctx.Value(key{}))
			return nil
		}))
	})
}
