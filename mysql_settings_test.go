package dbmutex_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// The tests of this file run every verb on MySQL in sessions, and on tables, that somebody has set up in an unusual way.

func TestTriggersOnTheTable(t *testing.T) {
	t.Parallel()
	for _, event := range []string{"BEFORE INSERT", "AFTER INSERT", "BEFORE UPDATE", "AFTER UPDATE"} {
		for name, body := range map[string]string{"variable": `SET @x = 1`, "row": `INSERT INTO audit (n) VALUES (LAST_INSERT_ID(7))`} {
			t.Run(event+", "+name, func(t *testing.T) {
				db := open(t, testdb.MySQL(t))
				require.NoError(t, db.Exec(`CREATE TABLE audit (id bigint AUTO_INCREMENT PRIMARY KEY, n bigint)`).Error)
				require.NoError(t, db.Exec(`CREATE TRIGGER noting `+event+` ON db_mutexes FOR EACH ROW `+body).Error)
				last := int64(0)
				for _, opts := range [][]dbmutex.Option{nil, nil, {dbmutex.WithoutTTL()}} {
					exercise(t, db)
					lease := acquire(t, db, "job", opts...)
					require.Greater(t, lease.Token(), last)
					last = lease.Token()
					require.NoError(t, lease.Renew())
					testdb.Expire(t, db, "job")
					next := acquire(t, db, "job", opts...)
					require.Greater(t, next.Token(), last)
					last = next.Token()
					require.Equal(t, last, row(t, db, "job").Token)
					require.NoError(t, next.Renew())
					require.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout)
					require.NoError(t, next.Release())
					require.ErrorIs(t, next.Renew(), dbmutex.ErrTimeout)
				}
			})
		}
	}
}
