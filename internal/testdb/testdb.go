// Package testdb gives tests real databases, each of the test's own: a SQLite
// file, a schema on a PostgreSQL server, or a database on a MariaDB or MySQL
// server.
//
// A server is the one whose DSN the environment has. Without it, each test binary
// starts a throw-away server from the programs found on the machine, which ends
// with the test process however that ends. A Server is such a server in any case,
// for the tests that break one.
//
// These environment variables have a say:
//
//   - DBMUTEX_TEST_DSN: a URL or keyword DSN of the PostgreSQL server to use. Its
//     user must be allowed to create schemas.
//   - DBMUTEX_TEST_PGBIN: the folder with the initdb, pg_ctl and postgres programs to
//     use rather than those found.
//   - DBMUTEX_TEST_POSTGRES: "required" fails tests if PostgreSQL, PgBouncer,
//     faketime, Redis or chromium is missing, rather than skipping them. "none"
//     skips what needs PostgreSQL, also if it is there.
//   - DBMUTEX_TEST_MYSQL_DSN: a DSN of the MariaDB or MySQL server to use, such as
//     root@tcp(127.0.0.1:3306)/. Its user must be allowed to create databases.
//   - DBMUTEX_TEST_MYSQL_PARAMETERS: what the DSN of each test's database says in
//     addition, such as interpolateParams=true&loc=Asia%2FTokyo.
//   - DBMUTEX_TEST_MYSQLBIN: the folder with the programs to use rather than those
//     found: mariadbd and mariadb-install-db, or else MySQL's mysqld. A script that
//     stands for the server must exec it, and add its options after those it is given.
//   - DBMUTEX_TEST_MYSQL: as DBMUTEX_TEST_POSTGRES, for MariaDB.
//   - DBMUTEX_TEST_OBSERVER: gives all mutexes an observer that "panics", "blocks" for
//     a while, or returns "nil" or a "cancelled" context. It may make no test fail.
//   - DBMUTEX_TEST_TABLE: "sql" lets the SQL of docs/schema.md make the lock's table, rather than Migrate.
package testdb

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/schema"
)

// Kind is a kind of database, such as "sqlite". A test that must know more than its promises asks for a fact, not for
// the name.
type Kind struct {
	Name string

	// Notifies: other processes hear of releases (with pgnotify).
	Notifies bool
	// Remote: the database is another process, whose answers can get lost.
	Remote bool
	// Combines: what many goroutines do with mutexes at once may be one statement.
	Combines bool
	// Shared stands in the text of such a statement.
	Shared string
	// OneWriter: a transaction that has written keeps everybody else from writing.
	OneWriter bool
	// DropsLeftOpen: the usual driver closes a connection that comes back to the pool within a transaction.
	DropsLeftOpen bool

	// LeastRights are all that a program needs once the tables are there, for Database.Granted.
	LeastRights []string
	// NeededFor are the verbs that fail without a right, by the right as it stands in a REVOKE.
	NeededFor map[string][]string
	// MakingRights are all that it takes to make the tables and to use them then; %s stands for CurrentSchema.
	MakingRights []string
	// Errors are the usual driver's, by what they mean, if the database is Remote.
	Errors Errors

	// Session is a query for the number of the session that it runs in.
	Session string
	// Written is a query, in a session that stays the same, whose answer changes when another session has written.
	Written string

	// Refuse are statements that make a table with one row refuse that the row's mutex is acquired, with the error "never".
	Refuse []string
	// RefuseOne are statements that make it refuse every mutex whose id begins with "crowd 1", with the same error.
	RefuseOne []string
	// Delay are statements that make that take 0.2 seconds.
	Delay []string
	// RenewedAt are the isolation levels of transactions during which a lease is renewed.
	RenewedAt []sql.IsolationLevel

	// KeepsTokens: a lease's row has its fencing token.
	KeepsTokens bool
	// Remembers: it can be asked how a transaction ended, whatever happened since.
	Remembers bool
	// DDLCommits: a statement such as CREATE TABLE commits the transaction that it runs in.
	DDLCommits bool
	// Migrating is a statement in a transaction that makes Migrate wait until the transaction ends; "" if none does.
	Migrating string

	// Unhurried are settings of a server that writes to its disk late what nobody waits for.
	Unhurried []string
	// AsyncCommit is a setting of a session, with its values under which a crash may undo a commit, or not. "" = there is none.
	AsyncCommit [3]string
	// AsyncRelease: a crash of the server may undo a release.
	AsyncRelease bool
	// ReadOnly is a setting of a server, on or off, that makes it refuse changes, with what the error says then.
	ReadOnly [2]string

	// HandMade are statements that make a table which can be used, by what is unusual in it.
	HandMade map[string][]string
	// Unusable are a statement that makes a table which cannot be used, and what the error says, by what is wrong with it.
	Unusable map[string][]string
	// EndsWithin are statements that end the transaction in which they run, perhaps by their failure. The table effects has a
	// unique column n with a row 0.
	EndsWithin []string
	// Explain is what makes a statement one for its plan, and Analyze one that counts the rows of Once for such plans. Searches
	// is what a plan says that reads a part of the index on expires_at.
	Explain, Analyze, Searches string
	// Shape is a query for what the database says of the table.
	Shape string
	// Catalog are queries for what makes the table what it is: columns, indexes and the like. Their answers are the same for
	// tables that were made in the same way. Options is a query for what Migrate sets besides, or "".
	Catalog []string
	Options string

	engine    *engine // nil: there is no server
	fresh     func(t testing.TB) *Database
	dialector func(dsn string) gorm.Dialector
	on        func(pool gorm.ConnPool) gorm.Dialector
	verbs     map[string]*regexp.Regexp // of Verb
	past      string                    // an SQL expression: the time a second ago, as expires_at has it
	// hang is a statement in a transaction that makes the writes of others wait until the transaction ends, and letGo one that
	// undoes it where that end doesn't.
	hang, letGo string
	// with, limits, ordinary, granted, victims, connector and atLevel are for sessions.go.
	with      func(dsn, name, value string) string
	limits    func(t testing.TB, d *Database, idle bool) []Limit
	ordinary  func(t testing.TB, d *Database) *Database
	victims   func(t testing.TB, d *Database) (_ *Database, kill func() error)
	granted   func(t testing.TB, d *Database, rights []string) *Database
	connector func(dsn string) (driver.Connector, error)
	atLevel   func(t testing.TB, d *Database, level string) *Database
	schema    string // a query for the name of CurrentSchema
}

