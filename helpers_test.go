package dbmutex_test

import (
	"bytes"
	"io"
	"log"
	"strings"
	"sync"
	"testing"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// each runs a test on every database, with the plugin under its default settings and the table made.
func each(t *testing.T, test func(t *testing.T, db *dbmutex.DB, d *testdb.Database)) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) { test(t, open(t, d), d) })
}

// What all tests do with mutexes.
var (
	acquire        = testdb.Acquire
	row            = testdb.Row
	requireFree    = testdb.RequireFree
	requireHeld    = testdb.RequireHeld
	nothing        = testdb.Nothing
	limited        = testdb.Limited
	requireEnds    = testdb.RequireEnds
	exercise       = testdb.Exercise
	withSetting    = testdb.WithSetting
	currentSchema  = testdb.CurrentSchema
	requireTimeout = testdb.RequireTimeout
	timeoutOf      = testdb.TimeoutOf
)

func open(t *testing.T, d *testdb.Database, opts ...gorm.Option) *dbmutex.DB {
	t.Helper()
	return d.Mutexes(t, dbmutex.DefaultSettings(), opts...)
}

// logs is a GORM logger of everything, to read.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(testdb.Panic)) { // that is to be logged
		return len(p), nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logs) logger(level logger.LogLevel) logger.Interface {
	return logger.New(log.New(io.Writer(l), "", 0), logger.Config{LogLevel: level, SlowThreshold: time.Hour})
}

// openDSN opens a PostgreSQL database that has its table already, or gets none.
func openDSN(t *testing.T, dsn string) *dbmutex.DB {
	t.Helper()
	return testdb.PostgresAt(dsn).Registered(t, dbmutex.DefaultSettings())
}
