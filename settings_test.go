package dbmutex_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestInvalidSettings(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		out := &logs{}
		db := open(t, d, &gorm.Config{Logger: out.logger(logger.Info)})
		minute := time.Minute
		for _, opts := range [][]dbmutex.Option{
			{dbmutex.WithTTL(0)},
			{dbmutex.WithTTL(-time.Second)},
			{dbmutex.WithTTL(math.MinInt64)},
			{dbmutex.WithTTL(30)}, // a unit that was forgotten
			{dbmutex.WithTTL(time.Millisecond - 1)},
			{dbmutex.WithWait(-2)},
			{dbmutex.WithMinHold(-1)},
			{dbmutex.WithTTL(time.Minute), dbmutex.WithMinHold(time.Minute + 1)},
			{dbmutex.WithHolder("a\x00b")},
			{dbmutex.WithHolder("\xff")},
		} {
			requireRefused(t, out, db.Mutex("job", opts...), dbmutex.ErrInvalidSettings)
			s := dbmutex.Settings{TTL: &minute}
			for _, opt := range opts {
				opt(&s)
			}
			require.ErrorIs(t, d.Open(t).Use(dbmutex.New(s)), dbmutex.ErrInvalidSettings)
		}
		for _, opt := range []dbmutex.Option{
			nil, dbmutex.WithTTL(time.Millisecond), dbmutex.WithTTL(math.MaxInt64), dbmutex.WithMinHold(dbmutex.DefaultTTL),
			dbmutex.WithHolder(""),
			dbmutex.WithWait(math.MaxInt64), dbmutex.WithWait(dbmutex.Forever),
		} {
			_, err := db.Mutex("job", opt).Acquire()
			require.NoError(t, err)
			require.NoError(t, db.Mutex("job").ForceRelease())
		}
		require.ErrorIs(t, db.Mutex("job").Do(nil), dbmutex.ErrInvalidSettings)
		require.ErrorIs(t, db.Mutex("job").Transaction(nil), dbmutex.ErrInvalidSettings)
		_, err := dbmutex.DoValue[int](db.Mutex("job"), nil)
		require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
	})
}

func TestAnOptionSeesTheDefaultHolder(t *testing.T) {
	t.Parallel()
	for _, holder := range []string{"", "worker 7"} {
		s := dbmutex.DefaultSettings()
		s.Holder = holder
		db := testdb.SQLite(t).Mutexes(t, s)
		seen := ""
		lease := acquire(t, db, "job", func(s *dbmutex.Settings) { seen = s.Holder; s.Holder += ", task 1" })
		require.NotEmpty(t, seen)
		require.Equal(t, seen+", task 1", row(t, db, "job").Holder)
		require.NoError(t, lease.Release())
		acquire(t, db, "job", dbmutex.WithHolder(""))
		require.Regexp(t, `/\d+$`, row(t, db, "job").Holder)
	}
}

func TestAnOptionThatIsUsedAgainGivesTheSame(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		opts := []dbmutex.Option{dbmutex.WithTTL(time.Minute), func(s *dbmutex.Settings) { *s.TTL /= 2 }}
		for range 3 {
			lease := acquire(t, db, "job", opts...)
			expires, _ := lease.ExpiresAt()
			require.WithinRange(t, expires, time.Now().Add(-time.Hour), time.Now().Add(30*time.Second))
			require.NoError(t, lease.Release())
			held := acquire(t, db, "job", opts...)
			r := row(t, db, "job")
			require.Equal(t, 30*time.Second, r.ExpiresAt.Sub(r.CreationTime).Round(time.Second))
			require.NoError(t, held.Release())
		}
	})
}

func TestAnOptionChangesOneMutexAlone(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		acquire(t, db, "one", func(s *dbmutex.Settings) { *s.TTL = time.Minute })
		acquire(t, db, "other")
		stored := row(t, db, "other")
		require.Greater(t, stored.ExpiresAt.Sub(stored.CreationTime), 29*time.Minute)
	})
}

func TestSettingsFromEnv(t *testing.T) {
	const name = "DB_MUTEX_TTL_SECONDS"
	for value, want := range map[string]time.Duration{
		"":          dbmutex.DefaultTTL,
		"60":        time.Minute,
		" 1.5 ":     1500 * time.Millisecond,
		"0.1":       100 * time.Millisecond,
		"1e3":       1000 * time.Second,
		"none":      0,
		"None":      0,
		"315360000": 87600 * time.Hour,
	} {
		t.Setenv(name, value)
		s, err := dbmutex.SettingsFromEnv()
		require.NoError(t, err, value)
		if want == 0 {
			require.Nil(t, s.TTL)
			continue
		}
		require.Equal(t, want, *s.TTL, value)
	}
	for _, value := range []string{
		"0", "-1", "abc", "1h", "NaN", "Inf", "-Inf", "1e400", "1e10", "1e-10", "5 minutes", "none1", "1,5",
	} {
		t.Setenv(name, value)
		s, err := dbmutex.SettingsFromEnv()
		require.ErrorIs(t, err, dbmutex.ErrInvalidSettings, value)
		require.ErrorContains(t, err, name)
		require.Equal(t, dbmutex.DefaultSettings(), s)
	}
}

func TestDefaultSettings(t *testing.T) {
	t.Parallel()
	ttl := dbmutex.DefaultTTL
	require.Equal(t, dbmutex.Settings{TTL: &ttl}, dbmutex.DefaultSettings())
	*dbmutex.DefaultSettings().TTL = 1
	require.Equal(t, dbmutex.DefaultTTL, *dbmutex.DefaultSettings().TTL)
}
