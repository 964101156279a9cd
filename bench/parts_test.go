//go:build unix

package bench_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/scenario"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// BenchmarkCycle acquires and releases a free lock.
func BenchmarkCycle(b *testing.B) {
	each(b, func(b *testing.B, instance contender.Instance) {
		for b.Loop() {
			if err := instance.Cycle(b.Context(), "one"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkTry is refused a held lock.
func BenchmarkTry(b *testing.B) {
	each(b, func(b *testing.B, instance contender.Instance) {
		err := instance.Fill(b.Context(), 1)
		if errors.Is(err, errors.ErrUnsupported) { // advisory locks
			b.Skip(err)
		}
		require.NoError(b, err)
		for b.Loop() {
			if err := instance.Try(b.Context(), "held 1"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkIDs acquires and releases free locks in about as many goroutines as there are connections.
func BenchmarkIDs(b *testing.B) {
	each(b, func(b *testing.B, instance contender.Instance) {
		var goroutines atomic.Int64
		b.SetParallelism(max(1, contender.Pool/runtime.GOMAXPROCS(0)))
		b.RunParallel(func(pb *testing.PB) {
			id := fmt.Sprintf("id %d", goroutines.Add(1))
			for pb.Next() {
				if err := instance.Cycle(b.Context(), id); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

// BenchmarkSQLite acquires and releases a free lock in a file in WAL mode, synchronous=NORMAL.
func BenchmarkSQLite(b *testing.B) {
	for i, c := range contender.OnSQLite() {
		b.Run(c.Name, func(b *testing.B) {
			file := filepath.Join(b.TempDir(), fmt.Sprintf("%d.db", i))
			instance, err := c.Open(b.Context(), contender.Where{DSN: "file:" + file + "?_journal_mode=WAL&_synchronous=NORMAL"})
			require.NoError(b, err)
			defer instance.Close()
			b.ReportAllocs()
			for b.Loop() {
				if err := instance.Cycle(b.Context(), "one"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkObserver is the cycle of dbmutex without an observer, with one that does nothing, and with one that logs nothing.
func BenchmarkObserver(b *testing.B) {
	for _, d := range testdb.All(b) {
		db := d.Mutexes(b, dbmutex.DefaultSettings())
		for _, c := range []struct {
			name     string
			observer dbmutex.Observer
		}{{"none", nil}, {"idle", idle{}}, {"LogTo", dbmutex.LogTo(slog.New(slog.DiscardHandler))}} {
			b.Run(d.Name+"/"+c.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					err := db.Mutex("one", dbmutex.WithObserver(c.observer)).Do(func(context.Context) error { return nil })
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

type idle struct{}

func (idle) Observe(ctx context.Context, _ dbmutex.Event) context.Context { return ctx }

// each runs a benchmark on every contender, in a place of its own.
func each(b *testing.B, fn func(b *testing.B, instance contender.Instance)) {
	e := newEnv(b)
	for _, c := range contender.All() {
		b.Run(c.Name, func(b *testing.B) {
			b.ReportAllocs()
			err := e.With(context.Background(), c, func(instance contender.Instance) error {
				fn(b, instance)
				return nil
			})
			if errors.Is(err, scenario.ErrNoServer) {
				b.Skip(err)
			}
			require.NoError(b, err)
		})
	}
}
