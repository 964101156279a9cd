package dbmutex_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// The tests of this file run every verb in sessions that an administrator, a role or a DSN has set up in an unusual way.

// requireSettingsDoNotMatter is requireSessionsAgree for sessions of PostgreSQL's with these settings.
func requireSettingsDoNotMatter(t *testing.T, d *testdb.Database, settings map[string]string) {
	t.Helper()
	plain := openDSN(t, d.DSN).WithContext(limited(t))
	dsn := d.DSN
	for name, value := range settings {
		dsn = withSetting(dsn, name, value)
	}
	db := openDSN(t, dsn).WithContext(limited(t))
	for name := range settings {
		var source string
		require.NoError(t, db.Raw(`SELECT source FROM pg_settings WHERE lower(name) = lower(?)`, name).Scan(&source).Error)
		require.Equal(t, "client", source, "the session has no %s of its own", name)
	}

	requireSessionsAgree(t, plain, db)
}

// requireSessionsAgree runs every verb in unusual sessions, and reads there who holds a mutex that a plain one has taken.
func requireSessionsAgree(t *testing.T, plain, db *dbmutex.DB) {
	t.Helper()
	exercise(t, db)
	for name, opt := range map[string]dbmutex.Option{"an hour": dbmutex.WithTTL(time.Hour), "no end": dbmutex.WithoutTTL()} {
		lease := acquire(t, plain, name, opt, dbmutex.WithHolder("worker 7"))
		stored := row(t, plain, name)
		_, err := db.Mutex(name).Acquire()
		require.ErrorIs(t, err, dbmutex.ErrNotAcquired)
		var held *dbmutex.HeldError
		require.ErrorAs(t, err, &held)
		require.Equal(t, "worker 7", held.Holder)
		require.True(t, stored.CreationTime.Equal(held.Since), "%v is not %v", held.Since, stored.CreationTime)
		if stored.ExpiresAt == nil {
			require.Nil(t, held.ExpiresAt)
		} else {
			require.NotNil(t, held.ExpiresAt)
			require.True(t, stored.ExpiresAt.Equal(*held.ExpiresAt), "%v is not %v", held.ExpiresAt, stored.ExpiresAt)
		}
		require.NoError(t, lease.Release())
	}
}

func TestTheSessionsTimeZoneAndFormatOfTimesDoNotMatter(t *testing.T) {
	t.Parallel()
	zones := []string{"UTC", "Asia/Kolkata", "America/St_Johns", "Africa/Monrovia", "FOO+15", "FOO-05:30", "5.50556"}
	intervals := []string{"sql_standard", "Postgres", "postgres_verbose", "iso_8601"}
	d := testdb.Postgres(t)
	require.NoError(t, openDSN(t, d.DSN).Migrate())
	n := 0
	for _, zone := range zones {
		for _, style := range []string{"ISO", "SQL", "German", "Postgres"} {
			for _, order := range []string{"DMY", "MDY", "YMD"} {
				interval := intervals[n%len(intervals)] // each meets every zone, style and order
				n++
				t.Run(fmt.Sprintf("%s %s, %s %s", zone, style, order, interval), func(t *testing.T) {
					requireSettingsDoNotMatter(t, d, map[string]string{
						// GORM's driver has a way of its own with TimeZone and timezone, which knows no quotes.
						"Timezone": zone, "DateStyle": style + ", " + order, "IntervalStyle": interval,
					})
				})
			}
		}
	}
}

func TestOtherSettingsOfTheServerDoNotMatter(t *testing.T) {
	t.Parallel()
	d := testdb.Postgres(t)
	db := openDSN(t, d.DSN)
	require.NoError(t, db.Migrate())
	schema := currentSchema(t, db)
	tried := 0
	for _, setting := range []struct{ name, value string }{
		{"array_nulls", "off"},
		{"backslash_quote", "off"},
		{"bytea_output", "escape"},
		{"client_encoding", "LATIN1"},
		{"client_min_messages", "debug5"},
		{"client_min_messages", "error"},
		{"constraint_exclusion", "on"},
		{"cursor_tuple_fraction", "0"},
		{"debug_parallel_query", "on"}, // from version 16 on
		{"default_table_access_method", "heap"},
		{"default_toast_compression", "pglz"}, // from version 14 on
		{"default_transaction_deferrable", "on"},
		{"default_transaction_isolation", "read uncommitted"},
		{"enable_bitmapscan", "off"},
		{"enable_indexscan", "off"},
		{"enable_nestloop", "off"},
		{"enable_seqscan", "off"},
		{"escape_string_warning", "off"},
		{"extra_float_digits", "-15"},
		{"extra_float_digits", "3"},
		{"force_parallel_mode", "on"}, // up to version 15
		{"from_collapse_limit", "1"},
		{"gin_fuzzy_search_limit", "1"},
		{"idle_in_transaction_session_timeout", "1min"},
		{"idle_session_timeout", "1min"}, // from version 14 on
		{"lock_timeout", "1min"},
		{"plan_cache_mode", "force_custom_plan"},
		{"plan_cache_mode", "force_generic_plan"},
		{"quote_all_identifiers", "on"},
		{"row_security", "off"},
		{"search_path", schema + ", pg_catalog"},
		{"search_path", "nowhere, " + schema},
		{"search_path", "pg_catalog, " + schema + ", public"},
		{"standard_conforming_strings", "off"},
		{"statement_timeout", "1min"},
		{"synchronize_seqscans", "off"},
		{"synchronous_commit", "local"},
		{"synchronous_commit", "off"},
		{"synchronous_commit", "remote_apply"},
		{"synchronous_commit", "remote_write"},
		{"timezone_abbreviations", "Australia"},
		{"transaction_timeout", "1min"}, // from version 17 on
		{"transform_null_equals", "on"},
		{"work_mem", "64kB"},
		{"xmloption", "document"},
	} {
		var known bool
		require.NoError(t, db.Raw(`SELECT EXISTS (SELECT FROM pg_settings WHERE name = ?)`, setting.name).Scan(&known).Error)
		if !known {
			continue
		}
		tried++
		t.Run(setting.name+" "+setting.value, func(t *testing.T) {
			requireSettingsDoNotMatter(t, d, map[string]string{setting.name: setting.value})
		})
	}
	require.Greater(t, tried, 40)

	t.Run("jit for every statement", func(t *testing.T) {
		requireSettingsDoNotMatter(t, d, map[string]string{
			"jit": "on", "jit_above_cost": "0", "jit_inline_above_cost": "0", "jit_optimize_above_cost": "0",
		})
	})
}

func TestSerializableWithManyIDsGivesNobodyAnError(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		open(t, d)
		db := d.AtLevel(t, "serializable").Registered(t, dbmutex.DefaultSettings()).WithContext(limited(t))
		const goroutines, rounds, ids = 16, 40, 12
		var wg sync.WaitGroup
		for g := range goroutines {
			wg.Go(func() {
				for round := range rounds {
					id := fmt.Sprint("job ", (g+round)%ids)
					err := db.Mutex(id, dbmutex.WithWait(dbmutex.Forever)).Do(func(ctx context.Context) error {
						lease, _ := dbmutex.LeaseFrom(ctx)
						return lease.Renew()
					})
					if err != nil {
						t.Error(id, err)
					}
					err = db.Mutex(id).Do(nothing)
					if err != nil && !errors.Is(err, dbmutex.ErrNotAcquired) {
						t.Error(id, err)
					}
					if _, err := db.Mutex(id).Holder(); err != nil {
						t.Error(id, err)
					}
				}
			})
		}
		wg.Wait()
	})
}