// kinds are all that Each runs a test on.
var kinds = []*Kind{sqliteKind, postgresKind, mysqlKind}

// Errors are errors of a database's.
type Errors struct {
	Killed    error // the session was ended from outside: the statement may have had its effect
	Conflict  error // the transaction failed, as others were in the way
	Forbidden error // the statement was refused
}

// Database is one database of a test's own.
type Database struct {
	*Kind
	DSN string // a SQLite file's path, or the DSN of the schema or the database
}

// At is the database another process made: a child process gets name and dsn
// from its parent, which keeps the database until the child has ended.
func At(name, dsn string) *Database {
	for _, kind := range kinds {
		if kind.Name == name {
			return &Database{kind, dsn}
		}
	}
	panic("testdb: no database is called " + name)
}

// Verb says what a statement of the lock's does: "acquire", "renew", "release", "record" or "guard". It is "" for others,
// among them those that look, and those of notifications.
func (k *Kind) Verb(statement string) string {
	statement = strings.TrimPrefix(statement, "PREPARE ")
	for verb, pattern := range k.verbs {
		if pattern.MatchString(statement) {
			return verb
		}
	}
	return ""
}

// Each runs fn in a subtest per kind of database, each with a fresh Database.
func Each(t *testing.T, fn func(t *testing.T, d *Database)) {
	t.Helper()
	EachOf(t, func(*Kind) bool { return true }, fn)
}

// Notifies is for EachOf.
func Notifies(k *Kind) bool { return k.Notifies }

// Remote is for EachOf.
func Remote(k *Kind) bool { return k.Remote }

// ManyWriters is for EachOf.
func ManyWriters(k *Kind) bool { return !k.OneWriter }

// EachOf is Each for the kinds that are wanted.
func EachOf(t *testing.T, wanted func(*Kind) bool, fn func(t *testing.T, d *Database)) {
	t.Helper()
	for _, kind := range kinds {
		if wanted(kind) {
			t.Run(kind.Name, func(t *testing.T) { fn(t, kind.fresh(t)) })
		}
	}
}

// All are fresh databases, one of each kind that this machine has, for what is no *testing.T.
func All(t testing.TB) (all []*Database) {
	t.Helper()
	for _, kind := range kinds {
		if kind.engine == nil || kind.engine.there() {
			all = append(all, kind.fresh(t))
		}
	}
	return all
}

// Another is a fresh database of the same kind.
func (d *Database) Another(t testing.TB) *Database {
	t.Helper()
	return d.fresh(t)
}

// Dialector returns a new dialector, for a new pool on the same schema or file.
func (d *Database) Dialector() gorm.Dialector { return d.dialector(d.DSN) }

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
		if err := pool.Close(); err != nil && !strings.HasSuffix(err.Error(), "bad connection") { // a test has cut it
			t.Errorf("testdb: close %s: %v", d.Name, err)
		}
	})
	return db
}

// Mutexes is Open with the plugin registered and the lock's table made.
func (d *Database) Mutexes(t testing.TB, settings dbmutex.Settings, opts ...gorm.Option) *dbmutex.DB {
	t.Helper()
	db := d.Registered(t, settings, opts...)
	d.makeTable(t, db)
	return db
}

