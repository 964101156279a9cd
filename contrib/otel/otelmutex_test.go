package otelmutex_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	api "go.opentelemetry.io/otel/trace"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	otelmutex "github.com/gorm-dbmutex/dbmutex/contrib/otel"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	_ "github.com/gorm-dbmutex/dbmutex/pgnotify" // leases are handed on where releases are heard of
)

var errWork = errors.New("the work's own")

func TestAcquireAndHoldAreSiblingsWithTheSQLAndTheWorkBeneath(t *testing.T) {
	each(t, func(t *testing.T, db, _ *dbmutex.DB, r *recording) {
		tracer := r.tracers.Tracer("test")
		require.NoError(t, db.Callback().Row().After("gorm:row").Register("trace", func(tx *gorm.DB) {
			_, span := tracer.Start(tx.Statement.Context, "sql")
			span.End()
		}))
		ctx, caller := tracer.Start(testdb.Limited(t), "caller")
		require.NoError(t, db.WithContext(ctx).Mutex("outer").Do(func(ctx context.Context) error {
			ctx, work := tracer.Start(ctx, "work")
			defer work.End()
			return db.WithContext(ctx).Mutex("inner").Do(func(ctx context.Context) error {
				_, deep := tracer.Start(ctx, "deep work")
				deep.End()
				return nil
			})
		}))
		caller.End()

		acquires, holds := r.ended("dbmutex acquire"), r.ended("dbmutex hold") // the inner lease ends first
		require.Len(t, acquires, 2)
		require.Len(t, holds, 2)
		requireBeneath := func(parent, child trace.ReadOnlySpan) {
			t.Helper()
			require.Equal(t, parent.SpanContext().SpanID(), child.Parent().SpanID())
			require.Equal(t, parent.SpanContext().TraceID(), child.SpanContext().TraceID())
		}
		requireBeneath(r.last(t, "caller"), acquires[0])
		requireBeneath(r.last(t, "caller"), holds[1])
		requireBeneath(holds[1], r.last(t, "work"))
		requireBeneath(r.last(t, "work"), acquires[1])
		requireBeneath(r.last(t, "work"), holds[0])
		requireBeneath(holds[0], r.last(t, "deep work"))
		requireBeneath(acquires[0], r.ended("sql")[0])
		for _, span := range append(acquires, holds...) {
			require.Equal(t, api.SpanKindInternal, span.SpanKind())
			require.Equal(t, "github.com/gorm-dbmutex/dbmutex/contrib/otel", span.InstrumentationScope().Name)
		}
		require.Equal(t, "outer", attributes(holds[1])["mutex.name"])
	})
}

func TestALeaseThatIsAcquiredAndReleased(t *testing.T) {
	each(t, func(t *testing.T, db, _ *dbmutex.DB, r *recording) {
		lease, err := db.Mutex("job").Acquire()
		require.NoError(t, err)
		require.Equal(t, []string{
			"acquire.duration job acquired 1", "acquire.pending job 0", "lease.active job 1",
		}, r.measured(t))
		require.NoError(t, lease.Renew())
		require.NoError(t, lease.Release())
		require.NoError(t, lease.Release(), "again")
		require.Equal(t, []string{
			"acquire.duration job acquired 1", "acquire.pending job 0",
			"lease.active job 0", "lease.duration job released 1", "lease.renewals job ok 1",
		}, r.measured(t))

		acquire, hold := r.last(t, "dbmutex acquire"), r.last(t, "dbmutex hold")
		require.Equal(t, map[string]any{
			"mutex.name": "job", "holder": "me", "token": lease.Token(), "outcome": "acquired",
			"acquire.tries": int64(1), "handed_on": false,
		}, attributes(acquire))
		require.Equal(t, map[string]any{
			"mutex.name": "job", "holder": "me", "token": lease.Token(), "outcome": "released",
		}, attributes(hold))
		require.Empty(t, events(acquire))
		require.Equal(t, []string{"renewed"}, events(hold))
		requireNoError(t, acquire)
		requireNoError(t, hold)
	})
}

