package locktable

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// nowhere is a database without connections.
type nowhere struct{}

func (nowhere) Connect(context.Context) (driver.Conn, error) { return nil, errors.New("nowhere") }
func (nowhere) Driver() driver.Driver                        { return nil }

// later runs Table.later with short pauses. It returns how often it tried.
func later(t *testing.T, until time.Time, try func(tries int, pool *sql.DB) (done bool)) (tries int) {
	pool := sql.OpenDB(nowhere{})
	t.Cleanup(func() { _ = pool.Close() })
	table := Table{&statements{}, &gorm.Config{Logger: logger.Discard, ConnPool: pool}}
	table.later(context.Background(), until, time.Millisecond, 4*time.Millisecond, func(context.Context) bool {
		tries++
		return try(tries, pool)
	})
	return tries
}

func TestWhatIsTriedLaterEnds(t *testing.T) {
	hour := time.Now().Add(time.Hour)
	require.Equal(t, 5, later(t, hour, func(tries int, _ *sql.DB) bool { return tries == 5 }), "when it is done")
	require.Equal(t, 3, later(t, hour, func(tries int, pool *sql.DB) bool {
		if tries == 3 {
			require.NoError(t, pool.Close())
		}
		return false
	}), "with its pool")
	soon := time.Now().Add(time.Second)
	require.Positive(t, later(t, soon, func(int, *sql.DB) bool { return false }), "when its time is over")
	require.Zero(t, later(t, time.Now(), func(int, *sql.DB) bool { return true }))
}
