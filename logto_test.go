package dbmutex_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
)

func TestLogToHasALevelForEachEvent(t *testing.T) {
	t.Parallel()
	require.Nil(t, dbmutex.LogTo(nil))
	previous := &dbmutex.HeldError{LockID: "job", Holder: "before"}
	for _, test := range []struct {
		e     dbmutex.Event
		level string
		keys  []string
	}{
		{dbmutex.Event{Kind: dbmutex.AcquireBegan}, "", nil},
		{dbmutex.Event{Kind: dbmutex.LeaseBegan, Token: 1}, "", nil},
		{dbmutex.Event{Kind: 100}, "", nil},
		{
			dbmutex.Event{Kind: dbmutex.AcquireEnded, Outcome: dbmutex.OutcomeAcquired, Token: 1},
			"DEBUG", []string{"outcome", "token", "tries", "waited"},
		},
		{
			dbmutex.Event{Kind: dbmutex.AcquireEnded, Outcome: dbmutex.OutcomeAcquired, Token: 1, Previous: previous},
			"WARN", []string{"outcome", "previous_holder", "token", "tries", "waited"},
		},
		{
			dbmutex.Event{Kind: dbmutex.AcquireEnded, Outcome: dbmutex.OutcomeHeld, Err: errWork},
			"INFO", []string{"error", "outcome", "tries", "waited"},
		},
		{
			dbmutex.Event{Kind: dbmutex.AcquireEnded, Outcome: dbmutex.OutcomeSkipped, Err: errWork},
			"INFO", []string{"error", "outcome", "tries", "waited"},
		},
		{
			dbmutex.Event{Kind: dbmutex.AcquireEnded, Outcome: dbmutex.OutcomeCancelled, Err: errWork},
			"INFO", []string{"error", "outcome", "tries", "waited"},
		},
		{
			dbmutex.Event{Kind: dbmutex.AcquireEnded, Outcome: dbmutex.OutcomeFailed, Err: errWork},
			"ERROR", []string{"error", "outcome", "tries", "waited"},
		},
		{dbmutex.Event{Kind: dbmutex.LeaseRenewed, Token: 1}, "DEBUG", []string{"token"}},
		{dbmutex.Event{Kind: dbmutex.RenewalFailed, Token: 1, Err: errWork}, "WARN", []string{"error", "token"}},
		{dbmutex.Event{Kind: dbmutex.LeaseRanOut, Token: 1, Err: errWork}, "WARN", []string{"error", "token"}},
		{dbmutex.Event{Kind: dbmutex.LeaseLost, Token: 1, Err: errWork}, "ERROR", []string{"error", "token"}},
		{
			dbmutex.Event{Kind: dbmutex.LeaseEnded, Outcome: dbmutex.OutcomeReleased, Token: 1},
			"DEBUG", []string{"held", "outcome", "token"},
		},
		{
			dbmutex.Event{Kind: dbmutex.LeaseEnded, Outcome: dbmutex.OutcomeReleased, Token: 1, Err: errWork},
			"WARN", []string{"error", "held", "outcome", "token"},
		},
		{
			dbmutex.Event{Kind: dbmutex.LeaseEnded, Outcome: dbmutex.OutcomeHandedOn, Token: 1},
			"DEBUG", []string{"held", "outcome", "token"},
		},
		{
			dbmutex.Event{Kind: dbmutex.LeaseEnded, Outcome: dbmutex.OutcomeLost, Token: 1, Err: errWork},
			"ERROR", []string{"error", "held", "outcome", "token"},
		},
		{
			dbmutex.Event{Kind: dbmutex.LeaseEnded, Outcome: dbmutex.OutcomeUnknown, Token: 1, Err: errWork},
			"ERROR", []string{"error", "held", "outcome", "token"},
		},
		{dbmutex.Event{Kind: dbmutex.ForceReleased, Token: 1}, "WARN", []string{"token"}},
	} {
		var out bytes.Buffer
		log := dbmutex.LogTo(slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
		test.e.LockID, test.e.Holder = "job", "me"
		require.Nil(t, log.Observe(t.Context(), test.e))
		if test.level == "" {
			require.Empty(t, out.String())
			continue
		}
		var line map[string]any
		require.NoError(t, json.Unmarshal(out.Bytes(), &line))
		require.Equal(t, test.level, line["level"], "%v: %v", test.e.Kind, test.e.Outcome)
		require.NotEmpty(t, line["msg"])
		require.Equal(t, "job", line["mutex"])
		require.Equal(t, "me", line["holder"])
		for key, want := range map[string]any{
			"token": 1.0, "error": errWork.Error(), "outcome": test.e.Outcome.String(), "previous_holder": "before",
		} {
			if slices.Contains(test.keys, key) {
				require.Equal(t, want, line[key])
			}
		}
		for _, key := range []string{"time", "level", "msg", "mutex", "holder"} {
			delete(line, key)
		}
		require.Equal(t, test.keys, slices.Sorted(maps.Keys(line)), "%v: %v", test.e.Kind, test.e.Outcome)
	}
	var out bytes.Buffer
	quiet := dbmutex.LogTo(slog.New(slog.NewTextHandler(&out, nil)))
	quiet.Observe(t.Context(), dbmutex.Event{Kind: dbmutex.LeaseRenewed})
	require.Empty(t, out.String(), "Debug is not logged")
}

// A logger gets the times as durations, in the context of the event.
func TestLogToLogsDurationsInTheEventsContext(t *testing.T) {
	t.Parallel()
	type key struct{}
	handler := &handles{fn: func(ctx context.Context, r slog.Record) {
		require.Equal(t, "the event's", ctx.Value(key{}))
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "held" {
				require.Equal(t, time.Second, a.Value.Duration())
			}
			return true
		})
	}}
	log := dbmutex.LogTo(slog.New(handler))
	log.Observe(context.WithValue(t.Context(), key{}, "the event's"),
		dbmutex.Event{Kind: dbmutex.LeaseEnded, Outcome: dbmutex.OutcomeReleased, Held: time.Second})
	require.Equal(t, 1, handler.n)
}

// handles is a slog.Handler that calls a function.
type handles struct {
	fn func(ctx context.Context, r slog.Record)
	n  int
}

func (*handles) Enabled(context.Context, slog.Level) bool { return true }

func (h *handles) Handle(ctx context.Context, r slog.Record) error {
	h.n++
	h.fn(ctx, r)
	return nil
}

func (h *handles) WithAttrs([]slog.Attr) slog.Handler { return h }

func (h *handles) WithGroup(string) slog.Handler { return h }
