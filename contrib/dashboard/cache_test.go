package dashboard

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOldAnswersAreNotKept(t *testing.T) {
	t.Parallel()
	c := newCache(0, func(key int) (int, error) { return key, nil })
	for key := range 10 * manyKept {
		a := c.get(key)
		require.True(t, a.wait(t.Context()))
		require.Equal(t, key, a.value)
		require.LessOrEqual(t, len(c.asked), manyKept)
	}
}
