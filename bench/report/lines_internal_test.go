package report

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestNamesAreMovedApart(t *testing.T) {
	assert.Equal(t, []float64{1, 9}, spread([]float64{1, 9}, 5, 0, 10), "far enough apart")
	assert.Equal(t, []float64{2, 4, 6, 8}, spread([]float64{2, 2, 2, 8}, 2, 0, 8), "up, from the lowest")
	assert.Equal(t, []float64{2, 4, 6, 8}, spread([]float64{7, 7, 8, 8}, 2, 0, 8), "down, where there is no more room")
	assert.Equal(t, []float64{0, 5, 10}, spread([]float64{-3, 5, 12}, 3, 0, 10), "within the bounds")
	assert.Equal(t, []float64{4, 5, 9}, spread([]float64{4, 4, 9}, 1, 0, 10), "no further than that")
}
