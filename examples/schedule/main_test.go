package main

import (
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/examples/internal/program"
)

// TestSchedule checks that no tick was run twice: the leases are as far apart as MinHold, by the database's clock.
func TestSchedule(t *testing.T) {
	program.Each(t, func(t *testing.T, out string) {
		runs := regexp.MustCompile(`(?m)^(\d\d:\d\d:\d\d\.\d{3})  machine [12] runs it$`).FindAllStringSubmatch(out, -1)
		require.GreaterOrEqual(t, len(runs), 4, "%s", out)
		var last time.Time
		for i, run := range runs {
			at, err := time.Parse("15:04:05.000", run[1])
			require.NoError(t, err)
			if at.Before(last) { // midnight has passed
				at = at.AddDate(0, 0, 1)
			}
			if i > 0 {
				require.GreaterOrEqual(t, at.Sub(last), time.Second/2, "%s", out)
			}
			last = at
		}
	})
}
