// Package stats has the few figures that the benchmark tells.
package stats

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Quantile is the smallest of the values that at least a share q of them do not exceed; zero where there are none.
func Quantile[T cmp.Ordered](values []T, q float64) (value T) {
	if len(values) == 0 {
		return value
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// Median is the middle value, or the mean of the two in the middle; NaN where there are none.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return math.NaN()
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// Ratios are those of blocks to those that were run in the same round.
func Ratios(blocks, base []time.Duration) (ratios []float64) {
	for i := range min(len(blocks), len(base)) {
		ratios = append(ratios, float64(blocks[i])/float64(base[i]))
	}
	return ratios
}

// Span is one holding of a lock, on a clock that all holders share.
type Span struct {
	Waiter    int
	Got, Done int64 // nanoseconds: when the acquire had returned, and when the release was called
}

// Sharing is what a row of holdings says.
type Sharing struct {
	HandOffs    []time.Duration // from the call of a release until another waiter has the lock
	Overlaps    int             // holdings that began before the last had ended
	Least, Most int             // acquisitions of the least and the most served
}

// Share sums up the holdings of a number of waiters.
func Share(spans []Span, waiters int) Sharing {
	spans = slices.SortedFunc(slices.Values(spans), func(a, b Span) int { return cmp.Compare(a.Got, b.Got) })
	served := make([]int, waiters)
	var s Sharing
	var last Span // the one that ended last
	for i, span := range spans {
		served[span.Waiter]++
		switch {
		case i == 0:
		case span.Got < last.Done:
			s.Overlaps++
		case span.Waiter != last.Waiter:
			s.HandOffs = append(s.HandOffs, time.Duration(span.Got-last.Done))
		}
		if span.Done > last.Done {
			last = span
		}
	}
	s.Least, s.Most = slices.Min(served), slices.Max(served)
	return s
}
