package stats_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/gorm-dbmutex/dbmutex/bench/stats"
)

func TestQuantile(t *testing.T) {
	values := []int{4, 1, 3, 2}
	assert.Equal(t, 2, stats.Quantile(values, 0.5))
	assert.Equal(t, 3, stats.Quantile(values, 0.75))
	assert.Equal(t, 4, stats.Quantile(values, 0.99))
	assert.Equal(t, 1, stats.Quantile(values, 0))
	assert.Zero(t, stats.Quantile([]int{}, 0.5))
	assert.Equal(t, []int{4, 1, 3, 2}, values, "the values keep their order")
}

func TestMedian(t *testing.T) {
	assert.Equal(t, 2.0, stats.Median([]float64{3, 1, 2}))
	assert.Equal(t, 2.5, stats.Median([]float64{4, 1, 3, 2}))
	assert.True(t, math.IsNaN(stats.Median(nil)))
}

func TestRatiosAreOfBlocksOfOneRound(t *testing.T) {
	base := []time.Duration{10, 100, 1000} // noise that hits both alike
	assert.Equal(t, []float64{0.5, 0.5, 2}, stats.Ratios([]time.Duration{5, 50, 2000}, base))
	assert.Empty(t, stats.Ratios(nil, base))
}

func TestRatiosOfNumbers(t *testing.T) {
	assert.Equal(t, []float64{2, 0.25}, stats.Ratios([]float64{4, 1}, []float64{2, 4}))
}

func TestTheRateIsOfWhatWasUnderWay(t *testing.T) {
	const ms = time.Millisecond
	rate, times := stats.Within([]stats.Operation{
		{Began: 0, Ended: 100 * ms},         // before it
		{Began: 90 * ms, Ended: 130 * ms},   // three quarters of it are within
		{Began: 200 * ms, Ended: 230 * ms},  // all of it
		{Began: 500 * ms, Ended: 600 * ms},  // all of it
		{Began: 590 * ms, Ended: 4590 * ms}, // starved: next to nothing of it
		{Began: 0, Ended: time.Second},      // half of it
		{Began: 600 * ms, Ended: 610 * ms},  // after it
	}, 100*ms, 600*ms)
	assert.InDelta(t, (0.75+1+1+0.0025+0.5)/0.5, rate, 1e-9)
	assert.Equal(t, []time.Duration{40 * ms, 30 * ms, 100 * ms, 4000 * ms, 1000 * ms}, times)

	rate, times = stats.Within(nil, 0, time.Second)
	assert.Zero(t, rate)
	assert.Empty(t, times)
}

func TestTheRateOfThoseWhoStayInStep(t *testing.T) {
	var operations []stats.Operation
	for i := range 10 { // of each of two goroutines
		began := time.Duration(i) * 100 * time.Millisecond
		operations = append(operations, stats.Operation{Began: began, Ended: began + 100*time.Millisecond})
		operations = append(operations, stats.Operation{Began: began, Ended: began + 100*time.Millisecond})
	}
	for _, from := range []time.Duration{0, 30 * time.Millisecond, 99 * time.Millisecond} {
		rate, _ := stats.Within(operations, from, from+250*time.Millisecond)
		assert.InDelta(t, 20, rate, 1e-9, "from %v", from)
	}
}

func TestShare(t *testing.T) {
	s := stats.Share([]stats.Span{
		{Waiter: 1, Got: 30, Done: 40},
		{Waiter: 0, Got: 10, Done: 20},
		{Waiter: 1, Got: 41, Done: 50}, // takes it back: no hand-off
		{Waiter: 0, Got: 45, Done: 90}, // overlaps
		{Waiter: 1, Got: 60, Done: 70}, // overlaps, too, and ends sooner
		{Waiter: 1, Got: 80, Done: 99},
		{Waiter: 2, Asked: 15, Done: 99}, // gave up
	}, 3)
	assert.Equal(t, 6, s.Acquisitions)
	assert.Equal(t, []time.Duration{10}, s.HandOffs)
	assert.Equal(t, 3, s.Overlaps)
	assert.Equal(t, 0, s.Least, "the third got none")
	assert.Equal(t, 4, s.Most)
}

func TestWait(t *testing.T) {
	w := stats.Wait([]stats.Span{
		{Waiter: 1, Asked: 5, Got: 20, Done: 25}, // asked first
		{Waiter: 0, Asked: 10, Got: 50, Done: 55},
		{Waiter: 1, Asked: 25, Got: 30, Done: 35}, // passes the first wait
		{Waiter: 2, Asked: 11, Got: 40, Done: 45}, // so does this
		{Waiter: 1, Asked: 35, Got: 60, Done: 65}, // comes after it
		{Waiter: 0, Asked: 75, Got: 80, Done: 85},
		{Waiter: 2, Asked: 76, Got: 77, Done: 78}, // passes the second
	}, 0)
	assert.Equal(t, []time.Duration{40, 5}, w.Times)
	assert.Zero(t, w.Cut)
	assert.Equal(t, 2.0/7, w.Share)
	assert.Equal(t, 2, w.Passed, "the worst wait's")
}

func TestWaitThatHasNotEndedCountsWithItsLengthSoFar(t *testing.T) {
	w := stats.Wait([]stats.Span{
		{Waiter: 0, Asked: 10, Got: 15, Done: 20},
		{Waiter: 0, Asked: 40, Done: 140},
		{Waiter: 1, Asked: 20, Got: 25, Done: 30}, // asked first
		{Waiter: 1, Asked: 50, Got: 60, Done: 70},
		{Waiter: 1, Asked: 70, Got: 139, Done: 140},
		{Waiter: 1, Asked: 140, Done: 141}, // gave up, too
	}, 0)
	assert.Equal(t, []time.Duration{5, 100}, w.Times)
	assert.Equal(t, time.Duration(100), w.Cut)
	assert.Equal(t, 0.25, w.Share)
	assert.Equal(t, 2, w.Passed)
}

func TestWaitOfNobody(t *testing.T) {
	assert.Equal(t, stats.Waiting{}, stats.Wait(nil, 0))
}