func TestAnAcquireThatGetsNoLease(t *testing.T) {
	each(t, func(t *testing.T, db, others *dbmutex.DB, r *recording) {
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		testdb.Acquire(t, others, "job")
		require.ErrorIs(t, db.Mutex("job").Do(testdb.Nothing), dbmutex.ErrNotAcquired)
		require.NoError(t, db.Mutex("job", dbmutex.WithSkipHeld()).Do(testdb.Nothing))
		require.ErrorIs(t, db.WithContext(cancelled).Mutex("job").Do(testdb.Nothing), context.Canceled)
		require.NoError(t, others.Migrator().DropTable(&dbmutex.DBMutex{}))
		failed := db.Mutex("job").Do(testdb.Nothing)
		require.Error(t, failed)

		spans := r.ended("dbmutex acquire")
		require.Len(t, spans, 4)
		for i, outcome := range []string{"held", "skipped", "cancelled", "failed"} {
			require.Subset(t, attributes(spans[i]), map[string]any{"mutex.name": "job", "holder": "me", "outcome": outcome})
			require.NotContains(t, attributes(spans[i]), "token")
			require.Empty(t, events(spans[i]))
			if outcome != "failed" {
				requireNoError(t, spans[i])
			}
		}
		requireError(t, spans[3], failed.Error())
		require.Empty(t, r.ended("dbmutex hold"))
		require.Equal(t, []string{
			"acquire.duration job cancelled 1", "acquire.duration job failed 1", "acquire.duration job held 1",
			"acquire.duration job skipped 1", "acquire.pending job 0",
		}, r.measured(t))
	})
}

func TestALeaseThatIsTakenOver(t *testing.T) {
	each(t, func(t *testing.T, db, others *dbmutex.DB, r *recording) {
		testdb.Acquire(t, others, "job", dbmutex.WithHolder("a holder that crashed"))
		testdb.Expire(t, others, "job")
		require.NoError(t, db.Mutex("job").Do(testdb.Nothing))
		require.Equal(t, "a holder that crashed", attributes(r.last(t, "dbmutex acquire"))["previous.holder"])
		require.Contains(t, r.measured(t), "lease.takeovers job 1")
	})
}

func TestALeaseThatIsEndedByForce(t *testing.T) {
	each(t, func(t *testing.T, db, others *dbmutex.DB, r *recording) {
		require.NoError(t, db.Mutex("job").ForceRelease())
		require.Empty(t, r.measured(t), "nobody held it")
		testdb.Acquire(t, others, "job")
		require.NoError(t, db.Mutex("job").ForceRelease())
		require.Equal(t, []string{"lease.forced job 1"}, r.measured(t))
		require.Empty(t, r.spans.Ended())
	})
}

func TestALeaseThatIsHandedOn(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Notifies, func(t *testing.T, d *testdb.Database) {
		t.Parallel()
		r := record(t)
		settings := dbmutex.DefaultSettings()
		settings.Observer = r
		db := d.Mutexes(t, settings).WithContext(testdb.Limited(t))
		asked := make(chan bool, 1)
		require.NoError(t, db.Callback().Row().After("gorm:row").Register("asked", func(*gorm.DB) {
			select {
			case asked <- true:
			default:
			}
		}))
		pause := time.Millisecond
		for handedOn := false; !handedOn; pause *= 2 { // else the waiter was asking when the mutex was released
			lease, err := db.Mutex("job").Acquire()
			require.NoError(t, err)
			<-asked
			waited := make(chan error)
			go func() { waited <- db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(testdb.Nothing) }()
			<-asked
			time.Sleep(pause)
			require.NoError(t, lease.Release())
			require.NoError(t, <-waited)
			handedOn = attributes(r.last(t, "dbmutex acquire"))["handed_on"] == true
			select {
			case <-asked:
			default:
			}
		}
		holds := r.ended("dbmutex hold")
		first := holds[len(holds)-2]
		require.ElementsMatch(t, []any{"handed on", "released"},
			[]any{attributes(first)["outcome"], attributes(r.last(t, "dbmutex hold"))["outcome"]})
		requireNoError(t, first)
		require.Contains(t, r.measured(t), "lease.duration job handed on 1")
		require.Contains(t, r.measured(t), "lease.active job 0")
	})
}

