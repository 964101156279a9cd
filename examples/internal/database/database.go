// Package database opens the database that -dsn names, so that every example runs on any of them.
package database

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/glebarez/sqlite"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/schema"
)

// Usage describes -dsn.
const Usage = "the `database`: postgres://user@localhost/database, mysql://user:password@localhost/database, or the path " +
	"of a SQLite file; also PostgreSQL's key=value pairs, or user:password@tcp(localhost:3306)/database, as the driver " +
	"for MySQL has it (default: a temporary SQLite file)"

// Database is where a program keeps its tables.
type Database struct {
	DSN    string
	Prefix string // of the tables' names
	folder string // of a temporary SQLite file, or ""
}

// New is a new place for tables. It connects once: a SQLite file can only be made a WAL, which it then stays, while nobody
// else uses it.
func New(dsn string) (d *Database, err error) {
	d = &Database{DSN: dsn, Prefix: "example_" + strings.ToLower(rand.Text()[:8]) + "_"}
	if dsn == "" {
		if d.folder, err = os.MkdirTemp("", "dbmutex-example-"); err != nil {
			return nil, err
		}
		d.DSN = filepath.Join(d.folder, "example.db")
	}
	db, err := d.Open()
	if err != nil {
		return nil, err
	}
	pool, err := db.DB()
	if err != nil {
		return nil, err
	}
	return d, pool.Close()
}

// Open returns a handle with a pool of its own, as another process would have. It logs nothing.
func (d *Database) Open() (*gorm.DB, error) {
	dialector, err := Dialector(d.DSN)
	if err != nil {
		return nil, err
	}
	return gorm.Open(dialector, &gorm.Config{
		Logger:         logger.Discard,
		NamingStrategy: schema.NamingStrategy{TablePrefix: d.Prefix},
	})
}

// Remove removes the models' tables.
func (d *Database) Remove(models ...any) error {
	if d.folder != "" {
		return os.RemoveAll(d.folder)
	}
	db, err := d.Open()
	if err != nil {
		return err
	}
	pool, err := db.DB()
	if err != nil {
		return err
	}
	return errors.Join(db.Migrator().DropTable(models...), pool.Close())
}

var (
	postgresForm = regexp.MustCompile(`^postgres(ql)?://|^\w+ *=`)
	mysqlForm    = regexp.MustCompile(`^mysql://|@/|` + addressInParentheses)
	otherURL     = regexp.MustCompile(`^\w+://`)
)

// Dialector is GORM's for a DSN.
func Dialector(dsn string) (gorm.Dialector, error) {
	switch {
	case postgresForm.MatchString(dsn):
		return postgres.Open(dsn), nil
	case mysqlForm.MatchString(dsn):
		return mysqlDialector(dsn)
	case otherURL.MatchString(dsn):
		return nil, errors.New("the URL of the database must begin with postgres:// or mysql://")
	}
	separator := "?"
	if strings.Contains(dsn, "?") {
		separator = "&"
	}
	return sqlite.Open(dsn + separator + "_pragma=busy_timeout(60000)&_pragma=journal_mode(WAL)"), nil
}
