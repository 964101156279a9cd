package locktable

import (
	"fmt"
	"testing"

	driver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"
)

func TestServersThatAreTooOld(t *testing.T) {
	for version, old := range map[string]bool{
		"5.7.44-log": true, "8.0.11": false, "8.4.3-azure": false, "9.7.4-2": false,
		"10.5.29-MariaDB": true, "10.6.0-MariaDB": false, "10.11.19-MariaDB-0+deb12u1": false, "11.8.9-MariaDB-log": false,
		"8.0.mysql_aurora.3.04.0": false, "8.0.11-TiDB-v7.5.0": false, "of somebody's own": false,
	} {
		require.Equal(t, old, (&mysqlTable{version: version}).tooOld(), version)
	}
}

// MariaDB has it, MySQL does not.
func TestASessionWhoseEmptyTextsAreNullIsRefused(t *testing.T) {
	require.Contains(t, (&mysqlTable{mode: "ANSI_QUOTES,EMPTY_STRING_IS_NULL"}).problem(false), "leave that out")
}

// Servers are not the only ones that send numbers: proxies pass on those of clients.
func TestMySQLNumbersThatMeanSomething(t *testing.T) {
	m := newMySQL("t", "`t`")
	for number, want := range map[uint16]failure{
		2006: unknown,     // "MySQL server has gone away", from ProxySQL or MaxScale
		2013: unknown,     // "Lost connection to MySQL server during query", from ProxySQL: the statement may have had its effect
		2003: unreachable, // "Can't connect to MySQL server", from a proxy
		9001: unreachable, // ProxySQL: "Max connect timeout reached while reaching hostgroup"
		1461: hindered,    // max_prepared_stmt_count reached
		3032: unreachable, // offline_mode
		4031: outdated,    // "disconnected by the server because of inactivity", answered to the next statement
		1637: hindered,    // too many concurrent transactions
		1206: hindered,    // the lock table is full
		1158: unknown,     // a communication error
		1159: unknown,
		1160: unknown,
		1161: unknown,
		3101: conflicting, // Group Replication has rolled the transaction back
		3100: hindered,    // a hook of replication refused the commit, as without a quorum
	} {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			got := m.classify(&driver.MySQLError{Number: number})
			require.Equal(t, want, got)
		})
	}
}
