package testdb

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"gorm.io/driver/mysql"
	"gorm.io/gorm"
)

// mysqlKind is MySQL or MariaDB.
var mysqlKind = &Kind{
	Name:        "mysql",
	Remote:      true,
	KeepsTokens: true,
	dialector:   mysql.Open,
	on:          func(pool gorm.ConnPool) gorm.Dialector { return mysql.New(mysql.Config{Conn: pool}) },
	past:        `UTC_TIMESTAMP(6) - INTERVAL 1 SECOND`,
	hang:        `LOCK TABLES db_mutexes WRITE`,
	ReadOnly:    [2]string{"read_only", "1290"},
	DDLCommits:  true,
	verbs: map[string]*regexp.Regexp{
		"acquire": regexp.MustCompile(`INTO \S+\s+\(lock_id, creation_time|UPDATE \S+ SET token = `),
		"renew":   regexp.MustCompile(`UPDATE \S+ SET expires_at = `),
		"release": regexp.MustCompile(`UPDATE \S+ SET (holder = lease_id, )?lease_id = (''|CONCAT)`),
		"record":  regexp.MustCompile(`UPDATE \S+ SET lease_id = 'done'`),
		"guard":   regexp.MustCompile(`UPDATE \S+ SET creation_time = creation_time`),
	},
	letGo: `UNLOCK TABLES`, // a rollback keeps the lock
	Errors: Errors{
		Killed:    driver.ErrInvalidConn,
		Conflict:  &driver.MySQLError{Number: 1213, Message: "Deadlock found"},
		Forbidden: &driver.MySQLError{Number: 1142, Message: "command denied"},
	},
	LeastRights: []string{`SELECT, INSERT, UPDATE, DELETE ON db_mutexes`, `SELECT, INSERT, UPDATE, DELETE ON db_onces`},
	NeededFor: map[string][]string{
		`SELECT ON db_mutexes`: {
			"acquire", "take over", "renew", "guard", "release", "rest", "release in", "holder", "force release", "list", "prune",
		},
		`INSERT ON db_mutexes`: {"acquire"},
		`UPDATE ON db_mutexes`: {"acquire", "take over", "renew", "guard", "release", "rest", "release in", "force release"},
		`DELETE ON db_mutexes`: {"prune"}, // and rows of free mutexes stay for ever

		`SELECT ON db_onces`: {"once", "once over", "success", "done", "forget", "prune"},
		`INSERT ON db_onces`: {"once", "success"},
		`UPDATE ON db_onces`: {"once", "once over", "success", "forget"},
		`DELETE ON db_onces`: {"prune"},
	},
	EndsWithin: []string{`ROLLBACK`, `COMMIT`, `CREATE TABLE made (n integer)`},
	Explain:    `EXPLAIN `,
	Searches:   `"type":"range"`,
	Analyze:    `ANALYZE TABLE db_onces`,
	MakingRights: []string{
		`CREATE, SELECT, INSERT, UPDATE, DELETE ON %s.db_mutexes`, `CREATE, SELECT, INSERT, UPDATE, DELETE ON %s.db_onces`,
	},
	Session: `SELECT CONNECTION_ID()`,
	// MySQL's Handler_write also counts the rows of such an answer.
	Written: `SHOW GLOBAL STATUS WHERE Variable_name IN
		('Innodb_lsn_current', 'Innodb_redo_log_current_lsn', 'Handler_update', 'Handler_delete')`,
	Refuse: []string{
		`CREATE TRIGGER refuse BEFORE UPDATE ON db_mutexes FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'never'`,
	},
	Delay: []string{`CREATE TRIGGER delay BEFORE UPDATE ON db_mutexes FOR EACH ROW DO SLEEP(0.2)`},
	// The server does not tell a transaction's level.
	RenewedAt: []sql.IsolationLevel{sql.LevelReadUncommitted, sql.LevelReadCommitted},
	schema:    `SELECT DATABASE()`,
}

func init() {
	mysqlKind.fresh = MySQL
	mysqlKind.engine = &engine{
		kind:      mysqlKind,
		name:      "MariaDB",
		debian:    "mariadb-server",
		account:   "mysql",
		envDSN:    "DBMUTEX_TEST_MYSQL_DSN",
		envBin:    "DBMUTEX_TEST_MYSQLBIN",
		envWanted: "DBMUTEX_TEST_MYSQL",
		find:      findMySQL,
		run:       runMySQL,
		dsn:       func(port string) string { return mysqlDSN(port, "dbmutex") },
		config:    "my.cnf",
		settings: []string{
			"[mysqld]", "bind-address = 127.0.0.1", "socket = server.sock", "max_connections = 500",
			"loose-mysqlx = OFF", // MariaDB has no such thing
		},
		taken:   "Bind on TCP/IP port",
		install: installMySQL,
		start: func(env, data, port string) string {
			return strings.NewReplacer("ENV", env, "DATA", data, "PORT", port).Replace(startMySQL)
		},
		stop: func(data, mode string) string {
			signal := map[string]string{"fast": "TERM", "immediate": "KILL"}[mode]
			return strings.NewReplacer("DATA", data, "SIGNAL", signal).Replace(stopMySQL)
		},
		started: startedMySQL,
		move:    moveMySQL,
		folders: "loose-innodb_directories", // MariaDB has no such thing
		apply:   func(settings []string) string { return "SET GLOBAL " + strings.Join(settings, ", ") },
	}
}