func TestALeaseThatIsLost(t *testing.T) {
	each(t, func(t *testing.T, db, others *dbmutex.DB, r *recording) {
		err := db.Mutex("job").Do(func(ctx context.Context) error {
			if err := others.Mutex("job").ForceRelease(); err != nil {
				return err
			}
			lease, _ := dbmutex.LeaseFrom(ctx)
			require.ErrorIs(t, lease.Renew(), dbmutex.ErrTimeout)
			return nil
		})
		require.ErrorIs(t, err, dbmutex.ErrTimeout)
		hold := r.last(t, "dbmutex hold")
		require.Equal(t, "lost", attributes(hold)["outcome"])
		require.Equal(t, []string{"lost"}, events(hold))
		require.Contains(t, hold.Events()[0].Attributes[0].Value.AsString(), "was lost")
		requireError(t, hold, "was lost")
		requireNoError(t, r.last(t, "dbmutex acquire"))
		require.Contains(t, r.measured(t), "lease.duration job lost 1")
		require.Contains(t, r.measured(t), "lease.active job 0")
	})
}

func TestALeaseThatOnlyRanOutIsNoError(t *testing.T) {
	each(t, func(t *testing.T, db, _ *dbmutex.DB, r *recording) {
		lease, err := db.Mutex("job", dbmutex.WithTTL(20*time.Millisecond)).Acquire()
		require.NoError(t, err)
		testdb.RequireEnds(t, lease.Context())
		testdb.RequireTimeout(t, lease.Release(), "job", false)
		hold := r.last(t, "dbmutex hold")
		require.Equal(t, "released", attributes(hold)["outcome"])
		require.Equal(t, []string{"ran out"}, events(hold))
		requireNoError(t, hold)
		require.Contains(t, r.measured(t), "lease.duration job released 1")
	})
}

func TestARenewalThatFails(t *testing.T) {
	each(t, func(t *testing.T, db, _ *dbmutex.DB, r *recording) {
		refuse := refusal(t, db)
		lease, err := db.Mutex("job").Acquire()
		require.NoError(t, err)
		*refuse = true
		require.ErrorIs(t, lease.Renew(), errWork)
		*refuse = false
		require.NoError(t, lease.Release())
		hold := r.last(t, "dbmutex hold")
		require.Equal(t, []string{"renewal failed"}, events(hold))
		require.Contains(t, hold.Events()[0].Attributes[0].Value.AsString(), errWork.Error())
		requireNoError(t, hold)
		require.Contains(t, r.measured(t), "lease.renewals job failed 1")
	})
}

func TestAReleaseThatFails(t *testing.T) {
	each(t, func(t *testing.T, db, _ *dbmutex.DB, r *recording) {
		refuse := refusal(t, db)
		err := db.Mutex("job").Do(func(context.Context) error {
			*refuse = true
			return nil
		})
		require.ErrorIs(t, err, errWork)
		hold := r.last(t, "dbmutex hold")
		require.Equal(t, "unknown", attributes(hold)["outcome"])
		requireError(t, hold, errWork.Error())
		require.Contains(t, r.measured(t), "lease.duration job unknown 1")
		require.Contains(t, r.measured(t), "lease.active job 0")
	})
}

// refusal makes the lock's statements that look for a lease fail while it is true.
func refusal(t *testing.T, db *dbmutex.DB) *bool {
	t.Helper()
	refuse := new(bool)
	require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("refuse", func(tx *gorm.DB) {
		if *refuse && strings.Contains(tx.Statement.SQL.String(), "lease_id") {
			_ = tx.AddError(errWork)
		}
	}))
	return refuse
}

