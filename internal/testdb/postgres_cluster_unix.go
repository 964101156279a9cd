//go:build unix

package testdb

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Cluster is a PostgreSQL server, which can also be copied.
type Cluster struct{ *Server }

// NewCluster is NewServer for PostgreSQL.
func NewCluster(t testing.TB, settings ...string) *Cluster {
	t.Helper()
	return &Cluster{postgresKind.NewServer(t, settings...)}
}

// Standby makes and starts a hot standby of the server, under an application
// name, and restarts the server for it. It ends with the server's test.
func (c *Cluster) Standby(t testing.TB, name string) *Cluster {
	t.Helper()
	c.Stop(t, "fast")
	s := &Cluster{&Server{supervised: c.supervised, engine: c.engine, data: name, env: c.env}}
	err := c.run(fmt.Sprintf(`cp -R %s %s && rm -f %s/postmaster.* && touch %s/standby.signal`, c.data, name, name, name))
	if err == nil {
		err = s.configure(
			[]string{
				"wal_retrieve_retry_interval = 100ms",
				fmt.Sprintf("primary_conninfo = 'host=127.0.0.1 port=%s user=postgres application_name=%s'", c.port, name),
			},
		)
	}
	if err != nil {
		t.Fatalf("testdb: %v", err)
	}
	c.Start(t)
	s.Start(t)
	return s
}

// Promote makes a standby a primary.
func (c *Cluster) Promote(t testing.TB) {
	t.Helper()
	if err := c.run(fmt.Sprintf(`"$bin/pg_ctl" promote -w -D %s`, c.data)); err != nil {
		t.Fatalf("testdb: %v", err)
	}
}

// PgBouncer starts PgBouncer in transaction mode before the server, and returns
// its DSN. It ends with the server's test, which is skipped, or fails, as by
// NewServer if the machine has none.
func (c *Cluster) PgBouncer(t testing.TB) string {
	t.Helper()
	bouncer := c.engine.need(t, "pgbouncer", append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin"), "pgbouncer")
	port, err := freePort()
	if err == nil {
		err = c.run(
			fmt.Sprintf(`printf '%%s\n' %s >pgbouncer.ini && echo '"postgres" ""' >users.txt && %s -d pgbouncer.ini`, quoted([]string{
				"[databases]", "* = host=127.0.0.1 port=" + c.port, "[pgbouncer]", "listen_addr = 127.0.0.1", "listen_port = " + port,
				"auth_type = trust", "auth_file = users.txt", "pool_mode = transaction", "default_pool_size = 2",
				"logfile = pgbouncer.log", "pidfile = pgbouncer.pid", "unix_socket_dir =",
			}), bouncer),
		)
	}
	if err != nil {
		t.Fatalf("testdb: %v", err)
	}
	dsn := strings.Replace(c.DSN(), "port="+c.port, "port="+port, 1)
	for giveUp := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := runPostgres(dsn)
		if err == nil {
			return dsn
		}
		if time.Now().After(giveUp) {
			t.Fatalf("testdb: PgBouncer doesn't answer: %v", err)
		}
	}
}
