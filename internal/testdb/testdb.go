// Package testdb gives tests real databases: a SQLite file or a schema on a
// PostgreSQL server, each of the test's own.
//
// The PostgreSQL server is the one DBMUTEX_TEST_DSN names. Without it, each
// test binary starts a throw-away server from the PostgreSQL programs found on
// the machine, which ends with the test process however that ends. A Cluster is
// such a server in any case, for the tests that break one.
//
// These environment variables have a say:
//
//   - DBMUTEX_TEST_DSN: a URL or keyword DSN of the server to use. Its user
//     must be allowed to create schemas.
//   - DBMUTEX_TEST_PGBIN: the folder with the initdb, pg_ctl and postgres programs to
//     use rather than those found.
//   - DBMUTEX_TEST_POSTGRES: "required" fails tests where PostgreSQL, PgBouncer
//     or faketime is missing, rather than skipping them.
package testdb

import (
	"fmt"
	"path/filepath"
	"testing"

	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

const (
	nameSQLite   = "sqlite"
	namePostgres = "postgres"
)

// SQLiteDialector makes the dialector of a SQLite file from its path. Tests of
// another driver replace it before they ask for a database.
var SQLiteDialector = func(dsn string) gorm.Dialector { return sqlite.Open(dsn) }

// Database is one database of a test's own: a schema on a PostgreSQL server,
// or a SQLite file.
type Database struct {
	Name string // "sqlite" or "postgres"
	DSN  string // a file's path, or a DSN whose search_path is the schema
}

// At is the database another process made: a child process gets name and dsn
// from its parent, which keeps the database until the child has ended.
func At(name, dsn string) *Database {
	return &Database{Name: name, DSN: dsn}
}

// Each runs fn in a subtest per kind of database, "sqlite" and "postgres",
// each with a fresh Database.
func Each(t *testing.T, fn func(t *testing.T, d *Database)) {
	t.Helper()
	t.Run(nameSQLite, func(t *testing.T) { fn(t, SQLite(t)) })
	t.Run(namePostgres, func(t *testing.T) { fn(t, Postgres(t)) })
}

// SQLite makes a database in a new file, in WAL mode, in t.TempDir().
func SQLite(t testing.TB) *Database {
	t.Helper()
	d := &Database{Name: nameSQLite, DSN: filepath.Join(t.TempDir(), "test.db")}
	if err := d.createSQLite(); err != nil {
		t.Fatalf("testdb: make SQLite file %s: %v", d.DSN, err)
	}
	return d
}

// createSQLite creates the file and sets WAL mode, which the file keeps.
func (d *Database) createSQLite() error {
	db, err := gorm.Open(d.Dialector(), quiet{})
	if err != nil {
		return err
	}
	pool, err := db.DB()
	if err != nil {
		return err
	}
	var mode string
	err = db.Raw("PRAGMA journal_mode=WAL").Scan(&mode).Error
	if err == nil && mode != "wal" {
		err = fmt.Errorf("journal_mode is %q, not wal", mode)
	}
	if closeErr := pool.Close(); err == nil {
		err = closeErr
	}
	return err
}

// Dialector returns a new dialector, for a new pool on the same schema or file.
func (d *Database) Dialector() gorm.Dialector {
	switch d.Name {
	case nameSQLite:
		return SQLiteDialector(d.DSN)
	case namePostgres:
		return postgres.Open(d.DSN)
	}
	panic(fmt.Sprintf("testdb: no database is called %q", d.Name))
}

// Open opens a new pool with these options and closes it when the test ends.
// It logs nothing unless a *gorm.Config among the options has a Logger.
func (d *Database) Open(t testing.TB, opts ...gorm.Option) *gorm.DB {
	t.Helper()
	db, err := gorm.Open(d.Dialector(), append([]gorm.Option{quiet{}}, opts...)...)
	if err != nil {
		t.Fatalf("testdb: open %s: %v", d.Name, err)
	}
	pool, err := db.DB()
	if err != nil {
		t.Fatalf("testdb: pool of %s: %v", d.Name, err)
	}
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Errorf("testdb: close %s: %v", d.Name, err)
		}
	})
	return db
}

// quiet is the gorm.Option which discards the log if nothing else is said.
// GORM applies a *gorm.Config before every other option, whatever their order.
type quiet struct{}

func (quiet) Apply(c *gorm.Config) error {
	if c.Logger == nil {
		c.Logger = logger.Discard
	}
	return nil
}

func (quiet) AfterInitialize(*gorm.DB) error { return nil }
