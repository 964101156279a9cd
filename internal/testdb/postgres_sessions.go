package testdb

import (
	"crypto/rand"
	"database/sql/driver"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/gorm-dbmutex/dbmutex"
)

func init() {
	postgresKind.with = WithSetting
	postgresKind.limits = func(_ testing.TB, _ *Database, idle bool) []Limit {
		if idle {
			return []Limit{{"idle_in_transaction_session_timeout", "500ms", ""}}
		}
		return []Limit{{"statement_timeout", "500ms", "57014"}, {"lock_timeout", "500ms", "55P03"}}
	}
	postgresKind.connector = func(dsn string) (driver.Connector, error) {
		config, err := pgx.ParseConfig(dsn)
		if err != nil {
			return nil, err
		}
		return stdlib.GetConnector(*config), nil
	}
	postgresKind.atLevel = func(_ testing.TB, d *Database, level string) *Database {
		return d.With("default_transaction_isolation", level)
	}
	postgresKind.ordinary = func(_ testing.TB, d *Database) *Database { return d } // even a superuser is bound
	postgresKind.granted = func(t testing.TB, d *Database, rights []string) *Database {
		schema := CurrentSchema(t, d.Registered(t, dbmutex.DefaultSettings()))
		role := schema + "_program"
		statements := []string{`CREATE ROLE ` + role}
		for _, right := range append(rights, `USAGE ON SCHEMA `+schema) {
			statements = append(statements, `GRANT `+right+` TO `+role)
		}
		if err := runPostgres(d.DSN, statements...); err != nil {
			t.Fatalf("testdb: %v", err)
		}
		t.Cleanup(func() {
			if err := runPostgres(d.DSN, `DROP OWNED BY `+role, `DROP ROLE `+role); err != nil {
				t.Errorf("testdb: %v", err)
			}
		})
		return d.With("role", role)
	}
	postgresKind.victims = func(t testing.TB, d *Database) (*Database, func() error) {
		name := rand.Text()
		killer := d.Open(t)
		return d.With("application_name", name), func() error {
			return killer.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = ?`, name).Error
		}
	}
}
