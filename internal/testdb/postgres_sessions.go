package testdb

import (
	"crypto/rand"
	"testing"
)

func init() {
	postgresKind.with = WithSetting
	postgresKind.limits = func(_ testing.TB, _ *Database, idle bool) []Limit {
		if idle {
			return []Limit{{"idle_in_transaction_session_timeout", "500ms", ""}}
		}
		return []Limit{{"statement_timeout", "500ms", "57014"}, {"lock_timeout", "500ms", "55P03"}}
	}
	postgresKind.ordinary = func(_ testing.TB, d *Database) *Database { return d } // even a superuser is bound
	postgresKind.victims = func(t testing.TB, d *Database) (*Database, func() error) {
		name := rand.Text()
		killer := d.Open(t)
		return d.With("application_name", name), func() error {
			return killer.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = ?`, name).Error
		}
	}
}
