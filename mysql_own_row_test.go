package dbmutex_test

import (
	"testing"

	driver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestAnAcquireIsNotRefusedByItsOwnRow(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	db, pool := openFaulty(t, d)
	other := d.Open(t).Begin()
	tries := 0
	pool.setLose(func(statement string) error {
		if pool.Verb(statement) != "acquire" {
			return nil
		}
		switch tries++; tries {
		case 1: // the row is there, and somebody has it locked when the acquire tries again
			var id int64
			require.NoError(t, other.Raw(`SELECT id FROM db_mutexes FOR UPDATE`).Scan(&id).Error)
			require.NotZero(t, id)
			return driver.ErrInvalidConn
		case 2:
			require.NoError(t, other.Rollback().Error)
		}
		return nil
	})
	lease, err := db.Mutex("job").Acquire()
	require.NoError(t, err)
	require.NoError(t, lease.Release())
	require.Equal(t, 3, tries)
}
