package testdb

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
)

var postgresKind = &Kind{
	Name:          "postgres",
	Notifies:      true,
	Remote:        true,
	DropsLeftOpen: true, // pgx does
	Remembers:     true,
	dialector:     postgres.Open,
	on:            func(pool gorm.ConnPool) gorm.Dialector { return postgres.New(postgres.Config{Conn: pool}) },
	Unhurried:     []string{"wal_writer_delay = 10s", "bgwriter_delay = 10s", "autovacuum = off"},
	AsyncCommit:   [3]string{"synchronous_commit", "off", "on"},
	AsyncRelease:  true,
	ReadOnly:      [2]string{"default_transaction_read_only", "25006"},
	past:          `clock_timestamp() - interval '1 second'`,
	Migrating:     `SELECT pg_advisory_xact_lock(x'64626d75746578'::bigint)`,
	Combines:      true,
	Shared:        `ROWS FROM`,
	verbs: map[string]*regexp.Regexp{
		"acquire": regexp.MustCompile(`^WITH (other|stale) AS`),
		"renew":   regexp.MustCompile(`^UPDATE \S+ SET expires_at = `),
		"release": regexp.MustCompile(`^DELETE FROM|^UPDATE \S+ SET id = DEFAULT, lease_id = '-'`),
		"record":  regexp.MustCompile(`^UPDATE \S+ SET id = DEFAULT, lease_id = 'done'`),
		"guard":   regexp.MustCompile(`^SELECT 1 FROM \S+ .* FOR KEY SHARE`),
	},
	hang: `LOCK TABLE db_mutexes IN ACCESS EXCLUSIVE MODE`,
	Errors: Errors{
		Killed:    &pgconn.PgError{Code: "57P01", Message: "terminating connection"},
		Conflict:  &pgconn.PgError{Code: "40001", Message: "could not serialize access"},
		Forbidden: &pgconn.PgError{Code: "42501", Message: "permission denied"},
	},
	LeastRights: []string{
		`SELECT, INSERT, UPDATE, DELETE ON db_mutexes`, `USAGE ON SEQUENCE db_mutexes_id_seq`,
		`SELECT, INSERT, UPDATE, DELETE ON db_onces`, `USAGE ON SEQUENCE db_onces_id_seq`,
	},
	NeededFor: map[string][]string{
		`SELECT ON db_mutexes`: {
			"acquire", "take over", "renew", "guard", "release", "rest", "release in", "holder", "force release", "list", "prune",
		},
		`INSERT ON db_mutexes`: {"acquire", "take over"},
		`UPDATE ON db_mutexes`: {"take over", "renew", "guard", "rest", "prune"},
		`DELETE ON db_mutexes`: {"release", "release in", "force release", "prune"},
		// Without it the first look at the table fails, and an acquire makes the program look again.
		`USAGE ON SEQUENCE db_mutexes_id_seq`: {"acquire", "take over", "rest", "holder", "force release", "list", "prune"},

		`SELECT ON db_onces`:                {"once", "once over", "success", "done", "forget", "prune"},
		`INSERT ON db_onces`:                {"once", "once over", "success"},
		`UPDATE ON db_onces`:                {"once over", "success", "prune"},
		`DELETE ON db_onces`:                {"once", "once over", "forget", "prune"},
		`USAGE ON SEQUENCE db_onces_id_seq`: {"once", "once over", "success", "done", "forget", "prune"},
	},
	EndsWithin:   []string{`ROLLBACK`, `COMMIT`},
	Explain:      `EXPLAIN `,
	Searches:     `Index Cond: (expires_at `,
	Analyze:      `ANALYZE db_onces`,
	MakingRights: []string{`CREATE ON SCHEMA %s`},
	Session:      `SELECT pg_backend_pid()`,
	Written:      `SELECT pg_snapshot_xmax(pg_current_snapshot()) AS xid, pg_current_wal_insert_lsn() AS lsn`,
	Refuse: []string{
		`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'never' USING ERRCODE = '0A000'; END$$`,
		`CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON db_mutexes EXECUTE FUNCTION refuse()`,
	},
	RefuseOne: []string{
		`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN IF NEW.lock_id LIKE 'crowd 1%' THEN RAISE 'never'; END IF; RETURN NEW; END$$`,
		`CREATE TRIGGER refuse BEFORE INSERT ON db_mutexes FOR EACH ROW EXECUTE FUNCTION refuse()`,
	},
	Delay: []string{
		`CREATE FUNCTION delay() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(0.2); RETURN NEW; END$$`,
		`CREATE TRIGGER delay BEFORE INSERT OR UPDATE ON db_mutexes FOR EACH ROW EXECUTE FUNCTION delay()`,
	},
	RenewedAt: []sql.IsolationLevel{sql.LevelDefault, sql.LevelReadUncommitted, sql.LevelReadCommitted},
	schema:    `SELECT current_schema()`,
}

