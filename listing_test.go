package dbmutex_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// ids are those of leases, in their order.
func ids(leases []dbmutex.LeaseInfo) []string {
	ids := make([]string, len(leases))
	for i, lease := range leases {
		ids[i] = lease.LockID
	}
	return ids
}

func list(t *testing.T, db *dbmutex.DB, q dbmutex.LeaseQuery) []string {
	t.Helper()
	leases, err := db.Leases(q)
	require.NoError(t, err)
	return ids(leases)
}

func listAll(t *testing.T, db *dbmutex.DB, q dbmutex.LeaseQuery) (all []string) {
	t.Helper()
	for lease, err := range db.AllLeases(q) {
		require.NoError(t, err)
		require.Less(t, len(all), 10_000, "it has no end")
		all = append(all, lease.LockID)
	}
	return all
}

// odd are ids with characters that mean something to a database, an order or a terminal.
var odd = []string{
	"100", "100%", "100%a", "1000", "a", "A", "a_b", "axb", "a-b", "ab", "ab c", `a\b`, `a\%`, "a'b", `a"b`, "a?b", "a$1b",
	"a\x01b", "a\tb", "a\nb", "a\x7fb", "a\x7f", " a", "a ", "é", "e\u0301", "É", "éa", "n", "ng", "nga", "ngx", "o", "Ng",
	"ß", "ss", "\uD7FF", "\uD7FFx", "\uE000", "\U0010FFFF", "\U0010FFFFa", "\U0010FFFF\U0010FFFF", "日本", "日", "ch", "c", "h",
	"aa", "z", "å", "_", "-", "%", "job/1", "job/10", "job/2", "job-1", "job1", "jobs",
}

func TestEveryPageFollowsTheOneBefore(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) { requireExact(t, db, true) })
}

// requireExact lists odd ids in every way. Where they are sorted by bytes, it knows their order.
func requireExact(t *testing.T, db *dbmutex.DB, byBytes bool) {
	for _, id := range odd {
		acquire(t, db, id)
	}
	all := list(t, db, dbmutex.LeaseQuery{})
	require.ElementsMatch(t, odd, all)
	if byBytes {
		require.Equal(t, slices.Sorted(slices.Values(odd)), all)
	}
	for _, limit := range []int{1, 7, len(odd), 1000} {
		require.Equal(t, all, listAll(t, db, dbmutex.LeaseQuery{Limit: limit}))
	}
	for i, id := range all {
		require.Equal(t, all[i+1:], list(t, db, dbmutex.LeaseQuery{After: id}))
	}
	for _, prefix := range append([]string{"none", "a\x00"[:1], "a%", "_b", "n\u0301"}, odd...) {
		var want []string
		for _, id := range all {
			if strings.HasPrefix(id, prefix) {
				want = append(want, id)
			}
		}
		require.ElementsMatch(t, want, list(t, db, dbmutex.LeaseQuery{Prefix: prefix}), "%q", prefix)
		require.Equal(t, want, listAll(t, db, dbmutex.LeaseQuery{Prefix: prefix, Limit: 1}), "%q", prefix)
	}
}

func TestThePageAfterALeaseThatHasGoneIsTheSame(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		acquire(t, db, "a")
		acquire(t, db, "c")
		require.Equal(t, []string{"c"}, list(t, db, dbmutex.LeaseQuery{After: "b"}))
	})
}