// Commands for the supervisor's shell.
const (
	installMySQL = `case $bin in
*/mysqld) "$bin" --no-defaults --initialize-insecure --datadir="$folder/data";;
*) (PATH=${bin%/*}:$PATH;
	mariadb-install-db --no-defaults --datadir="$folder/data" --skip-test-db --auth-root-authentication-method=normal);;
esac`

	// It waits until the server is ready, or has ended.
	startMySQL = `: >DATA.log;
ENV "$bin" --defaults-file="$folder/DATA/my.cnf" --datadir="$folder/DATA" --port=PORT >>DATA.log 2>&1 &
echo $! >DATA.pid;
until grep 'd: ready for connections' DATA.log; do
	kill -0 "$(cat DATA.pid)" || { cat DATA.log; rm DATA.pid; break; };
	sleep 0.05;
done;
[ -e DATA.pid ]`

	stopMySQL = `pid=$(cat DATA.pid) && kill -s SIGNAL "$pid" && { wait "$pid"; rm DATA.pid; }`
)

// startedMySQL makes the database. A node of Galera's may have to join its peer before.
func startedMySQL(port string) error {
	for giveUp := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := runMySQL(mysqlDSN(port, ""), "CREATE DATABASE IF NOT EXISTS dbmutex")
		var refused *driver.MySQLError
		if !errors.As(err, &refused) || refused.Number != 1047 || time.Now().After(giveUp) { // ER_UNKNOWN_COM_ERROR
			return err
		}
	}
}

// moveMySQL makes the table anew, as ALTER TABLE moves none.
func moveMySQL(dsn, folder string) error {
	pool, err := sql.Open("mysql", dsn)
	if err != nil {
		return err
	}
	defer func() { _ = pool.Close() }()
	var name, create string
	if err := pool.QueryRow(`SHOW CREATE TABLE db_mutexes`).Scan(&name, &create); err != nil {
		return err
	}
	there := ` DATA DIRECTORY = '` + folder + `'`
	return runMySQL(dsn, `DROP TABLE db_mutexes`, create+there, `CREATE TABLE filler (id integer, text text)`+there)
}

func mysqlDSN(port, database string) string {
	return "root@tcp(127.0.0.1:" + port + ")/" + database + "?parseTime=true"
}

// findMySQL returns the server's program: MariaDB's, or also MySQL's if the environment names its folder.
func findMySQL() (string, error) {
	if bin := os.Getenv(mysqlKind.engine.envBin); bin != "" {
		bin, err := filepath.Abs(bin)
		if err != nil {
			return "", err
		}
		if server := program(bin, "mariadbd"); server != "" && program(bin, "mariadb-install-db") != "" {
			return server, nil
		}
		if server := program(bin, "mysqld"); server != "" {
			return server, nil
		}
		return "", fmt.Errorf(
			"%s=%s: neither mariadbd and mariadb-install-db nor mysqld are there", mysqlKind.engine.envBin, bin,
		)
	}
	for _, folder := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/local/sbin") {
		if server := program(folder, "mariadbd"); server != "" {
			return server, nil
		}
	}
	return "", errNoPrograms
}

// program is the path of a program in a folder, or "".
func program(folder, name string) string {
	path, _ := exec.LookPath(filepath.Join(folder, name))
	return path
}

// MySQLServer returns the DSN of the MySQL or MariaDB server itself, in the form
// of the driver go-sql-driver/mysql and without a test's database. If there is no
// server it skips the test, or fails it if DBMUTEX_TEST_MYSQL is "required".
func MySQLServer(t testing.TB) string {
	t.Helper()
	return mysqlKind.engine.server(t)
}

// MySQL makes a fresh database on the server of MySQLServer and drops it when the
// test ends.
func MySQL(t testing.TB) *Database {
	t.Helper()
	base := MySQLServer(t)
	name := "dbmutex_test_" + strings.ToLower(rand.Text())
	config, err := driver.ParseDSN(base)
	if err != nil {
		t.Fatalf("testdb: %v", err)
	}
	if err := runMySQL(base, "CREATE DATABASE "+name); err != nil {
		t.Fatalf("testdb: make database: %v", err)
	}
	t.Cleanup(func() {
		// A session a test left behind shows as an error, not as a hang.
		if err := runMySQL(base, "SET lock_wait_timeout = 10", "DROP DATABASE "+name); err != nil {
			t.Errorf("testdb: drop database: %v", err)
		}
	})
	config.DBName = name
	config.ParseTime = true
	dsn := config.FormatDSN()
	if parameters := os.Getenv("DBMUTEX_TEST_MYSQL_PARAMETERS"); parameters != "" {
		dsn += "&" + parameters
	}
	return MySQLAt(dsn)
}

// MySQLAt is the database of a DSN.
func MySQLAt(dsn string) *Database { return &Database{mysqlKind, dsn} }

// runMySQL runs statements in a session of their own.
func runMySQL(dsn string, statements ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	pool, err := sql.Open("mysql", dsn)
	if err != nil {
		return err
	}
	defer func() { _ = pool.Close() }()
	conn, err := pool.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	for _, statement := range statements {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}