func init() {
	postgresKind.fresh = Postgres
	postgresKind.engine = &engine{
		kind:      postgresKind,
		name:      "PostgreSQL",
		debian:    "postgresql",
		account:   "postgres",
		envDSN:    "DBMUTEX_TEST_DSN",
		envBin:    "DBMUTEX_TEST_PGBIN",
		envWanted: "DBMUTEX_TEST_POSTGRES",
		find:      findPostgres,
		run:       runPostgres,
		dsn: func(port string) string {
			return "host=127.0.0.1 port=" + port + " user=postgres dbname=postgres sslmode=disable"
		},
		config:   "postgresql.conf",
		settings: []string{"listen_addresses = '127.0.0.1'", "max_connections = 200"},
		taken:    "could not create any TCP/IP sockets",
		install:  `"$bin/initdb" -D data -U postgres --auth=trust --encoding=UTF8 --locale=C --no-sync`,
		start: func(env, data, port string) string {
			return fmt.Sprintf(`%s "$bin/pg_ctl" start -w -t 120 -D %s -l log -o "-p %s -k '$folder'"`, env, data, port)
		},
		stop:    func(data, mode string) string { return fmt.Sprintf(`"$bin/pg_ctl" stop -D %s -m %s`, data, mode) },
		started: func(string) error { return nil },
		move: func(dsn, folder string) error {
			return runPostgres(
				dsn, `CREATE TABLESPACE small LOCATION '`+folder+`'`, `ALTER TABLE db_mutexes SET TABLESPACE small`,
				`CREATE TABLE filler (id integer, text text) TABLESPACE small`,
			)
		},
		apply: func([]string) string { return "SELECT pg_reload_conf()" },
	}
}

// binFolders are where packages put PostgreSQL's programs when they aren't on
// PATH; setup.sh has the same list.
var binFolders = []string{
	"/usr/lib/postgresql/*/bin",
	"/usr/pgsql-*/bin",
	"/usr/local/pgsql/bin",
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
}

// PostgresServer returns the DSN of the PostgreSQL server itself, a URL or
// keyword DSN without a test's schema. If there is no server it skips the test,
// or fails it if DBMUTEX_TEST_POSTGRES is "required".
func PostgresServer(t testing.TB) string {
	t.Helper()
	return postgresKind.engine.server(t)
}

// Postgres makes a fresh schema on the server of PostgresServer and drops it when the
// test ends.
func Postgres(t testing.TB) *Database {
	t.Helper()
	base := PostgresServer(t)
	schema := "dbmutex_test_" + strings.ToLower(rand.Text())
	dsn, err := withSearchPath(base, schema)
	if err != nil {
		t.Fatalf("testdb: %v", err)
	}
	if err := runPostgres(base, "CREATE SCHEMA "+schema); err != nil {
		t.Fatalf("testdb: make schema: %v", err)
	}
	t.Cleanup(func() {
		// A session a test left behind shows as an error, not as a hang.
		if err := runPostgres(base, "SET lock_timeout = '10s'", "DROP SCHEMA "+schema+" CASCADE"); err != nil {
			t.Errorf("testdb: drop schema: %v", err)
		}
	})
	return &Database{postgresKind, dsn}
}

// PostgresAt is the database of a DSN.
func PostgresAt(dsn string) *Database { return &Database{postgresKind, dsn} }

// withSearchPath returns dsn with its search_path set to the schema.
func withSearchPath(dsn, schema string) (string, error) {
	if !strings.HasPrefix(dsn, "postgres://") && !strings.HasPrefix(dsn, "postgresql://") {
		return dsn + " search_path=" + schema, nil
	}
	u, err := url.Parse(dsn)
	if err != nil {
		// url.Parse's error quotes the whole DSN, and so its password.
		return "", errors.New("the server's DSN is no valid URL")
	}
	query := u.Query()
	query.Set("search_path", schema)
	u.RawQuery = query.Encode()
	return u.String(), nil
}

// runPostgres runs statements in a session of their own.
func runPostgres(dsn string, statements ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// findPostgres returns the folder with PostgreSQL's server programs.
func findPostgres() (string, error) {
	if bin := os.Getenv(postgresKind.engine.envBin); bin != "" {
		bin, err := filepath.Abs(bin)
		if err == nil && !hasPrograms(bin) {
			err = fmt.Errorf("%s=%s: initdb, pg_ctl and postgres aren't all there", postgresKind.engine.envBin, bin)
		}
		return bin, err
	}
	if initdb, err := exec.LookPath("initdb"); err == nil {
		if bin, err := filepath.Abs(filepath.Dir(initdb)); err == nil && hasPrograms(bin) {
			return bin, nil
		}
	}
	best, newest := "", -1.0
	for _, pattern := range binFolders {
		folders, _ := filepath.Glob(pattern) // the patterns are valid
		for _, bin := range folders {
			if v := versionOf(bin); v > newest && hasPrograms(bin) {
				best, newest = bin, v
			}
		}
	}
	if best == "" {
		return "", errNoPrograms
	}
	return best, nil
}

// hasPrograms reports whether the folder has the programs a server needs.
func hasPrograms(bin string) bool {
	for _, name := range []string{"initdb", "pg_ctl", "postgres"} {
		if _, err := exec.LookPath(filepath.Join(bin, name)); err != nil {
			return false
		}
	}
	return true
}

var versionNumber = regexp.MustCompile(`\d+(\.\d+)?$`)

// versionOf is the version in the name of a bin folder's parent, such as
// /usr/lib/postgresql/17/bin, or 0.
func versionOf(bin string) float64 {
	v, _ := strconv.ParseFloat(versionNumber.FindString(filepath.Dir(bin)), 64)
	return v
}