func TestAHoldersNameIsContainedByteForByte(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		holders := []string{"machine-7/12", "Machine-7/12", "machine_7", `50%\`, "naïve", "NAÏVE", "日本"}
		for _, holder := range holders {
			acquire(t, db, "by "+holder, dbmutex.WithHolder(holder))
		}
		for _, part := range []string{"machine", "7/1", "_", "%", `\`, "ï", "Ï", "本", "12", "none"} {
			var want []string
			for _, holder := range holders {
				if strings.Contains(holder, part) {
					want = append(want, "by "+holder)
				}
			}
			require.ElementsMatch(t, want, list(t, db, dbmutex.LeaseQuery{Holder: part}), part)
		}
	})
}

func TestLeasesAreTimedByTheDatabasesClock(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		acquire(t, db, "a", dbmutex.WithTTL(time.Hour), dbmutex.WithHolder("somebody"))
		acquire(t, db, "b", dbmutex.WithoutTTL())
		acquire(t, db, "c", dbmutex.WithTTL(time.Hour))
		testdb.Expire(t, db, "c")
		leases, err := db.Leases(dbmutex.LeaseQuery{State: dbmutex.LeasesAll})
		require.NoError(t, err)
		require.Equal(t, []string{"a", "b", "c"}, ids(leases))
		for _, lease := range leases {
			require.Equal(t, leases[0].Now, lease.Now)
			require.Less(t, time.Since(lease.Now).Abs(), time.Minute)
			require.Equal(t, lease.Now.Sub(lease.CreationTime), lease.HeldFor())
			want := row(t, db, lease.LockID)
			require.Equal(t, []any{want.ID, want.LeaseID, want.Holder}, []any{lease.ID, lease.LeaseID, lease.Holder})
			require.False(t, lease.Resting())
		}
		held, forever, expired := leases[0], leases[1], leases[2]
		require.Equal(t, "somebody", held.Holder)
		require.InDelta(t, time.Hour, held.ExpiresAt.Sub(held.CreationTime), float64(time.Second))
		require.InDelta(t, held.ExpiresAt.Sub(held.Now), held.Left, float64(time.Millisecond))
		require.True(t, held.Expires() && !held.Expired() && held.Left > 0)
		require.True(t, !forever.Expires() && !forever.Expired() && forever.ExpiresAt == nil && forever.Left == 0)
		require.True(t, expired.Expires() && expired.Expired() && expired.Left < 0)

		for _, id := range []string{"a", "b", "c"} {
			info, err := db.Mutex(id).Inspect()
			require.NoError(t, err)
			require.Equal(t, id, info.LockID)
			require.Equal(t, id == "c", info.Expired())
		}
		none, err := db.Mutex("none").Inspect()
		require.NoError(t, err)
		require.Nil(t, none)
	})
}

func TestAPagesClockIsReadOnce(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		insertLeases(t, db, 1000)
		leases, err := db.Leases(dbmutex.LeaseQuery{State: dbmutex.LeasesAll, Limit: 1000})
		require.NoError(t, err)
		require.Len(t, leases, 1000)
		for _, lease := range leases {
			require.Equal(t, leases[0].Now, lease.Now)
		}
	})
}

// insertLeases makes rows "many-0000" and so on, that were all acquired at once. Every third never expires.
func insertLeases(t *testing.T, db *dbmutex.DB, n int) {
	t.Helper()
	patterns := []*dbmutex.Lease{
		acquire(t, db, "pattern", dbmutex.WithoutTTL()), acquire(t, db, "pattern of an hour", dbmutex.WithTTL(time.Hour)),
		acquire(t, db, "pattern of a day", dbmutex.WithTTL(24*time.Hour)),
	}
	require.NoError(t, db.Transaction(func(tx *gorm.DB) error {
		for i := range n {
			if err := tx.Exec(`INSERT INTO db_mutexes (lock_id, creation_time, expires_at, holder, lease_id)
SELECT ?, (SELECT creation_time FROM (SELECT creation_time FROM db_mutexes WHERE lock_id = ?) AS began),
	expires_at, holder, ? FROM db_mutexes WHERE lock_id = ?`, fmt.Sprintf("many-%04d", i),
				"pattern", fmt.Sprintf("lease-%04d", i),
				patterns[i%3].LockID()).Error; err != nil {
				return err
			}
		}
		return nil
	}))
	for _, pattern := range patterns {
		require.NoError(t, pattern.Release())
	}
}

func TestALeaseThatMinHoldKeepsIsResting(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		lease := acquire(t, db, "job", dbmutex.WithMinHold(time.Minute))
		require.NoError(t, lease.Release())
		info, err := db.Mutex("job").Inspect()
		require.NoError(t, err)
		require.True(t, info.Resting() && !info.Expired())
		require.Equal(t, time.Minute, info.ExpiresAt.Sub(info.CreationTime))
		require.Equal(t, []string{"job"}, list(t, db, dbmutex.LeaseQuery{}))
		released, err := db.Mutex("job").ForceReleaseLease(info.LeaseID)
		require.NoError(t, err)
		require.True(t, released)
		requireFree(t, db, "job")
	})
}

func TestStatesAreTakenApart(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		acquire(t, db, "forever", dbmutex.WithoutTTL())
		acquire(t, db, "held")
		acquire(t, db, "ran out")
		testdb.Expire(t, db, "ran out")
		require.NoError(t, acquire(t, db, "released").Release())
		require.Equal(t, []string{"forever", "held"}, list(t, db, dbmutex.LeaseQuery{}))
		require.Equal(t, []string{"ran out"}, list(t, db, dbmutex.LeaseQuery{State: dbmutex.LeasesExpired}))
		require.Equal(t, []string{"forever", "held", "ran out"}, list(t, db, dbmutex.LeaseQuery{State: dbmutex.LeasesAll}))

		stats, err := db.LeaseStats()
		require.NoError(t, err)
		require.Equal(t, []int64{2, 1, 1}, []int64{stats.Held, stats.Expired, stats.WithoutExpiry})
		require.Equal(t, "forever", stats.Oldest.LockID)
		require.Equal(t, stats.Now, stats.Oldest.Now)
		require.Less(t, time.Since(stats.Now).Abs(), time.Minute)
	})
}

func TestStatsOfAnEmptyTable(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		stats, err := db.LeaseStats()
		require.NoError(t, err)
		require.Less(t, time.Since(stats.Now).Abs(), time.Minute)
		require.Equal(t, dbmutex.LeaseStats{Now: stats.Now}, stats)
	})
}

func TestOrdersOfLeases(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		// By age c, b, e, a, d; by the end d, a, b, and then those that never end.
		for _, lease := range []struct {
			id  string
			ttl dbmutex.Option
		}{
			{"c", dbmutex.WithoutTTL()}, {"b", dbmutex.WithTTL(3 * time.Hour)}, {"e", dbmutex.WithoutTTL()},
			{"a", dbmutex.WithTTL(2 * time.Hour)}, {"d", dbmutex.WithTTL(time.Hour)},
		} {
			acquire(t, db, lease.id, lease.ttl)
			time.Sleep(2 * time.Millisecond) // what SQLite's clock counts
		}
		oldest := dbmutex.LeaseQuery{Order: dbmutex.OldestFirst}
		ending := dbmutex.LeaseQuery{Order: dbmutex.EndingFirst}
		require.Equal(t, []string{"c", "b", "e", "a", "d"}, list(t, db, oldest))
		require.Equal(t, []string{"d", "a", "b", "c", "e"}, list(t, db, ending))
		for limit := range 6 {
			oldest.Limit, ending.Limit = limit, limit
			require.Equal(t, []string{"c", "b", "e", "a", "d"}, listAll(t, db, oldest))
			require.Equal(t, []string{"d", "a", "b", "c", "e"}, listAll(t, db, ending))
		}
		ending.Limit = 3
		require.Equal(t, []string{"d", "a", "b"}, list(t, db, ending))
	})
}

func TestLeasesThatAreEqualInAnOrderAreAllListed(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		insertLeases(t, db, 30) // all were acquired at once
		for _, order := range []dbmutex.LeaseOrder{dbmutex.ByLockID, dbmutex.OldestFirst, dbmutex.EndingFirst} {
			all := listAll(t, db, dbmutex.LeaseQuery{Order: order, Limit: 4})
			require.Len(t, all, 30)
			require.Equal(t, list(t, db, dbmutex.LeaseQuery{Order: order}), all)
		}
	})
}

func TestLimitsOfAPage(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		insertLeases(t, db, 1100)
		for limit, want := range map[int]int{0: 100, 1: 1, 1000: 1000, 1001: 1000, 1 << 40: 1000} {
			require.Len(t, list(t, db, dbmutex.LeaseQuery{Limit: limit}), want)
		}
		require.Len(t, listAll(t, db, dbmutex.LeaseQuery{Limit: 2000}), 1100)
	})
}

func TestAllLeasesKeepsNoConnection(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		db = db.WithContext(limited(t))
		insertLeases(t, db, 5)
		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1)
		var seen []string
		for lease, err := range db.AllLeases(dbmutex.LeaseQuery{Limit: 2}) {
			require.NoError(t, err)
			seen = append(seen, lease.LockID)
			require.NoError(t, db.Mutex(lease.LockID).ForceRelease())
			if len(seen) == 4 {
				break
			}
		}
		require.Equal(t, []string{"many-0000", "many-0001", "many-0002", "many-0003"}, seen)
		require.Equal(t, []string{"many-0004"}, list(t, db, dbmutex.LeaseQuery{}))
	})
}

func TestAnErrorEndsAllLeases(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		insertLeases(t, db, 5)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var seen []string
		var failed error
		for lease, err := range db.WithContext(ctx).AllLeases(dbmutex.LeaseQuery{Limit: 2}) {
			require.NoError(t, failed)
			if failed = err; err != nil {
				require.Equal(t, dbmutex.LeaseInfo{}, lease)
				continue
			}
			seen = append(seen, lease.LockID)
			cancel()
		}
		require.Equal(t, []string{"many-0000", "many-0001"}, seen)
		require.ErrorIs(t, failed, context.Canceled)
	})
}

// verbs are those that list, each with its error.
var listing = map[string]func(db *dbmutex.DB) error{
	"Leases": func(db *dbmutex.DB) error { _, err := db.Leases(dbmutex.LeaseQuery{}); return err },
	"AllLeases": func(db *dbmutex.DB) error {
		for _, err := range db.AllLeases(dbmutex.LeaseQuery{}) {
			return err
		}
		return nil
	},
	"LeaseStats":        func(db *dbmutex.DB) error { _, err := db.LeaseStats(); return err },
	"Prune":             func(db *dbmutex.DB) error { _, err := db.Prune(); return err },
	"Inspect":           func(db *dbmutex.DB) error { _, err := db.Mutex("job").Inspect(); return err },
	"ForceReleaseLease": func(db *dbmutex.DB) error { _, err := db.Mutex("job").ForceReleaseLease("lease"); return err },
}

func TestListingIsRefusedBeforeAnySQL(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		var log logs
		loud := db.Session(&gorm.Session{Logger: log.logger(logger.Info)})
		done, cancel := context.WithCancel(context.Background())
		cancel()
		failed := loud.Session(&gorm.Session{NewDB: true})
		_ = failed.AddError(gorm.ErrInvalidValue)
		require.NoError(t, loud.Connection(func(*gorm.DB) error { return nil }))
		tx := db.Begin()
		require.NoError(t, tx.Error)
		defer tx.Rollback()
		for name, verb := range listing {
			require.ErrorIs(t, verb(nil), dbmutex.ErrNotRegistered, name)
			require.ErrorIs(t, verb(dbmutex.Wrap(nil)), dbmutex.ErrNotRegistered, name)
			require.ErrorIs(t, verb(dbmutex.Wrap(d.Open(t))), dbmutex.ErrNotRegistered, name)
			require.ErrorIs(t, verb(loud.Session(&gorm.Session{DryRun: true})), dbmutex.ErrDryRun, name)
			require.ErrorIs(t, verb(dbmutex.Wrap(tx)), dbmutex.ErrInTransaction, name)
			require.ErrorIs(t, verb(failed), gorm.ErrInvalidValue, name)
			require.ErrorIs(t, verb(loud.WithContext(done)), context.Canceled, name)
		}
		for _, q := range []dbmutex.LeaseQuery{
			{Limit: -1}, {State: -1}, {State: 3}, {Order: -1}, {Order: 3}, {Prefix: "\xff"}, {Holder: "a\x00"}, {After: "\xc0"},
			{After: "a", Order: dbmutex.OldestFirst}, {After: "a", Order: dbmutex.EndingFirst},
		} {
			_, err := loud.Leases(q)
			require.ErrorIs(t, err, dbmutex.ErrInvalidSettings, "%+v", q)
			for _, err := range loud.AllLeases(q) {
				require.ErrorIs(t, err, dbmutex.ErrInvalidSettings, "%+v", q)
			}
		}
		_, err := loud.Mutex("job").ForceReleaseLease("")
		require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
		_, err = loud.Mutex("").Inspect()
		require.ErrorIs(t, err, dbmutex.ErrInvalidLockID)
		require.Empty(t, log.String())
	})
}

func TestListingSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		db := d.Registered(t, dbmutex.DefaultSettings())
		for name, verb := range listing {
			require.ErrorContains(t, verb(db), `table "db_mutexes" is missing: run AutoMigrate(&dbmutex.DBMutex{})`, name)
		}
	})
}

func TestListingWaitsForNobody(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		lease := acquire(t, db, "job")
		tx := d.Open(t).Begin()
		require.NoError(t, lease.Guard(tx))
		defer func() { require.NoError(t, tx.Rollback().Error) }()
		require.Equal(t, []string{"job"}, list(t, db.WithContext(limited(t)), dbmutex.LeaseQuery{}))
		_, err := db.WithContext(limited(t)).LeaseStats()
		require.NoError(t, err)
		info, err := db.WithContext(limited(t)).Mutex("job").Inspect()
		require.NoError(t, err)
		require.Equal(t, "job", info.LockID)
	})
}
