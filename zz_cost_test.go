package dbmutex_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestZZCost(t *testing.T) {
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		fill := map[string]string{
			"postgres": `INSERT INTO db_mutexes (lock_id, creation_time, expires_at, holder, lease_id) SELECT 'row-' || g, now(), now() + interval '1 day', 'h', 'l' || g FROM generate_series(1, 300000) g`,
			"sqlite":   `INSERT INTO db_mutexes (lock_id, creation_time, expires_at, holder, lease_id) WITH RECURSIVE s(g) AS (SELECT 1 UNION ALL SELECT g+1 FROM s LIMIT 300000) SELECT 'row-' || g, '2026-01-01 00:00:00.000', '2046-01-01 00:00:00.000', 'h', 'l' || g FROM s`,
			"mysql":    `INSERT INTO db_mutexes (lock_id, creation_time, expires_at, holder, lease_id) SELECT concat('row-', seq), now(), now() + interval 10 day, 'h', concat('l', seq) FROM seq_1_to_300000`,
		}
		require.NoError(t, db.Exec(fill[d.Name]).Error)
		if d.Name == "postgres" {
			require.NoError(t, db.Exec("VACUUM ANALYZE db_mutexes").Error)
		}
		type acq interface {
			Acquire() (*dbmutex.Lease, error)
		}
		things := []acq{db.Mutex("job")}
		names := []string{"mutex"}
		for _, n := range []int{1, 4, 16} {
			things = append(things, db.Semaphore(fmt.Sprint("sem", n), n))
			names = append(names, fmt.Sprint("sem ", n))
		}
		measure := func(f func(i int)) []time.Duration {
			got := make([][]time.Duration, len(things))
			for range 400 {
				for i := range things {
					start := time.Now()
					for range 5 {
						f(i)
					}
					got[i] = append(got[i], time.Since(start)/5)
				}
			}
			var q []time.Duration
			for i := range things {
				slices.Sort(got[i])
				q = append(q, got[i][len(got[i])/10], got[i][len(got[i])/2])
			}
			return q
		}
		cyc := measure(func(i int) {
			l, err := things[i].Acquire()
			require.NoError(t, err)
			require.NoError(t, l.Release())
		})
		for i, s := range things {
			n := 1
			fmt.Sscanf(names[i], "sem %d", &n)
			for range n {
				_, err := s.Acquire()
				require.NoError(t, err)
			}
		}
		try := measure(func(i int) {
			_, err := things[i].Acquire()
			require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
		})
		for i := range things {
			t.Logf("%s %-7s cycle p10 %v p50 %v (%.2f %.2f)  try p10 %v p50 %v (%.2f %.2f)", d.Name, names[i], cyc[2*i], cyc[2*i+1],
				float64(cyc[2*i])/float64(cyc[0]), float64(cyc[2*i+1])/float64(cyc[1]),
				try[2*i], try[2*i+1], float64(try[2*i])/float64(try[0]), float64(try[2*i+1])/float64(try[1]))
		}
	})
}
