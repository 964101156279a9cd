package locktable

import (
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFewFreedNumbersAreRemembered(t *testing.T) {
	f := &freedNumbers{}
	for number := range int64(3 * freedLimit) {
		f.put(fmt.Sprint(number), number+1)
	}
	require.Len(t, f.numbers, freedLimit)
	last := int64(3 * freedLimit)
	require.Equal(t, last, f.take(fmt.Sprint(last-1), math.MaxInt64))
	require.Zero(t, f.take(fmt.Sprint(last-1), math.MaxInt64), "somebody else may have it then")
}

func TestTheFreedNumbersOfAnIDAreTakenFromTheLast(t *testing.T) {
	f := &freedNumbers{}
	for _, number := range []int64{1, 4, 2, 4, 3} {
		f.put("api", number)
	}
	f.put("other", 1)
	var taken []int64
	for _, most := range []int64{2, 2, 2, 4, 4, 4} {
		taken = append(taken, f.take("api", most))
	}
	require.Equal(t, []int64{2, 1, 0, 3, 4, 0}, taken)
	require.Len(t, f.numbers, 1, "nothing is kept of an id that has none")
}
