package otelmutex

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/gorm-dbmutex/dbmutex"
)

// spans is the observer that traces.
type spans struct{ tracer trace.Tracer }

// spanKey is of the innermost span of this package's in a context. A work's own spans may be within it.
type spanKey struct{}

// Observe begins and ends spans. The context that it returns has the one that began. A LeaseBegan has the caller's context,
// without what its AcquireBegan returned: so the two spans are siblings.
func (s spans) Observe(ctx context.Context, e dbmutex.Event) context.Context {
	switch e.Kind {
	case dbmutex.AcquireBegan:
		return s.begin(ctx, "dbmutex acquire", e)
	case dbmutex.LeaseBegan:
		return s.begin(ctx, "dbmutex hold", e, ofLease(e)...)
	}
	span, ok := ctx.Value(spanKey{}).(trace.Span)
	if !ok {
		return nil
	}
	switch e.Kind {
	case dbmutex.AcquireEnded:
		span.SetAttributes(attribute.Int("dbmutex.acquire.tries", e.Tries))
		if e.Outcome == dbmutex.OutcomeAcquired {
			span.SetAttributes(append(ofLease(e), attribute.Bool("dbmutex.handed_on", e.HandedOn))...)
		}
		if e.Previous != nil {
			span.SetAttributes(attribute.String("dbmutex.previous.holder", e.Previous.Holder))
		}
		end(span, e)
	case dbmutex.LeaseRenewed:
		span.AddEvent("renewed")
	case dbmutex.RenewalFailed:
		addFailure(span, "renewal failed", e.Err)
	case dbmutex.LeaseRanOut:
		addFailure(span, "ran out", e.Err)
	case dbmutex.LeaseLost:
		addFailure(span, "lost", e.Err)
	case dbmutex.LeaseEnded:
		end(span, e)
	}
	return nil
}

// ofLease are the attributes of a span that has a lease.
func ofLease(e dbmutex.Event) []attribute.KeyValue {
	attributes := []attribute.KeyValue{attribute.Int64("dbmutex.token", e.Token)}
	if e.Slot > 0 {
		attributes = append(attributes, attribute.Int("dbmutex.slot", e.Slot))
	}
	return attributes
}

func (s spans) begin(ctx context.Context, name string, e dbmutex.Event, more ...attribute.KeyValue) context.Context {
	if e.Once {
		more = append(more, attribute.Bool("dbmutex.once", true))
	}
	ctx, span := s.tracer.Start(ctx, name, trace.WithAttributes(
		attribute.String("dbmutex.mutex.name", e.LockID),
		attribute.String("dbmutex.holder", e.Holder),
	), trace.WithAttributes(more...))
	return context.WithValue(ctx, spanKey{}, span)
}

// addFailure adds a span event, with what the error says.
func addFailure(span trace.Span, name string, err error) {
	span.AddEvent(name, trace.WithAttributes(attribute.String("exception.message", text(err))))
}

// end ends the span with the event's outcome.
func end(span trace.Span, e dbmutex.Event) {
	span.SetAttributes(attribute.String("dbmutex.outcome", e.Outcome.String()))
	switch e.Outcome {
	case dbmutex.OutcomeFailed, dbmutex.OutcomeLost, dbmutex.OutcomeUnknown:
		span.SetStatus(codes.Error, text(e.Err))
	}
	span.End()
}

// text is "" for no error: a panic of a GORM callback's may end a release without one.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
