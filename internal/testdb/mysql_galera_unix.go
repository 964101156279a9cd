//go:build unix

package testdb

import (
	"fmt"
	"path/filepath"
	"testing"
)

// NewGalera starts MariaDB's Galera cluster: two servers that both take writes. Each is the other's only peer: while one is
// stopped "fast" the other serves alone; one that crashes makes the other refuse its clients until it is back. The test is
// skipped, or fails, as by NewServer, and is skipped where the environment has MySQL's programs.
func NewGalera(t testing.TB) (nodes [2]*Server) {
	t.Helper()
	e := mysqlKind.engine
	e.skipUnwanted(t)
	if bin, err := e.find(); err == nil && filepath.Base(bin) == "mysqld" {
		t.Skip("MySQL has no Galera")
	}
	library := e.need(
		t, "galera-4", []string{"/usr/lib/galera", "/usr/lib64/galera-4", "/usr/lib64/galera"}, "libgalera_smm.so",
	)
	var peers [2]string
	settings := func(node int, cluster string) []string {
		var at [3]string
		for i := range at {
			port, err := freePort()
			if err != nil {
				t.Fatalf("testdb: %v", err)
			}
			at[i] = "127.0.0.1:" + port
		}
		peers[node] = at[0]
		return []string{
			"wsrep_on = ON", "wsrep_provider = " + library, "binlog_format = ROW", "innodb_autoinc_lock_mode = 2",
			"wsrep_cluster_address = gcomm://" + cluster, "wsrep_node_address = 127.0.0.1",
			fmt.Sprintf(`wsrep_provider_options = "gmcast.listen_addr=tcp://%s;ist.recv_addr=%s"`, at[0], at[1]),
			"wsrep_sst_receive_address = " + at[2],
		}
	}
	first := mysqlKind.NewServer(t, settings(0, "")...)
	second := &Server{supervised: first.supervised, engine: e, data: "second"}
	err := first.run("mkdir second") // it gets its data from the first
	if err == nil {
		err = second.configure(append(e.settings, settings(1, peers[0])...))
	}
	if err == nil {
		err = first.configure([]string{"wsrep_cluster_address = gcomm://" + peers[1]}) // once it is started again
	}
	if err != nil {
		t.Fatalf("testdb: %v", err)
	}
	second.Start(t)
	return [2]*Server{first, second}
}
