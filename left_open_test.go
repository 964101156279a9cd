package dbmutex_test

import (
	"context"
	"database/sql"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// warning is what a rolled back transaction of somebody else's is logged with.
const warning = "left open on a connection of the pool"

// leaver leaves connections of a pool in transactions, as a program's raw BEGIN does.
type leaver struct {
	db        *dbmutex.DB
	out       *logs
	inside    []string // what runs after the BEGIN
	maxOpen   int
	discarded bool // the driver gives up such connections by itself, so that nobody need be told
	warned    int
}

// leave does so on every connection. The one that the pool gives next has what is inside.
func (l *leaver) leave(t *testing.T) {
	t.Helper()
	pool, err := l.db.DB()
	require.NoError(t, err)
	var conns []*sql.Conn
	for range l.maxOpen {
		conn, err := pool.Conn(limited(t))
		require.NoError(t, err)
		conns = append(conns, conn)
		_, _ = conn.ExecContext(limited(t), `BEGIN`) // which fails if it has been left before
	}
	for _, statement := range l.inside {
		_, err := conns[0].ExecContext(limited(t), statement)
		require.Equal(t, strings.Contains(statement, "nonsense"), err != nil, "%v", err)
	}
	for i := range conns {
		require.NoError(t, conns[len(conns)-1-i].Close())
	}
	l.warned = l.warnings()
}

func (l *leaver) warnings() int { return strings.Count(l.out.String(), warning) }

// told wants that the log has told of the transaction.
func (l *leaver) told(t *testing.T) {
	t.Helper()
	switch warnings := l.warnings() - l.warned; {
	case l.discarded:
		require.Zero(t, warnings)
	case l.maxOpen == 1:
		require.Equal(t, 1, warnings)
	default:
		require.Positive(t, warnings)
	}
}

// eachLeaver runs a test for what can be inside of a transaction, on pools of one and of several connections, with and
// without prepared statements.
func eachLeaver(t *testing.T, test func(t *testing.T, l *leaver, d *testdb.Database)) {
	for kind, inside := range map[string][]string{
		"nothing":            nil,
		"a read":             {`SELECT count(*) FROM left_open`},
		"a write":            {`INSERT INTO left_open VALUES (1)`},
		"a failed statement": {`SELECT nonsense`},
	} {
		t.Run(kind, func(t *testing.T) {
			testdb.Each(t, func(t *testing.T, d *testdb.Database) {
				require.NoError(t, d.Open(t).Exec(`CREATE TABLE left_open (id integer)`).Error)
				for _, prepare := range []bool{false, true} {
					for _, maxOpen := range []int{1, 3} {
						out := &logs{}
						db := d.Registered(t, dbmutex.DefaultSettings(),
							&gorm.Config{Logger: out.logger(logger.Warn), PrepareStmt: prepare})
						pool, err := db.DB()
						require.NoError(t, err)
						pool.SetMaxOpenConns(maxOpen)
						pool.SetMaxIdleConns(maxOpen)
						l := &leaver{db: db.WithContext(limited(t)), out: out, inside: inside, maxOpen: maxOpen}
						l.discarded = d.DropsLeftOpen
						test(t, l, d)
					}
				}
			})
		})
	}
}

func TestNoVerbRunsInATransactionThatWasLeftOpen(t *testing.T) {
	t.Parallel()
	eachLeaver(t, func(t *testing.T, l *leaver, d *testdb.Database) {
		l.leave(t)
		require.NoError(t, l.db.Migrate())
		l.told(t)
		other := d.Registered(t, dbmutex.DefaultSettings()).WithContext(limited(t))
		last := int64(0)
		grows := func(lease *dbmutex.Lease) {
			t.Helper()
			require.Greater(t, lease.Token(), last)
			last = lease.Token()
		}

		l.leave(t)
		lease := acquire(t, l.db, "job")
		l.told(t)
		grows(lease)
		requireHeld(t, other, "job")

		before := row(t, other, "job").ExpiresAt
		time.Sleep(2 * time.Millisecond) // SQLite counts milliseconds
		l.leave(t)
		require.NoError(t, lease.Renew())
		l.told(t)
		require.True(t, row(t, other, "job").ExpiresAt.After(*before))

		l.leave(t)
		require.NoError(t, lease.Release())
		l.told(t)
		require.Nil(t, row(t, other, "job"))

		lease = acquire(t, other, "job")
		grows(lease)
		l.leave(t)
		holder, err := l.db.Mutex("job").Holder()
		require.NoError(t, err)
		l.told(t)
		require.Equal(t, row(t, other, "job"), holder)

		l.leave(t)
		requireHeld(t, l.db, "job")
		l.told(t)

		l.leave(t)
		require.NoError(t, l.db.Mutex("job").ForceRelease())
		l.told(t)
		require.Nil(t, row(t, other, "job"))
		require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)

		stale := acquire(t, other, "job")
		grows(stale)
		testdb.Expire(t, other, "job")
		l.leave(t)
		lease = acquire(t, l.db, "job")
		l.told(t)
		grows(lease)
		requireHeld(t, other, "job")
		require.ErrorIs(t, stale.Release(), dbmutex.ErrTimeout)
		require.NoError(t, lease.Release())

		l.leave(t)
		require.NoError(t, l.db.Mutex("job").Do(func(ctx context.Context) error {
			requireHeld(t, other, "job")
			lease, _ := dbmutex.LeaseFrom(ctx)
			grows(lease)
			l.told(t)
			l.leave(t)
			return nil
		}))
		l.told(t)
		require.Nil(t, row(t, other, "job"))

		l.leave(t)
		require.NoError(t, l.db.Mutex("job").Transaction(func(tx *gorm.DB) error {
			lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
			grows(lease)
			requireHeld(t, other, "job")
			return tx.Exec(`INSERT INTO left_open VALUES (2)`).Error
		}))
		l.told(t)
		require.Nil(t, row(t, other, "job"))
		var ids []int
		require.NoError(t, other.Raw(`SELECT id FROM left_open`).Scan(&ids).Error)
		require.Equal(t, []int{2}, ids)
		require.NoError(t, other.Exec(`DELETE FROM left_open`).Error)
	})
}

