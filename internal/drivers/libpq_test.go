package drivers_test

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// recorder is a logger that keeps its warnings, and what the server sends as notices.
type recorder struct {
	logger.Interface
	mu       sync.Mutex
	warnings []string
	notices  []string
}

func (r *recorder) Warn(_ context.Context, text string, _ ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warnings = append(r.warnings, text)
}

func (r *recorder) notice(n *pq.Error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notices = append(r.notices, n.Message)
}

// takeWarnings returns the warnings so far and forgets them.
func (r *recorder) takeWarnings() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	warnings := r.warnings
	r.warnings = nil
	return warnings
}

// openLibpq opens a PostgreSQL database through lib/pq, which gives its connections back inside of a transaction.
func openLibpq(t *testing.T, d *testdb.Database, config *gorm.Config) (*dbmutex.DB, *sql.DB, *recorder) {
	log := &recorder{Interface: logger.Discard}
	connector, err := pq.NewConnector(d.DSN)
	require.NoError(t, err)
	pool := sql.OpenDB(pq.ConnectorWithNoticeHandler(connector, log.notice))
	t.Cleanup(func() { require.NoError(t, pool.Close()) })
	config.Logger = log
	gdb, err := gorm.Open(postgres.New(postgres.Config{DriverName: "postgres", Conn: pool}), config)
	require.NoError(t, err)
	return testdb.Register(t, gdb, dbmutex.DefaultSettings()).WithContext(limited(t)), pool, log
}

func TestNoVerbRunsInATransactionThatWasLeftOpenWithLibpq(t *testing.T) {
	for kind, inside := range map[string]string{
		"nothing":            ``,
		"a read":             `SELECT 1`,
		"a write":            `INSERT INTO payments (amount) VALUES (1)`,
		"a failed statement": `SELECT nonsense`,
	} {
		for _, prepare := range []bool{false, true} {
			for _, connections := range []int{1, 3} {
				t.Run(kind, func(t *testing.T) {
					d := testdb.Postgres(t)
					require.NoError(t, d.Open(t).AutoMigrate(&payment{}))
					db, pool, log := openLibpq(t, d, &gorm.Config{PrepareStmt: prepare})
					pool.SetMaxOpenConns(connections)
					pool.SetMaxIdleConns(connections)
					leave := func() {
						t.Helper()
						var conns []*sql.Conn
						for range connections {
							conn, err := pool.Conn(limited(t))
							require.NoError(t, err)
							_, _ = conn.ExecContext(limited(t), `BEGIN`)
							_, err = conn.ExecContext(limited(t), inside)
							require.Equal(t, strings.Contains(inside, "nonsense"), err != nil, "%v", err)
							conns = append(conns, conn)
						}
						for _, conn := range conns {
							require.NoError(t, conn.Close())
						}
					}
					told := func() {
						t.Helper()
						warnings := slices.DeleteFunc(log.takeWarnings(), func(warning string) bool {
							return strings.Contains(warning, "forced the release")
						})
						require.NotEmpty(t, warnings)
						require.Contains(t, warnings[0], "left open on a connection of the pool")
						require.LessOrEqual(t, len(warnings), connections)
					}
					leave()
					require.NoError(t, db.Migrate())
					told()

					other := d.Registered(t, dbmutex.DefaultSettings()).WithContext(limited(t))
					row := func() *dbmutex.DBMutex {
						holder, err := other.Mutex("job").Holder()
						require.NoError(t, err)
						return holder
					}

					leave()
					lease, err := db.Mutex("job").Acquire()
					require.NoError(t, err)
					told()
					first := row()
					require.NotNil(t, first)
					leave()
					require.NoError(t, lease.Renew())
					told()
					require.True(t, row().ExpiresAt.After(*first.ExpiresAt))
					leave()
					holder, err := db.Mutex("job").Holder()
					require.NoError(t, err)
					told()
					require.Equal(t, first.LeaseID, holder.LeaseID)
					leave()
					require.NoError(t, lease.Release())
					told()
					require.Nil(t, row())

					short, err := other.Mutex("job", dbmutex.WithTTL(time.Millisecond)).Acquire()
					require.NoError(t, err)
					leave()
					next, err := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire() // a take-over
					require.NoError(t, err)
					told()
					require.Greater(t, next.Token(), short.Token())
					require.NotNil(t, row())
					leave()
					require.NoError(t, db.Mutex("job").ForceRelease())
					told()
					require.Nil(t, row())

					leave()
					require.NoError(t, db.Mutex("job").Do(func(context.Context) error {
						require.NotNil(t, row())
						return nil
					}))
					told()
					require.Nil(t, row())
					leave()
					require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error {
						return tx.Create(&payment{Amount: 2}).Error
					}))
					told()
					require.Nil(t, row())
					var amounts []int
					require.NoError(t, other.Model(&payment{}).Pluck("amount", &amounts).Error)
					require.Equal(t, []int{2}, amounts)
				})
			}
		}
	}
}

func TestLibpqHearsNoNoticeOfAConnectionThatIsInOrder(t *testing.T) {
	d := testdb.Postgres(t)
	db, _, log := openLibpq(t, d, &gorm.Config{})
	require.NoError(t, db.Migrate(&payment{}))
	require.NoError(t, db.Mutex("job").Do(nothing))
	require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error { return tx.Create(&payment{}).Error }))
	require.Empty(t, log.takeWarnings())
	require.Empty(t, log.notices)
}
