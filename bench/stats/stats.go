// Package stats has the few figures that the benchmark tells.
package stats

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Quantile is the smallest of the values that at least a share q of them do not exceed; zero if there are none.
func Quantile[T cmp.Ordered](values []T, q float64) (value T) {
	if len(values) == 0 {
		return value
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// Median is the middle value, or the mean of the two in the middle; NaN if there are none.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return math.NaN()
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// Ratios are those of blocks to those that were run in the same round.
func Ratios[T ~int64 | ~float64](blocks, base []T) (ratios []float64) {
	for i := range min(len(blocks), len(base)) {
		ratios = append(ratios, float64(blocks[i])/float64(base[i]))
	}
	return ratios
}

// Operation is one of many that goroutines run side by side, on the clock of their block.
type Operation struct{ Began, Ended time.Duration }

// Within says how many operations per second there were from a time until another, and how long those took that were under
// way then, however late they ended. One that was under way at either time counts for the part of its time between them, so
// that the rate is right even if the operations of all begin and end together.
func Within(operations []Operation, from, until time.Duration) (perSecond float64, times []time.Duration) {
	count := 0.0
	for _, o := range operations {
		if o.Ended <= from || o.Began >= until {
			continue
		}
		took := o.Ended - o.Began
		times = append(times, took)
		count += float64(min(o.Ended, until)-max(o.Began, from)) / float64(took)
	}
	return count / (until - from).Seconds(), times
}

// Span is one wait for a lock and the holding that came of it, on a clock that all who want the lock share.
type Span struct {
	Waiter int
	Asked  int64 // nanoseconds: when the acquire was called
	Got    int64 // when it had returned; 0 if it was given up at the end
	Done   int64 // when the release was called, or the acquire given up
}

// until is when its wait ended, or was given up.
func (s Span) until() int64 {
	if s.Got == 0 {
		return s.Done
	}
	return s.Got
}

// Sharing is what a row of holdings says.
type Sharing struct {
	Acquisitions int
	HandOffs     []time.Duration // from the call of a release until another waiter has the lock
	Overlaps     int             // holdings that began before the last had ended
	Least, Most  int             // acquisitions of the least and the most served
}

// Share sums up the holdings of a number of waiters.
func Share(spans []Span, waiters int) Sharing {
	spans = slices.DeleteFunc(slices.Clone(spans), func(s Span) bool { return s.Got == 0 })
	slices.SortFunc(spans, func(a, b Span) int { return cmp.Compare(a.Got, b.Got) })
	served := make([]int, waiters)
	s := Sharing{Acquisitions: len(spans)}
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

// Waiting is how one waiter fared beside others.
type Waiting struct {
	Times  []time.Duration // of its waits; one that has not ended counts with its length so far
	Cut    time.Duration   // that one; 0 if there is none
	Share  float64         // its part of all acquisitions
	Passed int             // how many of those who asked after it got the lock before it, in the worst of its waits
}

// Wait sums up what the spans of all say of one waiter.
func Wait(spans []Span, waiter int) (w Waiting) {
	var own, all int
	for _, span := range spans {
		if span.Got != 0 {
			all++
		}
		if span.Waiter != waiter {
			continue
		}
		waited := time.Duration(span.until() - span.Asked)
		w.Times = append(w.Times, waited)
		if span.Got != 0 {
			own++
		} else {
			w.Cut = waited
		}
		passed := 0
		for _, other := range spans {
			if other.Got != 0 && other.Asked > span.Asked && other.Got < span.until() {
				passed++
			}
		}
		w.Passed = max(w.Passed, passed)
	}
	w.Share = float64(own) / float64(max(1, all))
	return w
}
