package dbmutex_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
)

func TestEventsAndOutcomesHaveNames(t *testing.T) {
	kinds := map[dbmutex.EventKind]string{
		dbmutex.AcquireBegan: "acquire began", dbmutex.AcquireEnded: "acquire ended", dbmutex.LeaseBegan: "lease began",
		dbmutex.LeaseRenewed: "lease renewed", dbmutex.RenewalFailed: "renewal failed", dbmutex.LeaseRanOut: "lease ran out",
		dbmutex.LeaseLost: "lease lost", dbmutex.LeaseEnded: "lease ended", dbmutex.ForceReleased: "force released",
		0: "EventKind(0)", 10: "EventKind(10)", 255: "EventKind(255)",
	}
	for kind, name := range kinds {
		require.Equal(t, name, kind.String())
	}
	outcomes := map[dbmutex.Outcome]string{
		dbmutex.OutcomeAcquired: "acquired", dbmutex.OutcomeHeld: "held", dbmutex.OutcomeSkipped: "skipped",
		dbmutex.OutcomeCancelled: "cancelled", dbmutex.OutcomeFailed: "failed", dbmutex.OutcomeReleased: "released",
		dbmutex.OutcomeHandedOn: "handed on", dbmutex.OutcomeLost: "lost", dbmutex.OutcomeUnknown: "unknown",
		dbmutex.OutcomeDone: "done", dbmutex.OutcomeRecorded: "recorded",
		0: "Outcome(0)", 12: "Outcome(12)",
	}
	for outcome, name := range outcomes {
		require.Equal(t, name, outcome.String())
	}
}

// observe makes an Observer of a function.
type observe func(ctx context.Context, e dbmutex.Event) context.Context

func (o observe) Observe(ctx context.Context, e dbmutex.Event) context.Context { return o(ctx, e) }

func TestObserversAreToldInTheirOrder(t *testing.T) {
	require.Nil(t, dbmutex.Observers())
	require.Nil(t, dbmutex.Observers(nil, dbmutex.Observers(nil)))

	type key struct{}
	adds := func(letter string) dbmutex.Observer {
		return observe(func(ctx context.Context, _ dbmutex.Event) context.Context {
			before, _ := ctx.Value(key{}).(string)
			return context.WithValue(ctx, key{}, before+letter)
		})
	}
	returnsNothing := observe(func(context.Context, dbmutex.Event) context.Context { return nil })
	all := dbmutex.Observers(adds("a"), nil, dbmutex.Observers(adds("b"), returnsNothing), adds("c"))
	require.Equal(t, "abc", all.Observe(t.Context(), dbmutex.Event{}).Value(key{}))
}