func TestHolderSeesBeyondATransactionThatWasLeftOpen(t *testing.T) {
	t.Parallel()
	keepsLeftOpen := func(k *testdb.Kind) bool { return !k.DropsLeftOpen }
	testdb.EachOf(t, keepsLeftOpen, func(t *testing.T, d *testdb.Database) {
		db, other := openTwice(t, d)
		acquire(t, other, "job", dbmutex.WithHolder("first"))
		require.NoError(t, db.Exec(`BEGIN`).Error)
		require.NotNil(t, row(t, db, "job"))
		require.NoError(t, other.Mutex("job").ForceRelease())
		acquire(t, other, "job", dbmutex.WithHolder("second"))
		require.Equal(t, "first", row(t, db, "job").Holder, "the snapshot is stale")

		var held *dbmutex.HeldError
		require.ErrorAs(t, db.Mutex("job").Do(nothing), &held)
		require.Equal(t, "second", held.Holder)
	})
}

// openTwice opens a database as two programs, the first of which has a pool of one.
func openTwice(t *testing.T, d *testdb.Database, opts ...gorm.Option) (db, other *dbmutex.DB) {
	db, other = open(t, d, opts...).WithContext(limited(t)), open(t, d).WithContext(limited(t))
	pool, err := db.DB()
	require.NoError(t, err)
	pool.SetMaxOpenConns(1)
	return db, other
}

func TestATransactionThatWasLeftOpenInMemory(t *testing.T) {
	t.Parallel()
	out := &logs{}
	gdb, err := gorm.Open(testdb.SQLiteDialector(":memory:"), &gorm.Config{Logger: out.logger(logger.Warn)})
	require.NoError(t, err)
	pool, err := gdb.DB()
	require.NoError(t, err)
	defer func() { require.NoError(t, pool.Close()) }()
	pool.SetMaxOpenConns(1)
	require.NoError(t, gdb.Use(dbmutex.New(dbmutex.DefaultSettings())))
	db := dbmutex.Wrap(gdb).WithContext(limited(t))
	require.NoError(t, db.Migrate())
	require.NoError(t, db.Exec(`CREATE TABLE left_open (id integer)`).Error)
	require.NoError(t, db.Exec(`INSERT INTO left_open VALUES (1)`).Error)

	require.NoError(t, db.Exec(`BEGIN`).Error)
	require.NoError(t, db.Exec(`INSERT INTO left_open VALUES (2)`).Error)
	lease := acquire(t, db, "job")
	require.NoError(t, db.Exec(`BEGIN`).Error)
	require.NoError(t, lease.Renew())
	require.NoError(t, lease.Release())
	require.Equal(t, 2, strings.Count(out.String(), warning))
	var ids []int
	require.NoError(t, db.Raw(`SELECT id FROM left_open`).Scan(&ids).Error)
	require.Equal(t, []int{1}, ids)
	exercise(t, db)
}

