package database_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/examples/internal/database"
)

// TestManyMayOpenANewFileAtOnce stands for the processes that an example starts together.
func TestManyMayOpenANewFileAtOnce(t *testing.T) {
	for range 20 {
		d, err := database.New("")
		require.NoError(t, err)
		var opened sync.WaitGroup
		for range 8 {
			opened.Go(func() {
				db, err := d.Open()
				if !assert.NoError(t, err) {
					return
				}
				pool, err := db.DB()
				if assert.NoError(t, err) {
					assert.NoError(t, pool.Close())
				}
			})
		}
		opened.Wait()
		require.NoError(t, d.Remove())
	}
}
