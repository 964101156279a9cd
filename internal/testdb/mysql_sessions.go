package testdb

import (
	"crypto/rand"
	sqldriver "database/sql/driver"
	"fmt"
	"slices"
	"strings"
	"testing"

	driver "github.com/go-sql-driver/mysql"
)

func init() {
	_ = driver.SetLogger(&driver.NopLogger{}) // each connection that is cut
	mysqlKind.with = func(dsn, name, value string) string {
		return changed(dsn, func(c *driver.Config) { c.Params[name] = value })
	}
	mysqlKind.limits = func(t testing.TB, d *Database, idle bool) []Limit {
		limits := []Limit{{"lock_wait_timeout", "1", "1205"}, {"max_statement_time", "0.5", "1969"}}
		if idle {
			limits = []Limit{{"idle_transaction_timeout", "1", ""}}
		}
		return slices.DeleteFunc(limits, func(limit Limit) bool { // MySQL has few
			var name, value string
			_ = d.Open(t).Raw(`SHOW VARIABLES LIKE '`+limit.Name+`'`).Row().Scan(&name, &value)
			return name == ""
		})
	}
	mysqlKind.connector = func(dsn string) (sqldriver.Connector, error) {
		config := configOf(dsn)
		config.InterpolateParams = true // else connections run no statements that have arguments
		return driver.NewConnector(config)
	}
	mysqlKind.atLevel = func(t testing.TB, d *Database, level string) *Database {
		var variable string // MariaDB up to 11.0 has another name for it than MySQL
		err := d.Open(t).Raw(`SHOW VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation')`).Row().
			Scan(&variable, new(string))
		if err != nil {
			t.Fatalf("testdb: %v", err)
		}
		return d.With(variable, "'"+strings.ToUpper(strings.ReplaceAll(level, " ", "-"))+"'")
	}
	mysqlKind.ordinary = ordinaryOfMySQL
	mysqlKind.granted = grantedInMySQL
	mysqlKind.victims = func(t testing.TB, d *Database) (*Database, func() error) {
		victims, killer := ordinaryOfMySQL(t, d), d.Open(t)
		return victims, func() error {
			var sessions []int64
			err := killer.Raw(`SELECT id FROM information_schema.processlist WHERE user = ?`, userOf(victims)).Scan(&sessions).Error
			for _, id := range sessions {
				_ = killer.Exec(fmt.Sprintf(`KILL %d`, id)).Error // it may be gone by now
			}
			return err
		}
	}
}

// ordinaryOfMySQL makes a user, who has no rights but on the database.
func ordinaryOfMySQL(t testing.TB, d *Database) *Database {
	t.Helper()
	return grantedInMySQL(t, d, []string{`ALL ON ` + configOf(d.DSN).DBName + `.*`})
}

func grantedInMySQL(t testing.TB, d *Database, rights []string) *Database {
	t.Helper()
	own := MySQLAt(changed(d.DSN, func(c *driver.Config) { c.User = "u" + rand.Text() }))
	statements := []string{`CREATE USER ` + userOf(own)}
	for _, right := range rights {
		statements = append(statements, `GRANT `+right+` TO `+userOf(own))
	}
	if err := runMySQL(d.DSN, statements...); err != nil {
		t.Fatalf("testdb: %v", err)
	}
	t.Cleanup(func() { _ = runMySQL(d.DSN, `DROP USER `+userOf(own)) }) // of a server that may be gone
	return own
}

func userOf(d *Database) string { return configOf(d.DSN).User }

func configOf(dsn string) *driver.Config {
	config, err := driver.ParseDSN(dsn)
	if err != nil {
		panic(err)
	}
	return config
}

// changed is a DSN with another configuration.
func changed(dsn string, change func(c *driver.Config)) string {
	config := configOf(dsn)
	if config.Params == nil {
		config.Params = map[string]string{}
	}
	change(config)
	return config.FormatDSN()
}
