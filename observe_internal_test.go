package dbmutex

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// It was handed on by a statement without an answer, after its deadline: the row may have been the next one's before.
func TestALeaseThatWasHandedOnAndPerhapsLostIsToldAsLost(t *testing.T) {
	lease := &Lease{state: released, handedOn: true}
	require.Equal(t, OutcomeHandedOn, lease.howEnded())
	lease.outcome = &TimeoutError{Late: 1}
	require.Equal(t, OutcomeHandedOn, lease.howEnded())
	lease.outcome = &TimeoutError{Late: 1, Lost: true}
	require.Equal(t, OutcomeLost, lease.howEnded())
}
