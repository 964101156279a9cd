package drivers_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/plugin/dbresolver"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	_ "github.com/gorm-dbmutex/dbmutex/pgnotify"
)

// cluster is a main database, and others that dbresolver takes for its replica and its sources. Those are empty, so that
// a statement of dbmutex that dbresolver sends there fails.
type cluster struct {
	main, replica *testdb.Database
	sources       []*testdb.Database
	lockFirst     bool // dbmutex is registered before dbresolver
	prepare       bool // gorm.Config.PrepareStmt
}

// eachCluster runs a test with and without sources, in both orders of registration, with and without prepared statements.
func eachCluster(t *testing.T, test func(t *testing.T, c *cluster)) {
	for _, sources := range []int{0, 2} {
		for _, lockFirst := range []bool{false, true} {
			for _, prepare := range []bool{false, true} {
				t.Run(fmt.Sprintf("sources=%d lockFirst=%t prepare=%t", sources, lockFirst, prepare), func(t *testing.T) {
					testdb.Each(t, func(t *testing.T, main *testdb.Database) {
						c := &cluster{main: main, replica: main.Another(t), lockFirst: lockFirst, prepare: prepare}
						for range sources {
							c.sources = append(c.sources, main.Another(t))
						}
						test(t, c)
					})
				})
			}
		}
	}
}

// open is a program that has both plugins.
func (c *cluster) open(t *testing.T) *dbmutex.DB {
	gdb := c.main.Open(t, &gorm.Config{Logger: logger.Discard, PrepareStmt: c.prepare})
	plugins := []gorm.Plugin{c.resolver(t), dbmutex.New(dbmutex.DefaultSettings())}
	if c.lockFirst {
		plugins[0], plugins[1] = plugins[1], plugins[0]
	}
	for _, plugin := range plugins {
		require.NoError(t, gdb.Use(plugin))
	}
	return dbmutex.Wrap(gdb)
}

// resolver resolves everything, and once more for what asks for "named".
func (c *cluster) resolver(t *testing.T) *dbresolver.DBResolver {
	config := func() dbresolver.Config {
		config := dbresolver.Config{Replicas: []gorm.Dialector{c.replica.Dialector()}, TraceResolverMode: true}
		for _, source := range c.sources {
			config.Sources = append(config.Sources, source.Dialector())
		}
		return config
	}
	resolver := dbresolver.Register(config()).Register(config(), "named")
	t.Cleanup(func() {
		require.NoError(t, resolver.Call(func(pool gorm.ConnPool) error { return pool.(interface{ Close() error }).Close() }))
	})
	return resolver
}

// handles are the ways to tell dbresolver where to send statements.
func handles(db *dbmutex.DB) map[string]*dbmutex.DB {
	prepared := &gorm.Session{PrepareStmt: true}
	wrapped := map[string]*dbmutex.DB{}
	for name, gdb := range map[string]*gorm.DB{
		"plain":           db.Gorm,
		"Write":           db.Clauses(dbresolver.Write),
		"Read":            db.Clauses(dbresolver.Read),
		"Use":             db.Clauses(dbresolver.Use("named")),
		"Use, Write":      db.Clauses(dbresolver.Use("named"), dbresolver.Write),
		"Read, Session":   db.Clauses(dbresolver.Read).Session(&gorm.Session{}),
		"Read, prepared":  db.Clauses(dbresolver.Read).Session(prepared),
		"prepared, Write": db.Gorm.Session(prepared).Clauses(dbresolver.Write),
	} {
		wrapped[name] = dbmutex.Wrap(gdb)
	}
	return wrapped
}

type payment struct {
	ID     int64
	Amount int
}

// later is the next version of payment.
type later struct {
	payment
	Text string
}

func (later) TableName() string { return "payments" }

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func nothing(context.Context) error { return nil }

