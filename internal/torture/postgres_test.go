//go:build linux

package torture

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

const pgxDriver = "pgx"

func init() {
	arenas["postgres"] = func(t *testing.T) arena { return newPostgres(t) }
	drivers[pgxDriver] = func(dsn string) (gorm.Dialector, error) {
		config, err := pgx.ParseConfig(dsn)
		if err != nil {
			return nil, err
		}
		config.Tracer = tracer{}
		return postgres.New(postgres.Config{Conn: stdlib.OpenDB(*config)}), nil
	}
}

// postgresArena is a server, and a network to it for each worker.
type postgresArena struct {
	*network
	cluster *testdb.Cluster
	db      *dbmutex.DB
}

// ourselves is the application_name of the parent's sessions.
const ourselves = "torturer"

func newPostgres(t *testing.T) *postgresArena {
	a := &postgresArena{cluster: testdb.NewCluster(t)}
	db, err := gorm.Open(postgres.Open(a.cluster.DSN()+" application_name="+ourselves), &gorm.Config{Logger: logger.Discard})
	require.NoError(t, err)
	a.db = migrate(t, db)
	a.network = newNetwork(t, a.cluster.Database())
	return a
}

func (a *postgresArena) begin(t *testing.T, r *round) {
	r.db = a.db
	r.job.Driver, r.job.Notifies, r.job.Isolates = pgxDriver, true, true
	r.undone = undoWindow // a release never waits for the disk
	r.async = r.maybe(0.5)
	if r.async {
		r.setting = "synchronous_commit=off"
		r.total.add("rounds with "+r.setting, 1)
	}
	r.dsn = func(slot int) string {
		dsn := a.proxies[slot].Database.DSN
		if r.async {
			dsn += " " + r.setting
		}
		if r.maybe(0.2) {
			dsn += " default_query_exec_mode=exec"
		}
		return dsn
	}
	r.misuse()
	if r.maybe(0.5) {
		r.suffer("backend terminated", func(*testing.T) {
			_ = a.db.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE backend_type = 'client backend' AND application_name <> ? ORDER BY random() LIMIT 1`, ourselves).Error
		})
	}
	if r.maybe(0.5) {
		r.suffer("backends stopped for a while", func(*testing.T) { a.stopBackends(r) })
	}
	r.loseServer(a.cluster.Server, 0.4, 0.12)
	if r.maybe(0.7) {
		a.breakIn(r, 5)
	}
}

// stopBackends stops some of the server's processes in turn, each wherever it is.
func (a *postgresArena) stopBackends(r *round) {
	var ids []int
	_ = a.db.Raw(`SELECT pid FROM pg_stat_activity
		WHERE backend_type = 'client backend' AND application_name <> ? ORDER BY random() LIMIT 10`, ourselves).Scan(&ids).Error
	for _, id := range ids {
		_ = syscall.Kill(id, syscall.SIGSTOP)
		time.Sleep(r.upTo(30 * time.Millisecond))
		_ = syscall.Kill(id, syscall.SIGCONT)
	}
}

func (a *postgresArena) quiesce(t *testing.T) {
	require.Eventually(t, func() bool {
		left := -1
		err := a.db.Raw(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE backend_type = 'client backend' AND application_name <> ?`, ourselves).Scan(&left).Error
		return err == nil && left == 0
	}, 10*time.Second, 5*time.Millisecond, "the workers' sessions do not end")
}

func (a *postgresArena) end(t *testing.T, r *round) {
	require.NoError(t, r.db.Exec(`TRUNCATE counters, runs, db_onces`).Error)
}

// tracer counts the statements that got no answer.
type tracer struct{}

// sharedKey is for the mutexes that a statement for many names.
type sharedKey struct{}

func (tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, "ROWS FROM") && len(data.Args) > 0 {
		for _, arg := range data.Args {
			if ids, is := arg.(string); is && strings.Contains(ids, "crowd") {
				return context.WithValue(ctx, sharedKey{}, ids)
			}
		}
	}
	return ctx
}

func (tracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	var refused *pgconn.PgError
	answered := errors.As(data.Err, &refused) && !strings.HasPrefix(refused.Code, "57P") &&
		!strings.HasPrefix(refused.Code, "08")
	if data.Err == nil || answered {
		return
	}
	noteOf(ctx).lost.Add(1)
	if ids, shared := ctx.Value(sharedKey{}).(string); shared {
		crowdsNotes.lost(ids)
	}
}
