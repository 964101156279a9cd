//go:build linux

package torture

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	glebarez "github.com/glebarez/sqlite"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

func init() {
	arenas["sqlite"] = func(t *testing.T) arena { return newSQLite(t) }
	drivers["mattn"] = func(dsn string) (gorm.Dialector, error) { return sqlite.Open(dsn), nil }
	drivers["glebarez"] = func(dsn string) (gorm.Dialector, error) { return glebarez.Open(dsn), nil }
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
	r.job.Driver = []string{"mattn", "glebarez"}[r.rand.IntN(2)] // one in a process: two would not see each other's locks
	r.setting += ", driver " + r.job.Driver
	r.total.add("rounds with driver "+r.job.Driver, 1)
	r.dsn = func(int) string { return path }
	r.misuse()
	lock := func(held time.Duration) {
		_ = db.Transaction(func(tx *gorm.DB) error {
			if err := tx.Exec(`UPDATE counters SET n = n WHERE false`).Error; err != nil {
				return err
			}
			time.Sleep(held)
			return nil
		})
	}
	if r.maybe(0.5) {
		r.suffer("file locked by another writer", func(*testing.T) {
			held := r.upTo(500 * time.Millisecond)
			a.writer.Wait()
			a.writer.Go(func() { lock(held) })
		})
	}
	if r.maybe(0.2) {
		r.sufferOnce("file locked for long", func(*testing.T) {
			a.writer.Wait()
			lock(r.absence())
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
