//go:build linux

package torture

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/pgproxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// fault is a kind of misfortune.
type fault struct {
	name   string
	strike func(t *testing.T)
}

// suffer adds a kind of fault to a round.
func (r *round) suffer(name string, strike func(t *testing.T)) {
	r.faults = append(r.faults, fault{name, strike})
}

// misuse adds the faults that processes have on any database.
func (r *round) misuse() {
	if r.maybe(0.4) {
		r.suffer("worker killed", func(t *testing.T) {
			i := r.rand.IntN(len(r.workers))
			r.kill(r.workers[i])
			r.workers[i] = r.start(t, r.workers[i].slot)
		})
	}
	if r.maybe(0.5) {
		r.suffer("worker stopped for a while", func(*testing.T) {
			r.workers[r.rand.IntN(len(r.workers))].pause(100*time.Millisecond + r.upTo(1900*time.Millisecond))
		})
	}
}

// sqliteArena has a file for each round.
type sqliteArena struct {
	folder string
	writer sync.WaitGroup
}

func newSQLite(t *testing.T) *sqliteArena { return &sqliteArena{folder: t.TempDir()} }

func openSQLite(t *testing.T, path string) *gorm.DB {
	db, err := gorm.Open(sqlite.Open(path), &gorm.Config{Logger: logger.Discard})
	require.NoError(t, err)
	return db
}

func (a *sqliteArena) begin(t *testing.T, r *round) {
	path := filepath.Join(a.folder, fmt.Sprintf("%d.db", r.number))
	db := openSQLite(t, path)
	r.setting = "journal_mode=" + []string{"WAL", "DELETE"}[r.rand.IntN(2)]
	require.NoError(t, db.Exec(`PRAGMA `+r.setting).Error)
	r.total.add("rounds with "+r.setting, 1)
	r.db = migrate(t, db)
	r.job.Database = "sqlite"
	r.job.Driver = []string{"mattn", "glebarez"}[r.rand.IntN(2)] // one in a process: two would not see each other's locks
	r.setting += ", driver " + r.job.Driver
	r.total.add("rounds with driver "+r.job.Driver, 1)
	r.dsn = func(int) string { return path }
	r.misuse()
	if r.maybe(0.5) {
		r.suffer("file locked by another writer", func(t *testing.T) {
			held := r.upTo(500 * time.Millisecond)
			a.writer.Wait()
			a.writer.Go(func() {
				_ = db.Transaction(func(tx *gorm.DB) error {
					if err := tx.Exec(`UPDATE counters SET n = n WHERE false`).Error; err != nil {
						return err
					}
					time.Sleep(held)
					return nil
				})
			})
		})
	}
}

func (a *sqliteArena) calm() { a.writer.Wait() }

func (a *sqliteArena) quiesce(*testing.T) {}

func (a *sqliteArena) end(t *testing.T, r *round) {
	var report string
	require.NoError(t, r.db.Raw(`PRAGMA integrity_check`).Scan(&report).Error)
	require.Equal(t, "ok", report)
	pool, err := r.db.DB()
	require.NoError(t, err)
	require.NoError(t, pool.Close())
	require.NoError(t, os.Remove(r.dsn(0)))
}

// postgresArena is a server, and a network to it for each worker.
type postgresArena struct {
	cluster *testdb.Cluster
	proxies []*pgproxy.Proxy
	db      *dbmutex.DB
	healers sync.WaitGroup // what ends faults that last
}

// crashed is the fault that a round has at most once.
const crashed = "server crashed"

// ourselves is the application_name of the parent's sessions.
const ourselves = "torturer"

func newPostgres(t *testing.T) *postgresArena {
	a := &postgresArena{cluster: testdb.NewCluster(t)}
	db, err := gorm.Open(postgres.Open(a.cluster.DSN()+" application_name="+ourselves), &gorm.Config{Logger: logger.Discard})
	require.NoError(t, err)
	a.db = migrate(t, db)
	for range workers {
		a.proxies = append(a.proxies, pgproxy.New(t, a.cluster.DSN()))
	}
	return a
}

func (a *postgresArena) begin(t *testing.T, r *round) {
	r.db = a.db
	r.job.Database = "postgres"
	r.async = r.maybe(0.5)
	if r.async {
		r.setting = "synchronous_commit=off"
		r.total.add("rounds with "+r.setting, 1)
	}
	r.dsn = func(slot int) string {
		dsn := a.proxies[slot].DSN()
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
	if r.maybe(0.4) {
		r.suffer(crashed, func(t *testing.T) {
			from := now()
			a.cluster.Stop(t, "immediate")
			a.cluster.Start(t)
			r.crashes = append(r.crashes, interval{from, now()})
			r.faults = slices.DeleteFunc(r.faults, func(f fault) bool { return f.name == crashed }) // it takes long enough
		})
	}
	if r.maybe(0.7) {
		a.breakNetwork(r)
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

// breakNetwork makes the network one that breaks.
func (a *postgresArena) breakNetwork(r *round) {
	proxy := func() *pgproxy.Proxy { return a.proxies[r.rand.IntN(len(a.proxies))] }
	heal := func(d time.Duration, how func()) {
		a.healers.Add(1)
		time.AfterFunc(d, func() { defer a.healers.Done(); how() })
	}
	if r.maybe(0.7) {
		chance := 0.03 * r.rand.Float64()
		for _, p := range a.proxies {
			dice := rand.New(rand.NewPCG(r.rand.Uint64(), 0))
			p.Choose(func(string) *pgproxy.Fault {
				switch roll := dice.Float64(); {
				case roll < chance/4:
					r.total.add("fault: request lost", 1)
					return &pgproxy.Fault{Unsent: true}
				case roll < chance:
					r.total.add("fault: answer lost", 1)
					return &pgproxy.Fault{After: dice.IntN(5)}
				}
				return nil
			})
		}
	}
	if r.maybe(0.4) {
		r.suffer("network reset", func(*testing.T) { proxy().Reset() })
	}
	if r.maybe(0.4) {
		r.suffer("network frozen", func(*testing.T) {
			p := proxy()
			p.Freeze()
			heal(100*time.Millisecond+r.upTo(700*time.Millisecond), p.Thaw)
		})
	}
	if r.maybe(0.3) {
		r.suffer("network slow", func(*testing.T) {
			p := proxy()
			p.Drag(r.upTo(8 * time.Millisecond))
			heal(r.upTo(500*time.Millisecond), func() { p.Drag(0) })
		})
	}
}

func (a *postgresArena) calm() {
	a.healers.Wait()
	for _, p := range a.proxies {
		p.Choose(nil)
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
	require.NoError(t, r.db.Exec(`TRUNCATE counters, runs`).Error)
}
