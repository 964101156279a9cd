package dbmutex_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

type span struct{}

type fromCaller struct{}

// spans is an Observer that adds the kind of event to the context, and keeps what contexts had when it was told.
type spans struct {
	recorder
	values map[dbmutex.EventKind]any
	ended  map[dbmutex.EventKind]error
}

func newSpans() *spans {
	return &spans{values: map[dbmutex.EventKind]any{}, ended: map[dbmutex.EventKind]error{}}
}

func (s *spans) Observe(ctx context.Context, e dbmutex.Event) context.Context {
	s.recorder.Observe(ctx, e)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[e.Kind], s.ended[e.Kind] = ctx.Value(span{}), ctx.Err()
	return context.WithValue(ctx, span{}, e.Kind)
}

// value is what the context had for an event.
func (s *spans) value(kind dbmutex.EventKind) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[kind]
}

func TestAnObserversValuesReachWhatComesAfter(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		seen := newSpans()
		db := open(t, d)
		var acquiredIn []any
		note := func(tx *gorm.DB) {
			if d.Verb(tx.Statement.SQL.String()) == "acquire" {
				acquiredIn = append(acquiredIn, tx.Statement.Context.Value(span{}))
			}
		}
		require.NoError(t, db.Callback().Row().Before("gorm:row").Register("note", note))
		require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("note", note))
		ctx := context.WithValue(context.WithValue(limited(t), span{}, "caller"), fromCaller{}, "kept")
		m := db.WithContext(ctx).Mutex("job", dbmutex.WithObserver(seen))
		outer := db.WithContext(ctx).Mutex("outer")
		inWork := func(ctx context.Context) {
			require.Equal(t, dbmutex.LeaseBegan, ctx.Value(span{}))
			require.Equal(t, "kept", ctx.Value(fromCaller{}))
			lease, ok := dbmutex.LeaseFrom(ctx)
			require.True(t, ok)
			require.Equal(t, "job", lease.LockID())
			require.NoError(t, lease.Context().Err())
			require.ErrorContains(t, db.WithContext(ctx).Mutex("job").Do(nothing), "not reentrant")
			require.ErrorContains(t, db.WithContext(ctx).Mutex("outer").Do(nothing), "not reentrant", "further out")
		}
		require.NoError(t, outer.Do(func(ctx context.Context) error {
			m := db.WithContext(ctx).Mutex("job", dbmutex.WithObserver(seen))
			require.NoError(t, m.Do(func(ctx context.Context) error {
				inWork(ctx)
				lease, _ := dbmutex.LeaseFrom(ctx)
				require.NoError(t, lease.Renew())
				seen.waitFor(t, dbmutex.LeaseRenewed, 1)
				return nil
			}))
			return nil
		}))
		require.NotEmpty(t, acquiredIn)
		require.Equal(t, dbmutex.AcquireBegan, acquiredIn[len(acquiredIn)-1])
		require.Equal(t, map[dbmutex.EventKind]any{
			dbmutex.AcquireBegan: "caller", dbmutex.AcquireEnded: dbmutex.AcquireBegan,
			dbmutex.LeaseBegan: "caller", dbmutex.LeaseRenewed: dbmutex.LeaseBegan, dbmutex.LeaseEnded: dbmutex.LeaseBegan,
		}, seen.values)
		require.NoError(t, m.Transaction(func(tx *gorm.DB) error {
			require.Equal(t, dbmutex.LeaseBegan, tx.Statement.Context.Value(span{}))
			require.Equal(t, "kept", tx.Statement.Context.Value(fromCaller{}))
			lease, _ := dbmutex.LeaseFrom(tx.Statement.Context)
			require.Equal(t, "job", lease.LockID())
			return nil
		}))
	})
}

