package dbmutex

import (
	"context"
	"log/slog"
)

// LogTo makes an Observer that logs to l, with these levels:
//   - Debug: a mutex was acquired, a lease was renewed or released.
//   - Info: a mutex was held by somebody else, or skipped, or its context was done.
//   - Warn: a lease that had run out was taken over; a renewal failed; a lease ran out, or its release was forced;
//     a lease was released with an error, as when the work outlasted it and nobody else held the mutex meanwhile.
//   - Error: a lease was lost; a release or an acquire failed, by the database.
//
// The keys are mutex, slot, holder, token, outcome, waited, held, tries, previous_holder and error, each where there is
// something to say. Use slog.Logger.With for more. Without a logger LogTo returns nil: nobody is told.
func LogTo(l *slog.Logger) Observer {
	if l == nil {
		return nil
	}
	return logs{l}
}

type logs struct{ *slog.Logger }

// Observe logs what there is to say.
func (l logs) Observe(ctx context.Context, e Event) context.Context {
	level, text := e.line()
	if text == "" || !l.Enabled(ctx, level) {
		return nil
	}
	attrs := append(make([]slog.Attr, 0, 10), slog.String("mutex", e.LockID), slog.String("holder", e.Holder))
	if e.Slot != 0 {
		attrs = append(attrs, slog.Int("slot", e.Slot))
	}
	if e.Token != 0 {
		attrs = append(attrs, slog.Int64("token", e.Token))
	}
	if e.Outcome != 0 {
		attrs = append(attrs, slog.String("outcome", e.Outcome.String()))
	}
	switch e.Kind {
	case AcquireEnded:
		attrs = append(attrs, slog.Duration("waited", e.Waited), slog.Int("tries", e.Tries))
	case LeaseEnded:
		attrs = append(attrs, slog.Duration("held", e.Held))
	}
	if e.Previous != nil {
		attrs = append(attrs, slog.String("previous_holder", e.Previous.Holder))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.Any("error", e.Err))
	}
	l.LogAttrs(ctx, level, text, attrs...)
	return nil
}

// line is how an event is logged; "" if it is not.
func (e Event) line() (slog.Level, string) {
	switch e.Kind {
	case AcquireEnded:
		return e.lineOfAcquire()
	case LeaseRenewed:
		return slog.LevelDebug, "the lease was renewed"
	case RenewalFailed:
		return slog.LevelWarn, "a renewal of the lease failed"
	case LeaseRanOut:
		return slog.LevelWarn, "the lease ran out"
	case LeaseLost:
		return slog.LevelError, "the lease was lost"
	case LeaseEnded:
		switch e.Outcome {
		case OutcomeLost:
			return slog.LevelError, "the mutex was released, but its lease had been lost"
		case OutcomeRecorded:
			return slog.LevelDebug, "the success was recorded"
		case OutcomeUnknown:
			return slog.LevelError, "whether the mutex was released is unknown"
		}
		if e.Err != nil {
			return slog.LevelWarn, "the mutex was released, with an error"
		}
		return slog.LevelDebug, "the mutex was released"
	case ForceReleased:
		return slog.LevelWarn, "the release of the mutex was forced"
	}
	return 0, ""
}

func (e Event) lineOfAcquire() (slog.Level, string) {
	switch e.Outcome {
	case OutcomeAcquired:
		if e.Previous != nil {
			return slog.LevelWarn, "the mutex was taken over from a lease that had run out"
		}
		return slog.LevelDebug, "the mutex was acquired"
	case OutcomeHeld:
		return slog.LevelInfo, "the mutex is held"
	case OutcomeDone:
		return slog.LevelDebug, "it is done already"
	case OutcomeSkipped:
		return slog.LevelInfo, "skipped, as the mutex is held"
	case OutcomeCancelled:
		return slog.LevelInfo, "the context was done before the mutex was acquired"
	}
	return slog.LevelError, "the mutex could not be acquired"
}