func TestDBResolverLocksOnTheMainDatabase(t *testing.T) {
	t.Parallel()
	eachCluster(t, func(t *testing.T, c *cluster) {
		main := c.main.Mutexes(t, dbmutex.DefaultSettings()).Gorm
		require.NoError(t, main.AutoMigrate(&payment{}))
		rows := func() (n int64) {
			require.NoError(t, testdb.Taken(main).Count(&n).Error)
			return n
		}
		db, other := c.open(t).WithContext(limited(t)), c.open(t).WithContext(limited(t))
		payments := int64(0)
		for name, db := range handles(db) {
			t.Run(name, func(t *testing.T) {
				require.NoError(t, db.Mutex("job", dbmutex.WithHolder("me")).Do(func(ctx context.Context) error {
					require.EqualValues(t, 1, rows())
					for name, handle := range handles(other) {
						require.ErrorIs(t, handle.Mutex("job").Do(nothing), dbmutex.ErrNotAcquired, name)
						holder, err := handle.Mutex("job").Holder()
						require.NoError(t, err)
						require.Equal(t, "me", holder.Holder)
					}
					lease, _ := dbmutex.LeaseFrom(ctx)
					require.NoError(t, lease.Renew())
					require.NoError(t, other.Gorm.Transaction(lease.Guard))
					return nil
				}))
				require.Zero(t, rows())

				require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error {
					return tx.Create(&payment{}).Error
				}))
				payments++
				var n int64
				require.NoError(t, main.Model(&payment{}).Count(&n).Error)
				require.Equal(t, payments, n)

				lease, err := db.Mutex("job").Acquire()
				require.NoError(t, err)
				require.NoError(t, other.Gorm.Transaction(lease.ReleaseIn))
				require.NoError(t, lease.Release())
				require.Zero(t, rows())

				expires, err := db.Mutex("job", dbmutex.WithTTL(time.Millisecond)).Acquire()
				require.NoError(t, err)
				lease, err = other.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire() // a take-over
				require.NoError(t, err)
				require.Greater(t, lease.Token(), expires.Token())
				require.ErrorIs(t, expires.Release(), dbmutex.ErrTimeout)

				waited := make(chan error, 1)
				go func() { waited <- db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(nothing) }()
				select {
				case err := <-waited:
					require.Fail(t, "it did not wait", "%v", err)
				case <-time.After(20 * time.Millisecond):
				}
				require.NoError(t, lease.Release())
				require.NoError(t, <-waited)

				lease, err = other.Mutex("job", dbmutex.WithoutTTL()).Acquire()
				require.NoError(t, err)
				require.NoError(t, db.Mutex("job").ForceRelease())
				require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)
				require.Zero(t, rows())
			})
		}
	})
}

func TestDBResolverMigrate(t *testing.T) {
	t.Parallel()
	eachCluster(t, func(t *testing.T, c *cluster) {
		main := c.main.Open(t)
		for i := range c.sources { // of one database, as a table is looked for on one source and made on another
			c.sources[i] = c.main
		}
		for range 2 {
			for name, db := range handles(c.open(t).WithContext(limited(t))) {
				require.NoError(t, db.Migrate(), name)
				require.NoError(t, db.Migrate(&payment{}), name)
				require.NoError(t, db.Mutex("job").Do(nothing), name)
			}
		}
		require.NoError(t, c.open(t).Migrate(&later{}))
		require.NoError(t, main.Create(&later{Text: "new"}).Error)
		require.False(t, c.replica.Open(t).Migrator().HasTable(&payment{}))
		require.False(t, c.replica.Open(t).Migrator().HasTable(&dbmutex.DBMutex{}))
	})
}

// The lock's table is on the main pool even if the models' are elsewhere.
func TestDBResolverMigratesTheLockOnTheMainDatabase(t *testing.T) {
	t.Parallel()
	eachCluster(t, func(t *testing.T, c *cluster) {
		db := c.open(t).WithContext(limited(t))
		for range 2 {
			require.NoError(t, db.Migrate())
		}
		require.True(t, c.main.Open(t).Migrator().HasTable(&dbmutex.DBMutex{}))
		for _, other := range append(c.sources, c.replica) {
			require.False(t, other.Open(t).Migrator().HasTable(&dbmutex.DBMutex{}))
		}
		require.NoError(t, db.Mutex("job").Do(nothing))
	})
}

func TestDBResolverRecordsOnTheMainDatabase(t *testing.T) {
	t.Parallel()
	eachCluster(t, func(t *testing.T, c *cluster) {
		main := c.main.Mutexes(t, dbmutex.DefaultSettings())
		require.NoError(t, main.AutoMigrate(&payment{}))
		db := c.open(t).WithContext(limited(t))
		require.NoError(t, db.Migrate(), "the tables are there")
		for name, handle := range handles(db) {
			once := handle.Once(name, time.Hour)
			for range 2 {
				value, err := dbmutex.OnceValue(once, func(context.Context) (string, error) { return name, nil })
				require.NoError(t, err, name)
				require.Equal(t, name, value)
			}
			require.NotNil(t, testdb.OnceRow(t, main, name), name)
			require.NoError(t, once.Forget(), name)
			require.Nil(t, testdb.OnceRow(t, main, name), name)
			for range 2 {
				require.NoError(t, once.Transaction(func(tx *gorm.DB) error { return tx.Create(&payment{Amount: 1}).Error }), name)
			}
		}
		var payments int64
		require.NoError(t, main.Model(&payment{}).Count(&payments).Error)
		require.EqualValues(t, len(handles(db)), payments)
	})
}