// badContexts are what an observer may return, by what is wrong with it.
func badContexts(t *testing.T) map[string]dbmutex.Observer {
	over, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("the observer's"))
	past, cancelPast := context.WithDeadline(context.Background(), time.Unix(0, 0))
	t.Cleanup(cancelPast)
	return map[string]dbmutex.Observer{
		"nil":       observe(func(context.Context, dbmutex.Event) context.Context { return nil }),
		"cancelled": observe(func(context.Context, dbmutex.Event) context.Context { return over }),
		"past":      observe(func(context.Context, dbmutex.Event) context.Context { return past }),
		"its own": observe(func(ctx context.Context, _ dbmutex.Event) context.Context {
			ctx, cancel := context.WithCancelCause(ctx)
			cancel(errors.New("the observer's"))
			return ctx
		}),
		"another lease's": observe(func(ctx context.Context, e dbmutex.Event) context.Context { return otherLease }),
		"panics":          observe(func(context.Context, dbmutex.Event) context.Context { panic("the observer's") }),
	}
}

// otherLease is a context that has a lease of another mutex.
var otherLease context.Context

func TestAnObserversContextEndsNothing(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		otherLease = acquire(t, db, "another").Context()
		cause := errors.New("the caller's")
		for name, o := range badContexts(t) {
			for _, o := range []dbmutex.Observer{o, dbmutex.Observers(o, newSpans(), o)} {
				ctx, cancel := context.WithCancelCause(context.WithValue(limited(t), fromCaller{}, "kept"))
				m := db.WithContext(ctx).Mutex("job", dbmutex.WithObserver(o), dbmutex.WithWait(time.Minute))
				require.NoError(t, m.Do(func(ctx context.Context) error {
					require.NoError(t, ctx.Err(), name)
					_, hasDeadline := ctx.Deadline()
					require.True(t, hasDeadline, "the caller's")
					require.Equal(t, "kept", ctx.Value(fromCaller{}), name)
					lease, _ := dbmutex.LeaseFrom(ctx)
					require.Equal(t, "job", lease.LockID(), name)
					child, cancelChild := context.WithCancel(ctx)
					defer cancelChild()
					cancel(cause)
					requireEnds(t, child)
					require.Equal(t, cause, context.Cause(child), name)
					require.Equal(t, cause, context.Cause(ctx), name)
					return nil
				}))
				ctx, cancel = context.WithCancelCause(limited(t))
				m = db.WithContext(ctx).Mutex("job", dbmutex.WithObserver(o))
				require.ErrorIs(t, m.Transaction(func(tx *gorm.DB) error {
					child, cancelChild := context.WithCancel(tx.Statement.Context)
					defer cancelChild()
					cancel(cause)
					requireEnds(t, child)
					require.Equal(t, cause, context.Cause(child), name)
					return errWork
				}), errWork)
				m = db.Mutex("job", dbmutex.WithObserver(o), dbmutex.WithTTL(20*time.Millisecond))
				requireTimeout(t, m.Do(func(ctx context.Context) error {
					requireEnds(t, ctx)
					require.ErrorIs(t, context.Cause(ctx), dbmutex.ErrTimeout, name)
					require.Equal(t, context.Canceled, ctx.Err())
					return nil
				}), "job", false)
				require.NoError(t, db.Mutex("job", dbmutex.WithObserver(o)).Transaction(func(tx *gorm.DB) error {
					require.NoError(t, tx.Statement.Context.Err(), name)
					return tx.Exec(`SELECT 1`).Error
				}))
			}
		}
	})
}

// The events of a lease have a context that lasts, whatever becomes of the caller's.
func TestTheEndOfALeaseIsToldInAContextThatLasts(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, _ *testdb.Database) {
		ctx, cancel := context.WithCancel(limited(t))
		seen := newSpans()
		lease, err := db.WithContext(ctx).Mutex("job", dbmutex.WithObserver(seen)).Acquire()
		require.NoError(t, err)
		cancel()
		require.NoError(t, lease.Renew())
		require.NoError(t, lease.Release())
		require.NoError(t, seen.ended[dbmutex.LeaseRenewed])
		require.NoError(t, seen.ended[dbmutex.LeaseEnded])
		require.Equal(t, dbmutex.LeaseBegan, seen.value(dbmutex.LeaseEnded))
	})
}
