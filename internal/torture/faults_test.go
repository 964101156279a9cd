//go:build linux

package torture

import (
	"slices"
	"testing"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// fault is a kind of misfortune.
type fault struct {
	name   string
	once   bool // in a round, as it takes long
	strike func(t *testing.T)
}

// suffer adds a kind of fault to a round.
func (r *round) suffer(name string, strike func(t *testing.T)) {
	r.faults = append(r.faults, fault{name, false, strike})
}

// sufferOnce adds a fault that strikes once.
func (r *round) sufferOnce(name string, strike func(t *testing.T)) {
	r.faults = append(r.faults, fault{name, true, strike})
}

// strike lets one of the faults happen.
func (r *round) strike(t *testing.T) {
	if len(r.faults) == 0 {
		return
	}
	i := r.rand.IntN(len(r.faults))
	f := r.faults[i]
	if f.once {
		r.faults = slices.Delete(r.faults, i, i+1)
	}
	r.total.add("fault: "+f.name, 1)
	f.strike(t)
}

// absence is a while that is longer than a release is tried in the foreground, which is 5 seconds.
func (r *round) absence() time.Duration { return 6*time.Second + r.upTo(3*time.Second) }

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

// loseServer makes a server crash in some rounds, and stop for long in others.
func (r *round) loseServer(server *testdb.Server, crashes, stops float64) {
	if r.maybe(crashes) {
		r.sufferOnce("server crashed", func(t *testing.T) {
			from := now()
			server.Stop(t, "immediate")
			server.Start(t)
			r.crashes = append(r.crashes, interval{from, now()})
		})
	}
	if r.maybe(stops) {
		r.sufferOnce("server away for long", func(t *testing.T) {
			server.Stop(t, "fast")
			time.Sleep(r.absence())
			server.Start(t)
		})
	}
}
