package testdb

import (
	"fmt"
	"path/filepath"
	"regexp"
	"testing"

	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
)

// SQLiteDialector makes the dialector of a SQLite file from its path. Tests of
// another driver replace it before they ask for a database.
var SQLiteDialector = func(dsn string) gorm.Dialector { return sqlite.Open(dsn) }

var sqliteKind = &Kind{
	Name:        "sqlite",
	OneWriter:   true,
	KeepsTokens: true,
	Combines:    true,
	Shared:      `(VALUES `,
	dialector:   func(dsn string) gorm.Dialector { return SQLiteDialector(dsn) },
	on:          func(pool gorm.ConnPool) gorm.Dialector { return &sqlite.Dialector{Conn: pool} },
	past:        `strftime('%Y-%m-%d %H:%M:%f', 'now', '-1 second')`,
	Migrating:   `CREATE TABLE made (id integer)`,
	verbs: map[string]*regexp.Regexp{
		"acquire": regexp.MustCompile(`^INSERT (OR REPLACE )?INTO \S+ \(lock_id, creation_time, .*\)\nSELECT`),
		"renew":   regexp.MustCompile(`^UPDATE \S+ SET expires_at = `),
		"release": regexp.MustCompile(`^DELETE FROM|^UPDATE \S+ SET lease_id = '-'`),
		"record":  regexp.MustCompile(`^UPDATE \S+ SET lease_id = 'done'`),
		"guard":   regexp.MustCompile(`^UPDATE \S+ SET lease_id = lease_id`),
	},
	EndsWithin: []string{`ROLLBACK`, `COMMIT`, `INSERT OR ROLLBACK INTO effects VALUES (0)`},
	Explain:    `EXPLAIN QUERY PLAN `,
	Searches:   `INDEX idx_db_onces_expires_at (expires_at`,
	Analyze:    `ANALYZE`,
	hang:       `DELETE FROM db_mutexes WHERE false`, // it takes the write lock
	Written:    `PRAGMA data_version`,
	Refuse:     []string{`CREATE TRIGGER refuse BEFORE INSERT ON db_mutexes BEGIN SELECT RAISE(ABORT, 'never'); END`},
	RefuseOne: []string{`CREATE TRIGGER refuse BEFORE INSERT ON db_mutexes WHEN NEW.lock_id LIKE 'crowd 1%'
BEGIN SELECT RAISE(ABORT, 'never'); END`},
}

func init() { sqliteKind.fresh = SQLite }

// SQLite makes a database in a new file, in WAL mode, in t.TempDir().
func SQLite(t testing.TB) *Database {
	t.Helper()
	d := &Database{sqliteKind, filepath.Join(t.TempDir(), "test.db")}
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