func TestUpDownCountersReturnToZero(t *testing.T) {
	each(t, func(t *testing.T, db, _ *dbmutex.DB, r *recording) {
		require.ErrorIs(t, db.Mutex("job").Do(func(context.Context) error { return errWork }), errWork)
		require.Panics(t, func() { _ = db.Mutex("job").Do(func(context.Context) error { panic(errWork) }) })
		ended := make(chan bool)
		go func() {
			defer close(ended)
			_ = db.Mutex("job").Do(func(context.Context) error { runtime.Goexit(); return nil })
		}()
		<-ended
		require.NoError(t, db.Mutex("job").Transaction(func(*gorm.DB) error { return nil }))
		require.ErrorIs(t, db.Mutex("job").Transaction(func(*gorm.DB) error { return errWork }), errWork)

		pool, err := db.DB()
		require.NoError(t, err)
		pool.SetMaxOpenConns(1)
		lease, err := db.Mutex("job").Acquire()
		require.NoError(t, err)
		conn, err := pool.Conn(t.Context())
		require.NoError(t, err)
		require.ErrorContains(t, lease.Release(), "it goes on in the background")
		measured := r.measured(t)
		require.Contains(t, measured, "lease.active job 0")
		require.Contains(t, measured, "lease.duration job unknown 1")
		require.NoError(t, conn.Close())

		require.NoError(t, db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(testdb.Nothing))
		require.NoError(t, lease.Release())
		require.Equal(t, []string{
			"acquire.duration job acquired 7", "acquire.pending job 0",
			"lease.active job 0", "lease.duration job released 6", "lease.duration job unknown 1",
		}, r.measured(t))
		require.Len(t, r.ended("dbmutex hold"), 7)
		require.Len(t, r.spans.Started(), len(r.spans.Ended()))
	})
}

func TestAcquiresUnderWayArePending(t *testing.T) {
	each(t, func(t *testing.T, db, others *dbmutex.DB, r *recording) {
		lease, err := others.Mutex("job").Acquire()
		require.NoError(t, err)
		var waiters sync.WaitGroup
		for range 3 {
			waiters.Go(func() { _ = db.Mutex("job", dbmutex.WithWait(dbmutex.Forever)).Do(testdb.Nothing) })
		}
		require.Eventually(t, func() bool { return slices.Contains(r.measured(t), "acquire.pending job 3") },
			time.Minute, time.Millisecond)
		require.NoError(t, lease.Release())
		waiters.Wait()
		require.Contains(t, r.measured(t), "acquire.pending job 0")
	})
}

func TestTimesAreInSecondsAndSoAreTheBuckets(t *testing.T) {
	r := record(t)
	tell(r, dbmutex.Event{Kind: dbmutex.AcquireEnded, Outcome: dbmutex.OutcomeHeld, Waited: 20 * time.Millisecond})
	tell(r, dbmutex.Event{Kind: dbmutex.LeaseEnded, Outcome: dbmutex.OutcomeReleased, Held: 2 * time.Hour})
	sums := map[string]float64{}
	for _, m := range r.collected(t) {
		if data, ok := m.Data.(metricdata.Histogram[float64]); ok {
			require.Equal(t, "s", m.Unit)
			require.Equal(t, []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 30, 60, 300, 900, 3600}, data.DataPoints[0].Bounds)
			sums[m.Name] = data.DataPoints[0].Sum
		}
	}
	require.Equal(t, map[string]float64{"dbmutex.acquire.duration": 0.02, "dbmutex.lease.duration": 7200}, sums)
}

// tell tells an observer of an event of the mutex "job", unless it names another.
func tell(o dbmutex.Observer, e dbmutex.Event) {
	if e.LockID == "" {
		e.LockID = "job"
	}
	_ = o.Observe(context.Background(), e)
}

func TestInstrumentsHaveUnitsAndKinds(t *testing.T) {
	r := record(t)
	for kind := dbmutex.AcquireBegan; kind <= dbmutex.ForceReleased; kind++ {
		tell(r, dbmutex.Event{Kind: kind, Previous: &dbmutex.HeldError{}})
	}
	got := map[string]string{}
	for _, m := range r.collected(t) {
		kind := "histogram"
		if sum, ok := m.Data.(metricdata.Sum[int64]); ok {
			kind = fmt.Sprintf("sum, monotonic %t", sum.IsMonotonic)
		}
		require.NotEmpty(t, m.Description)
		got[m.Name] = kind + ", " + m.Unit
	}
	require.Equal(t, map[string]string{
		"dbmutex.acquire.duration": "histogram, s",
		"dbmutex.acquire.pending":  "sum, monotonic false, {acquire}",
		"dbmutex.lease.duration":   "histogram, s",
		"dbmutex.lease.active":     "sum, monotonic false, {lease}",
		"dbmutex.lease.renewals":   "sum, monotonic true, {renewal}",
		"dbmutex.lease.takeovers":  "sum, monotonic true, {lease}",
		"dbmutex.lease.forced":     "sum, monotonic true, {lease}",
	}, got)
}

