package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
)

const (
	// releaseLimit is how long a release may take. The library tries for 5 seconds.
	releaseLimit = 8 * time.Second
	// groupPoll is how often the rest of a command's process group is looked for.
	groupPoll = 20 * time.Millisecond
)

// supervise passes signals on until the command has ended, and stops it before its lease ends, which stopped says.
func (r *runner) supervise(c *child, lease *dbmutex.Lease, signals <-chan os.Signal) (code int, stopped bool) {
	var kill <-chan time.Time // when the command, told to end, has to have ended
	next := time.NewTimer(0)  // looks at the lease
	defer next.Stop()
	ends := lease.Context().Done()
	look := func() {
		if stopped {
			return
		}
		left, over := r.left(lease)
		if !over {
			next.Reset(left)
			return
		}
		stopped = true
		r.log.Error(r.whyStopped(lease, left), "lock_id", r.id)
		if left == 0 { // TERM and CONT, or a CONT that waits, would let a command that was stopped go on
			c.kill()
			return
		}
		c.terminate()
		kill = time.After(left)
	}
	for {
		select {
		case <-next.C:
			look()
		case <-ends:
			ends = nil
			look()
		case sig := <-signals:
			if look(); kill != nil || !stopped {
				c.forward(sig)
			}
		case <-kill:
			kill = nil
			c.kill()
		case code = <-c.done:
			if stopped {
				awaitGroup(c, kill)
			}
			return code, stopped
		}
	}
}

// left is how long the command may go on as it does or, once the lease is over, how long it has to end. The lease counts as
// over if it was lost, or if renewals failed until no more than kill-after is left of it.
func (r *runner) left(lease *dbmutex.Lease) (left time.Duration, over bool) {
	deadline, _ := lease.ExpiresAt()
	left = time.Until(deadline)
	switch {
	case left <= r.killAfter:
		return max(left, 0), true
	case lease.Context().Err() != nil: // somebody has taken it away
		return r.killAfter, true
	}
	return left - r.killAfter, false
}

func (r *runner) whyStopped(lease *dbmutex.Lease, left time.Duration) string {
	why := "it could not be renewed"
	if lease.Context().Err() != nil {
		why = "it is over"
	}
	if left == 0 {
		return fmt.Sprintf("the lease of %q: %s; the command gets KILL", r.id, why)
	}
	return fmt.Sprintf("the lease of %q: %s; the command gets TERM, and KILL in %v", r.id, why, left.Round(time.Millisecond))
}

// awaitGroup waits until nothing is left of the command's process group, and kills what is left when the time has come.
func awaitGroup(c *child, kill <-chan time.Time) {
	if kill == nil {
		c.kill()
		return
	}
	poll := time.NewTicker(groupPoll)
	defer poll.Stop()
	for !c.gone() {
		select {
		case <-kill:
			c.kill()
			return
		case <-poll.C:
		}
	}
}

// finish releases, or records that the command has succeeded, and says with which code to end.
func (r *runner) finish(held *holding, code int, stopped bool) error {
	succeeded := code == 0 && !stopped
	err := r.end(held, succeeded)
	var timeout *dbmutex.TimeoutError
	lost := errors.As(err, &timeout) && timeout.Lost
	switch {
	case lost || stopped && err != nil && timeout == nil:
		return &exitError{r.lostCode, fmt.Errorf("the command may have overlapped with another: %s", oneLine(err.Error()))}
	case stopped:
		return &exitError{r.lostCode, fmt.Errorf("the command was ended with its lease; nobody else held %q meanwhile", r.id)}
	case err != nil && succeeded && r.oncePer > 0 && err != error(timeout): //nolint:errorlint // a timeout alone is recorded
		r.log.Warn("the command has succeeded, but that may not be recorded, so that it may run again: "+oneLine(err.Error()),
			"lock_id", r.id)
	case timeout != nil:
		r.log.Warn(oneLine(err.Error()), "lock_id", r.id)
	case err != nil:
		expires, _ := held.ExpiresAt()
		r.log.Warn(fmt.Sprintf("not released, so that the mutex stays taken until its TTL is over, for %v at the most: %s",
			max(0, time.Until(expires)).Round(time.Second), oneLine(err.Error())), "lock_id", r.id)
	}
	if code != 0 {
		return &exitError{code: code}
	}
	return nil
}

// giveBack releases what no command ran under.
func (r *runner) giveBack(held *holding) {
	if err := r.end(held, false); err != nil {
		r.log.Warn(oneLine(err.Error()), "lock_id", r.id)
	}
}

// end waits for the end of what is held, but not for ever.
func (r *runner) end(held *holding, succeeded bool) error {
	done := make(chan error, 1)
	go func() { done <- held.end(succeeded) }()
	select {
	case err := <-done:
		return err
	case <-time.After(releaseLimit):
		return fmt.Errorf("no answer within %v", releaseLimit)
	}
}