// hidingPool is a pool that database/sql does not know, such as one for tracing, and that can begin transactions.
type hidingPool struct {
	gorm.ConnPool
	gorm.TxBeginner
}

func TestATransactionThatWasLeftOpenInAPoolOfOnesOwn(t *testing.T) {
	t.Parallel()
	for _, prepare := range []bool{false, true} {
		out := &logs{}
		db, other := openTwice(t, testdb.SQLite(t), &gorm.Config{Logger: out.logger(logger.Warn)})
		require.NoError(t, db.Exec(`CREATE TABLE left_open (id integer)`).Error)
		pool, err := db.DB()
		require.NoError(t, err)
		begin := func() {
			t.Helper()
			_, err := pool.Exec(`BEGIN`)
			require.NoError(t, err)
			_, err = pool.Exec(`INSERT INTO left_open VALUES (1)`)
			require.NoError(t, err)
		}
		db.Gorm = db.Gorm.Session(&gorm.Session{})
		db.Config.ConnPool = hidingPool{pool, pool}
		if prepare {
			db.Config.ConnPool = gorm.NewPreparedStmtDB(db.Config.ConnPool, 100, time.Hour)
		}
		db.Statement.ConnPool = db.Config.ConnPool
		exercise(t, db)
		require.NotContains(t, out.String(), "rolled back")

		begin()
		lease := acquire(t, db, "job")
		requireHeld(t, other, "job")
		begin()
		require.NoError(t, lease.Renew())
		begin()
		require.NoError(t, lease.Release())
		require.Nil(t, row(t, other, "job"))
		begin()
		require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error {
			return tx.Exec(`INSERT INTO left_open VALUES (2)`).Error
		}))
		begin()
		require.NoError(t, db.Migrate())
		require.Equal(t, 5, strings.Count(out.String(), warning))
		var ids []int
		require.NoError(t, other.Raw(`SELECT id FROM left_open`).Scan(&ids).Error)
		require.Equal(t, []int{2}, ids)
	}
}

// spoiledPool is one that somebody leaves in a transaction once, when a transaction of ours has just been rolled back.
type spoiledPool struct {
	*hidingPool
	spoil func()
}

func (p *spoiledPool) BeginTx(ctx context.Context, opts *sql.TxOptions) (gorm.ConnPool, error) {
	tx, err := p.hidingPool.BeginTx(ctx, opts)
	return &spoiledTx{tx, p}, err
}

type spoiledTx struct {
	*sql.Tx
	pool *spoiledPool
}

func (tx *spoiledTx) Rollback() error {
	err := tx.Tx.Rollback()
	if spoil := tx.pool.spoil; spoil != nil {
		tx.pool.spoil = nil
		spoil()
	}
	return err
}

func TestATransactionThatIsLeftOpenMeanwhileInAPoolOfOnesOwn(t *testing.T) {
	t.Parallel()
	out := &logs{}
	db, other := openTwice(t, testdb.SQLite(t), &gorm.Config{Logger: out.logger(logger.Warn)})
	pool, err := db.DB()
	require.NoError(t, err)
	spoiled := &spoiledPool{hidingPool: &hidingPool{pool, pool}}
	db.Gorm = db.Gorm.Session(&gorm.Session{})
	db.Config.ConnPool, db.Statement.ConnPool = spoiled, spoiled
	begin := func() { spoiled.spoil = func() { _, _ = pool.Exec(`BEGIN`) } }

	begin()
	lease := acquire(t, db, "job")
	requireHeld(t, other, "job")
	begin()
	require.NoError(t, lease.Renew())
	begin()
	require.NoError(t, lease.Release())
	require.Nil(t, row(t, other, "job"))
	require.Equal(t, 3, strings.Count(out.String(), warning))
}

// tracer keeps the statements that pgx sends.
type tracer struct {
	mu         sync.Mutex
	statements []string
}

func (r *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.statements = append(r.statements, data.SQL)
	return ctx
}

func (*tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestALookForATransactionCostsPgxNothing(t *testing.T) {
	t.Parallel()
	d := testdb.Postgres(t)
	open(t, d)
	config, err := pgx.ParseConfig(d.DSN)
	require.NoError(t, err)
	trace := &tracer{}
	config.Tracer = trace
	pool := stdlib.OpenDB(*config)
	defer func() { require.NoError(t, pool.Close()) }()
	db := d.MutexesOn(t, pool, dbmutex.DefaultSettings())
	require.NoError(t, db.Mutex("job").Do(nothing)) // asks for the sequence, too
	trace.statements = nil
	require.NoError(t, db.Mutex("job").Do(nothing))
	require.Len(t, trace.statements, 2, "an acquire and a release")
}
