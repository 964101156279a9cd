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

func TestShare(t *testing.T) {
	s := stats.Share([]stats.Span{
		{Waiter: 1, Got: 30, Done: 40},
		{Waiter: 0, Got: 10, Done: 20},
		{Waiter: 1, Got: 41, Done: 50}, // takes it back: no hand-off
		{Waiter: 0, Got: 45, Done: 90}, // overlaps
		{Waiter: 1, Got: 60, Done: 70}, // overlaps, too, and ends sooner
		{Waiter: 1, Got: 80, Done: 99},
	}, 3)
	assert.Equal(t, []time.Duration{10}, s.HandOffs)
	assert.Equal(t, 3, s.Overlaps)
	assert.Equal(t, 0, s.Least, "the third got none")
	assert.Equal(t, 4, s.Most)
}
