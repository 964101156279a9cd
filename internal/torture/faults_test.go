//go:build linux

package torture

import (
	"testing"
	"time"
)

// fault is a kind of misfortune.
type fault struct {
	name   string
	strike func(t *testing.T)
}

// suffer adds a kind of fault to a round.
func (r *round) suffer(name string, strike func(t *testing.T)) {
	r.faults = append(r.faults, fault{name, strike})
}

// misuse adds the faults that processes have on any database.
func (r *round) misuse() {
	if r.maybe(0.4) {
		r.suffer("worker killed", func(t *testing.T) {
			i := r.rand.IntN(len(r.workers))
			r.kill(r.workers[i])
			r.workers[i] = r.start(t, r.workers[i].slot)
		})
	}
	if r.maybe(0.5) {
		r.suffer("worker stopped for a while", func(*testing.T) {
			r.workers[r.rand.IntN(len(r.workers))].pause(100*time.Millisecond + r.upTo(1900*time.Millisecond))
		})
	}
}
