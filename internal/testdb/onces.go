package testdb

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
)

// OnceRow is the row of a Once that is not free, as it stands in the table, or nil.
func OnceRow(t testing.TB, db *dbmutex.DB, id string) *dbmutex.DBOnce {
	t.Helper()
	var rows []dbmutex.DBOnce
	require.NoError(t, db.Where("lease_id <> '' AND lock_id = ?", id).Find(&rows).Error)
	if len(rows) == 0 {
		return nil
	}
	return &rows[0]
}

// Records makes records "many-00000" and so on, which are to be kept for an hour.
func Records(t testing.TB, db *dbmutex.DB, n int) {
	t.Helper()
	require.NoError(t, db.Once("pattern", time.Hour).Do(Nothing))
	const batch = 100
	for i := 0; i < n; i += batch {
		var rows []string
		var args []any
		for j := i; j < min(i+batch, n); j++ {
			rows = append(rows, `SELECT ?, creation_time, expires_at, holder, lease_id FROM db_onces WHERE lock_id = 'pattern'`)
			args = append(args, fmt.Sprintf("many-%05d", j))
		}
		insert := `INSERT INTO db_onces (lock_id, creation_time, expires_at, holder, lease_id) `
		require.NoError(t, db.Exec(insert+strings.Join(rows, " UNION ALL "), args...).Error)
	}
	require.NoError(t, db.Once("pattern", time.Hour).Forget())
}

// ExpireOnces makes rows of Once of a condition run out now, or two hours ago.
func ExpireOnces(t testing.TB, db *dbmutex.DB, longAgo bool, condition string, args ...any) {
	t.Helper()
	past := At(db.Name(), "").past
	if longAgo {
		past = strings.NewReplacer("1 second", "2 hours", "1 SECOND", "2 HOUR").Replace(past)
	}
	require.NoError(t, db.Exec(`UPDATE db_onces SET expires_at = `+past+` WHERE `+condition, args...).Error)
}