// MutexesOn is Mutexes on a pool that is there, and may do with its statements what it likes. Closing it is the caller's.
func (d *Database) MutexesOn(t testing.TB, pool gorm.ConnPool, settings dbmutex.Settings, opts ...gorm.Option) *dbmutex.DB {
	t.Helper()
	db := Register(t, d.OpenOn(t, pool, opts...), settings)
	d.makeTable(t, db)
	return db
}

// makeTable makes the lock's table, unless it is there.
func (d *Database) makeTable(t testing.TB, db *dbmutex.DB) {
	t.Helper()
	if os.Getenv("DBMUTEX_TEST_TABLE") == "sql" {
		if err := d.makeTableBySQL(t); err != nil {
			t.Fatalf("testdb: make the table in %s by SQL: %v", d.Name, err)
		}
	}
	if err := db.Migrate(); err != nil {
		t.Fatalf("testdb: make the table in %s: %v", d.Name, err)
	}
}

// makeTableBySQL leaves no connection behind.
func (d *Database) makeTableBySQL(t testing.TB) error {
	db, err := d.Connect()
	if err != nil {
		return err
	}
	if !db.Migrator().HasTable(&dbmutex.DBMutex{}) {
		for _, textFor := range []func(string) (string, error){schema.SQL, schema.OnceSQL} {
			text, missing := textFor(d.Name)
			err = errors.Join(err, missing, db.Exec(text).Error)
		}
		t.Logf("testdb: SQL has made the table in %s", d.Name)
	}
	pool, _ := db.DB()
	return errors.Join(err, pool.Close())
}

// OpenOn is Open on a pool that is there.
func (d *Database) OpenOn(t testing.TB, pool gorm.ConnPool, opts ...gorm.Option) *gorm.DB {
	t.Helper()
	db, err := gorm.Open(d.on(pool), append([]gorm.Option{quiet{}}, opts...)...)
	if err != nil {
		t.Fatalf("testdb: open %s: %v", d.Name, err)
	}
	return db
}

// Registered is Open with the plugin registered. The table may be missing.
func (d *Database) Registered(t testing.TB, settings dbmutex.Settings, opts ...gorm.Option) *dbmutex.DB {
	t.Helper()
	return Register(t, d.Open(t, opts...), settings)
}

// Register gives a handle the plugin.
func Register(t testing.TB, db *gorm.DB, settings dbmutex.Settings) *dbmutex.DB {
	t.Helper()
	if err := db.Use(dbmutex.New(observed(settings))); err != nil {
		t.Fatalf("testdb: register the plugin: %v", err)
	}
	return dbmutex.Wrap(db)
}

// Connect is Registered for what is no test, such as a child process. It has the default settings.
func (d *Database) Connect() (*dbmutex.DB, error) {
	db, err := gorm.Open(d.Dialector(), quiet{})
	if err != nil {
		return nil, err
	}
	return dbmutex.Wrap(db), db.Use(dbmutex.New(observed(dbmutex.DefaultSettings())))
}

// Expire makes the row of a lease, or of a MinHold, run out now, as if its time had passed.
func Expire(t testing.TB, db *dbmutex.DB, id string) {
	t.Helper()
	res := db.Exec(`UPDATE db_mutexes SET expires_at = `+At(db.Name(), "").past+` WHERE lock_id = ?`, id)
	if res.Error != nil || res.RowsAffected != 1 {
		t.Fatalf("testdb: expire %q: %d rows, %v", id, res.RowsAffected, res.Error)
	}
}

// ExpireAll makes the rows of a condition run out now.
func ExpireAll(t testing.TB, db *dbmutex.DB, condition string, args ...any) {
	t.Helper()
	statement := `UPDATE db_mutexes SET expires_at = ` + At(db.Name(), "").past + ` WHERE ` + condition
	if err := db.Exec(statement, args...).Error; err != nil {
		t.Fatalf("testdb: expire: %v", err)
	}
}

// Hang makes statements that write to the lock's table wait, as if the database hung, until letGo.
func (d *Database) Hang(t testing.TB) (letGo func()) {
	t.Helper()
	tx := d.Open(t).Begin()
	if err := tx.Exec(d.hang).Error; err != nil {
		t.Fatalf("testdb: hang %s: %v", d.Name, err)
	}
	return func() {
		t.Helper()
		if d.letGo != "" {
			tx.Exec(d.letGo)
		}
		if err := tx.Rollback().Error; err != nil {
			t.Errorf("testdb: let %s go: %v", d.Name, err)
		}
	}
}

// quiet is the gorm.Option which discards the log if nothing else is said.
// GORM applies a *gorm.Config before every other option, whatever their order.
type quiet struct{}

// Apply sets the logger.
func (quiet) Apply(c *gorm.Config) error {
	if c.Logger == nil {
		c.Logger = logger.Discard
	}
	return nil
}

// AfterInitialize does nothing.
func (quiet) AfterInitialize(*gorm.DB) error { return nil }