func TestNamesAreLimited(t *testing.T) {
	forced := func(r *recording, ids ...string) []string {
		for _, id := range ids {
			tell(r, dbmutex.Event{Kind: dbmutex.ForceReleased, LockID: id})
		}
		return r.measured(t)
	}
	require.Equal(t, []string{"lease.forced _other 3", "lease.forced a 2", "lease.forced b 2"},
		forced(record(t, otelmutex.WithNameLimit(2)), "a", "b", "c", "a", "d", "b", "c"))

	prefix := otelmutex.WithNames(func(id string) string {
		name, _, _ := strings.Cut(id, "/")
		return name
	})
	require.Equal(t, []string{"lease.forced 1", "lease.forced _other 1", "lease.forced export 2"},
		forced(record(t, prefix, otelmutex.WithNameLimit(1)), "export/1", "export/2", "/1", "import/1"), `"" is no name`)

	var ids []string
	for i := range 102 {
		ids = append(ids, fmt.Sprint("job ", i))
	}
	all := forced(record(t), ids...)
	require.Len(t, all, 101)
	require.Contains(t, all, "lease.forced _other 2")
}

func TestSpansHaveTheWholeID(t *testing.T) {
	r := record(t, otelmutex.WithNames(func(string) string { return "" }), otelmutex.WithNameLimit(1))
	for _, id := range []string{"export/1", "export/2"} {
		e := dbmutex.Event{Kind: dbmutex.AcquireBegan, LockID: id}
		ctx := r.Observe(t.Context(), e)
		e.Kind, e.Outcome = dbmutex.AcquireEnded, dbmutex.OutcomeHeld
		r.Observe(ctx, e)
		require.Equal(t, id, attributes(r.last(t, "dbmutex acquire"))["mutex.name"])
	}
}

func TestARunOfAOnceAndItsRecord(t *testing.T) {
	each(t, func(t *testing.T, db, _ *dbmutex.DB, r *recording) {
		const id = "job@2026-11-27T00:00:00Z"
		require.ErrorIs(t, db.Once(id, time.Hour).Do(func(context.Context) error { return errWork }), errWork)
		hold := r.last(t, "dbmutex hold")
		require.Equal(t, "released", attributes(hold)["outcome"])
		require.Equal(t, true, attributes(hold)["once"])
		for range 2 {
			require.NoError(t, db.Once(id, time.Hour).Do(testdb.Nothing))
		}
		acquire, hold := r.last(t, "dbmutex acquire"), r.last(t, "dbmutex hold")
		require.Subset(t, attributes(acquire), map[string]any{"mutex.name": id, "outcome": "done", "once": true})
		require.NotContains(t, attributes(acquire), "token")
		requireNoError(t, acquire)
		require.Subset(t, attributes(hold), map[string]any{"mutex.name": id, "outcome": "recorded", "once": true})
		requireNoError(t, hold)
		require.NoError(t, db.Once("job@2026-11-28T00:00:00Z", time.Hour).Do(testdb.Nothing))
		require.NoError(t, db.Mutex(id).Do(testdb.Nothing))
		require.NoError(t, db.Once("a@b", time.Hour).Do(testdb.Nothing))
		require.Equal(t, []string{
			"acquire.duration a@b acquired 1", "acquire.duration job acquired 3", "acquire.duration job done 1",
			"acquire.duration " + id + " acquired 1",
			"acquire.pending a@b 0", "acquire.pending job 0", "acquire.pending " + id + " 0",
			"lease.active a@b 0", "lease.active job 0", "lease.active " + id + " 0",
			"lease.duration a@b recorded 1", "lease.duration job recorded 2", "lease.duration job released 1",
			"lease.duration " + id + " released 1",
		}, r.measured(t), "ticks have one name")
		require.NotContains(t, attributes(r.ended("dbmutex hold")[3]), "once", "of the mutex")
	})
}

