package dbmutex_test

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// Whatever comes in, it is refused before any SQL or kept to the byte.

func isText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

func FuzzLockID(f *testing.F) {
	for _, id := range []string{
		"", "job", "job ", "jöb", "a\x00b", "a\x1f1", "\xff", "?", "@id", "'; --", "\u202e",
		strings.Repeat("日", 256), strings.Repeat("a", 257),
	} {
		f.Add(id)
	}
	dbs := fuzzed(f)
	f.Fuzz(func(t *testing.T, id string) {
		for _, db := range dbs {
			lease, err := db.Mutex(id).Acquire()
			if id == "" || !isText(id) || strings.Contains(id, "\x1f") || utf8.RuneCountInString(id) > dbmutex.MaxLockIDLength {
				require.ErrorIs(t, err, dbmutex.ErrInvalidLockID)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, id, row(t, db, id).LockID)
			requireHeld(t, db, id)
			require.NoError(t, lease.Release())
			require.Nil(t, row(t, db, id))
		}
	})
}

func FuzzHolder(f *testing.F) {
	for _, holder := range []string{"", "host/1", "a\x00b", "\xff", "?", "%s", strings.Repeat("x", 10000)} {
		f.Add(holder)
	}
	dbs := fuzzed(f)
	f.Fuzz(func(t *testing.T, holder string) {
		for _, db := range dbs {
			lease, err := db.Mutex("job", dbmutex.WithHolder(holder)).Acquire()
			if !isText(holder) {
				require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
				continue
			}
			require.NoError(t, err)
			_, err = db.Mutex("job").Acquire()
			var held *dbmutex.HeldError
			require.ErrorAs(t, err, &held)
			if holder != "" {
				require.Equal(t, holder, held.Holder)
			}
			require.NoError(t, lease.Release())
		}
	})
}

func FuzzSettings(f *testing.F) {
	f.Add(int64(time.Minute), int64(0), int64(0), false, false)
	f.Add(int64(-1), int64(-1), int64(-1), true, true)
	f.Add(int64(1), int64(1<<62), int64(1), true, false)
	f.Add(int64(1<<63-1), int64(0), int64(1<<63-1), false, false)
	f.Fuzz(func(t *testing.T, ttl, wait, minHold int64, never, renew bool) {
		s := dbmutex.Settings{
			TTL:     (*time.Duration)(&ttl),
			Wait:    time.Duration(wait),
			MinHold: time.Duration(minHold),
			Renew:   renew,
		}
		if never {
			s.TTL = nil
		}
		err := dbmutex.New(s).Initialize(nil)
		valid := (never || ttl > 0) && (wait >= 0 || s.Wait == dbmutex.Forever) && minHold >= 0 && (never || minHold <= ttl)
		require.Equal(t, valid, err == nil, "%v", err)
		require.Equal(t, !valid, errors.Is(err, dbmutex.ErrInvalidSettings))
	})
}

// FuzzTTL has the database reckon with any TTL that can be.
func FuzzTTL(f *testing.F) {
	for _, ttl := range []int64{1, 999_999, 1_000_000, 1_000_001, 1_999_999, int64(time.Hour), 1<<63 - 1} {
		f.Add(ttl)
	}
	dbs := fuzzed(f)
	f.Fuzz(func(t *testing.T, nanoseconds int64) {
		ttl := time.Duration(nanoseconds)
		for _, db := range dbs {
			lease, err := db.Mutex("job", dbmutex.WithTTL(ttl)).Acquire()
			if ttl < time.Millisecond {
				require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
				continue
			}
			require.NoError(t, err)
			stored := row(t, db, "job")
			require.GreaterOrEqual(t, stored.ExpiresAt.Sub(stored.CreationTime), min(ttl, 1<<62), "rounded up")
			if err := lease.Release(); err != nil { // a short one may have run out
				requireTimeout(t, err, "job", false)
			}
			require.Nil(t, row(t, db, "job"))
		}
	})
}

func FuzzTTLFromTheEnvironment(f *testing.F) {
	for _, value := range []string{
		"", "1800", "0.5", "none", "None", "-1", "0", "1e400", "NaN", "0x10", "1_0", " 7 ", "1e-10",
	} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if strings.ContainsRune(value, 0) { // no environment can have it
			return
		}
		t.Setenv("DB_MUTEX_TTL_SECONDS", value)
		s, err := dbmutex.SettingsFromEnv()
		if err != nil {
			require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
			require.Equal(t, dbmutex.DefaultSettings(), s)
			return
		}
		require.True(t, s.TTL == nil || *s.TTL > 0)
		require.NoError(t, dbmutex.New(s).Initialize(nil))
	})
}

// fuzzed are the databases that fuzzing runs on: each of its processes has its own.
func fuzzed(f *testing.F) (dbs []*dbmutex.DB) {
	for _, d := range testdb.All(f) {
		dbs = append(dbs, d.Mutexes(f, dbmutex.DefaultSettings()))
	}
	return dbs
}
