package torture

import (
	"time"

	"golang.org/x/sys/unix"
)

// now reads the clock of all operations, and wall how far the database's clock is ahead of it.
func now() int64 { return read(unix.CLOCK_MONOTONIC) }

func wall() time.Duration { return time.Duration(read(unix.CLOCK_REALTIME) - now()) }

func read(clock int32) int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		panic(err)
	}
	return t.Nano()
}
