package locktable

import (
	"testing"

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
	require.Contains(t, (&mysqlTable{mode: "ANSI_QUOTES,EMPTY_STRING_IS_NULL"}).problem(), "leave that out")
}
