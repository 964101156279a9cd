package testdb

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
)

// Acquire must succeed; the lease is released when the test ends.
func Acquire(t testing.TB, db *dbmutex.DB, id string, opts ...dbmutex.Option) *dbmutex.Lease {
	t.Helper()
	lease, err := db.Mutex(id, opts...).Acquire()
	require.NoError(t, err)
	t.Cleanup(func() { _ = lease.Release() })
	return lease
}

// Taken asks for the rows of mutexes that are not free. (A free mutex may have a row, which is no lease's.)
func Taken(db *gorm.DB) *gorm.DB { return db.Model(&dbmutex.DBMutex{}).Where("lease_id <> ''") }

// Row is the row of a mutex that is not free, expired or not, as it stands in the table.
func Row(t testing.TB, db *dbmutex.DB, id string) *dbmutex.DBMutex {
	t.Helper()
	var rows []dbmutex.DBMutex
	require.NoError(t, Taken(db.Gorm).Where("lock_id = ?", id).Find(&rows).Error)
	if len(rows) == 0 {
		return nil
	}
	r := &rows[0]
	if db.Name() == mysqlKind.Name { // its times are in UTC, though the driver takes them for those of the DSN's loc
		r.CreationTime = inUTC(r.CreationTime)
		if r.ExpiresAt != nil {
			*r.ExpiresAt = inUTC(*r.ExpiresAt)
		}
	}
	return r
}

// inUTC has the same date and time of day, in UTC.
func inUTC(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.UTC)
}

// Many makes rows "many-00000" and so on, as one lease was acquired.
func Many(t testing.TB, db *dbmutex.DB, n int) {
	t.Helper()
	pattern := Acquire(t, db, "pattern", dbmutex.WithTTL(time.Hour))
	const batch = 100
	require.NoError(t, db.Transaction(func(tx *gorm.DB) error {
		for i := 0; i < n; i += batch {
			var rows []string
			var args []any
			for j := i; j < min(i+batch, n); j++ {
				rows = append(rows, `SELECT ?, creation_time, expires_at, holder, ? FROM db_mutexes WHERE lock_id = 'pattern'`)
				args = append(args, fmt.Sprintf("many-%05d", j), fmt.Sprintf("lease-%05d", j))
			}
			insert := `INSERT INTO db_mutexes (lock_id, creation_time, expires_at, holder, lease_id) `
			if err := tx.Exec(insert+strings.Join(rows, " UNION ALL "), args...).Error; err != nil {
				return err
			}
		}
		return nil
	}))
	require.NoError(t, pattern.Release())
}

// RequireFree says what others see of a mutex.
func RequireFree(t testing.TB, db *dbmutex.DB, id string) {
	t.Helper()
	require.NoError(t, db.Mutex(id).Do(Nothing))
}

// RequireHeld says what others see of a mutex.
func RequireHeld(t testing.TB, db *dbmutex.DB, id string) {
	t.Helper()
	err := db.Mutex(id).Do(func(context.Context) error {
		require.Fail(t, "the work ran without the mutex")
		return nil
	})
	require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
}

// Nothing is work.
func Nothing(context.Context) error { return nil }