func TestASemaphoresSlotIsInItsSpans(t *testing.T) {
	each(t, func(t *testing.T, db, _ *dbmutex.DB, r *recording) {
		first, err := db.Semaphore("job", 2).Acquire()
		require.NoError(t, err)
		second, err := db.Semaphore("job", 2).Acquire()
		require.NoError(t, err)
		require.ErrorIs(t, db.Semaphore("job", 2).Do(testdb.Nothing), dbmutex.ErrNotAcquired)
		require.Contains(t, r.measured(t), "lease.active job 2")
		for _, lease := range []*dbmutex.Lease{first, second} {
			require.NoError(t, lease.Release())
			require.Subset(t, attributes(r.last(t, "dbmutex hold")),
				map[string]any{"mutex.name": "job", "slot": int64(lease.Slot()), "token": lease.Token()})
		}
		acquires := r.ended("dbmutex acquire")
		require.Equal(t, int64(first.Slot()), attributes(acquires[0])["slot"])
		require.NotContains(t, attributes(acquires[2]), "slot")
		require.Contains(t, r.measured(t), "acquire.duration job held 1")
	})
}

func TestWhatAnErrorOfNilSaysIsNothing(t *testing.T) {
	r := record(t)
	ctx := r.Observe(t.Context(), dbmutex.Event{Kind: dbmutex.LeaseBegan})
	r.Observe(ctx, dbmutex.Event{Kind: dbmutex.LeaseEnded, Outcome: dbmutex.OutcomeUnknown})
	requireError(t, r.last(t, "dbmutex hold"), "")
}

func TestMetricsOrTracesAlone(t *testing.T) {
	each := func(opts ...otelmutex.Option) *recording {
		r := record(t, opts...)
		if r.Observer != nil {
			ctx := r.Observe(t.Context(), dbmutex.Event{Kind: dbmutex.AcquireBegan})
			if ctx == nil {
				ctx = t.Context()
			}
			r.Observe(ctx, dbmutex.Event{Kind: dbmutex.AcquireEnded, Outcome: dbmutex.OutcomeHeld})
		}
		return r
	}
	r := each(otelmutex.WithoutMetrics())
	require.Len(t, r.spans.Ended(), 1)
	require.Empty(t, r.collected(t))
	r = each(otelmutex.WithoutTraces())
	require.Empty(t, r.spans.Ended())
	require.Len(t, r.collected(t), 2)
	require.Nil(t, each(otelmutex.WithoutTraces(), otelmutex.WithoutMetrics()).Observer)
}

func TestTheGlobalProvidersAreTheDefault(t *testing.T) {
	observer, err := otelmutex.New(nil)
	require.NoError(t, err)
	spans, reader := tracetest.NewSpanRecorder(), metric.NewManualReader()
	otel.SetTracerProvider(trace.NewTracerProvider(trace.WithSpanProcessor(spans))) // later than New
	otel.SetMeterProvider(metric.NewMeterProvider(metric.WithReader(reader)))
	r := &recording{Observer: observer, spans: spans, reader: reader}
	ctx := r.Observe(t.Context(), dbmutex.Event{Kind: dbmutex.LeaseBegan, LockID: "job"})
	r.Observe(ctx, dbmutex.Event{Kind: dbmutex.LeaseEnded, LockID: "job", Outcome: dbmutex.OutcomeReleased})
	require.Len(t, spans.Ended(), 1)
	require.Equal(t, []string{"lease.active job 0", "lease.duration job released 1"}, r.measured(t))
}

func TestWhatNewRefuses(t *testing.T) {
	for _, option := range []otelmutex.Option{
		otelmutex.WithTracerProvider(nil), otelmutex.WithMeterProvider(nil), otelmutex.WithNames(nil),
		otelmutex.WithNameLimit(0), otelmutex.WithNameLimit(-1),
	} {
		observer, err := otelmutex.New(option)
		require.ErrorIs(t, err, dbmutex.ErrInvalidSettings)
		require.Nil(t, observer)
	}
}

func TestManyGoroutinesAtOnce(t *testing.T) {
	r := record(t, otelmutex.WithNameLimit(5))
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			for range 100 {
				e := dbmutex.Event{Kind: dbmutex.LeaseBegan, LockID: fmt.Sprint(i)}
				ctx := r.Observe(context.Background(), e)
				e.Kind, e.Outcome = dbmutex.LeaseEnded, dbmutex.OutcomeReleased
				r.Observe(ctx, e)
			}
		})
	}
	all.Wait()
	measured := r.measured(t)
	require.Len(t, measured, 12, "5 names and _other")
	require.Contains(t, measured, "lease.duration _other released 500")
	require.Contains(t, measured, "lease.active _other 0")
	require.Len(t, r.ended("dbmutex hold"), 1000)
}