// Limited is a context that ends a test which would otherwise hang.
func Limited(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// RequireEnds waits for a context to end.
func RequireEnds(t testing.TB, ctx context.Context) {
	t.Helper()
	select {
	case <-ctx.Done():
	case <-time.After(time.Minute):
		require.Fail(t, "the context did not end")
	}
}

// Exercise runs every verb once.
func Exercise(t testing.TB, db *dbmutex.DB) {
	t.Helper()
	db = db.WithContext(Limited(t))
	require.NoError(t, db.Mutex("job").Do(func(ctx context.Context) error {
		lease, _ := dbmutex.LeaseFrom(ctx)
		RequireHeld(t, db, "job")
		require.NoError(t, lease.Renew())
		holder, err := db.Mutex("job").Holder()
		require.NoError(t, err)
		require.Equal(t, "job", holder.LockID)
		require.InDelta(t, time.Now().Unix(), holder.CreationTime.Unix(), 60)
		listed(t, db, holder)
		begin := db.Gorm.Session(&gorm.Session{NewDB: true}).Begin()
		require.NoError(t, begin.Error)
		require.NoError(t, lease.Guard(begin))
		require.NoError(t, begin.Rollback().Error)
		return nil
	}))
	require.NoError(t, db.Mutex("job").Transaction(func(tx *gorm.DB) error { return tx.Exec(`SELECT 1`).Error }))
	RequireFree(t, db, "job")
	short, err := db.Mutex("job", dbmutex.WithTTL(time.Millisecond)).Acquire()
	require.NoError(t, err)
	lease, err := db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Acquire() // a take-over
	require.NoError(t, err)
	require.ErrorIs(t, short.Release(), dbmutex.ErrTimeout)
	require.NoError(t, db.Mutex("job").ForceRelease())
	require.ErrorIs(t, lease.Release(), dbmutex.ErrTimeout)
}

// listed looks at a lease that is held, and at the table that it is in.
func listed(t testing.TB, db *dbmutex.DB, holder *dbmutex.DBMutex) {
	t.Helper()
	info, err := db.Mutex(holder.LockID).Inspect()
	require.NoError(t, err)
	leases, err := db.Leases(dbmutex.LeaseQuery{Prefix: holder.LockID, Limit: 1, Holder: holder.Holder})
	require.NoError(t, err)
	stats, err := db.LeaseStats()
	require.NoError(t, err)
	for _, seen := range append(leases, *info, *stats.Oldest) {
		require.Equal(t, holder.LeaseID, seen.LeaseID)
		require.True(t, holder.CreationTime.Equal(seen.CreationTime), "%v, not %v", seen.CreationTime, holder.CreationTime)
		require.True(t, holder.ExpiresAt.Equal(*seen.ExpiresAt), "%v, not %v", seen.ExpiresAt, holder.ExpiresAt)
		require.InDelta(t, time.Now().Unix(), seen.Now.Unix(), 60)
		require.False(t, seen.Expired())
		require.InDelta(t, seen.ExpiresAt.Sub(seen.Now), seen.Left, float64(time.Millisecond))
	}
}

// WithSetting is a PostgreSQL DSN whose sessions have a setting of the server's.
func WithSetting(dsn, name, value string) string {
	if strings.Contains(dsn, "://") {
		return dsn + "&" + name + "=" + url.QueryEscape(value)
	}
	return dsn + " " + name + "='" + value + "'"
}

// CurrentSchema is the schema, or MySQL's database, of the test's own.
func CurrentSchema(t testing.TB, db *dbmutex.DB) (schema string) {
	require.NoError(t, db.Raw(At(db.Name(), "").schema).Scan(&schema).Error)
	return schema
}

// RequireTimeout says what the error of a lease that ended before its work must be: lost, or only run out.
func RequireTimeout(t testing.TB, err error, id string, lost bool) {
	t.Helper()
	_ = TimeoutOf(t, err, id, lost)
}

// TimeoutOf is RequireTimeout, and returns the *TimeoutError.
func TimeoutOf(t testing.TB, err error, id string, lost bool) *dbmutex.TimeoutError {
	t.Helper()
	require.ErrorIs(t, err, dbmutex.ErrTimeout)
	var timeout *dbmutex.TimeoutError
	require.ErrorAs(t, err, &timeout)
	require.Equal(t, id, timeout.LockID)
	require.Equal(t, lost, timeout.Lost, "%v", err)
	require.ErrorContains(t, timeout, fmt.Sprintf("%q", id))
	if lost {
		require.NotContains(t, timeout.Error(), "nobody else held the mutex")
	} else {
		require.Positive(t, timeout.Late)
		require.ErrorContains(t, timeout, "ran out")
		require.ErrorContains(t, timeout, "nobody else held the mutex meanwhile")
	}
	return timeout
}
