//go:build linux

package torture

import (
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// network is one that breaks, with a way to the server for each worker.
type network struct {
	proxies []*proxy.Proxy
	healers sync.WaitGroup // what ends faults that last
}

func newNetwork(t *testing.T, d *testdb.Database) *network {
	n := &network{}
	for range workers {
		n.proxies = append(n.proxies, proxy.New(t, d))
	}
	return n
}

// breakIn makes the network break in a round. Answers have about so many messages.
func (n *network) breakIn(r *round, messages int) {
	one := func() *proxy.Proxy { return n.proxies[r.rand.IntN(len(n.proxies))] }
	heal := func(d time.Duration, how func()) {
		n.healers.Add(1)
		time.AfterFunc(d, func() { defer n.healers.Done(); how() })
	}
	if r.maybe(0.7) {
		chance, late := 0.03*r.rand.Float64(), 0.0
		if r.maybe(0.4) {
			late = 0.04 * r.rand.Float64()
		}
		for _, p := range n.proxies {
			dice := rand.New(rand.NewPCG(r.rand.Uint64(), 0))
			p.Choose(func(statement string) *proxy.Fault {
				roll := dice.Float64()
				if strings.EqualFold(statement, "commit") { // there are few, and much depends on them
					roll /= 5
				}
				switch {
				case roll < chance/4:
					r.total.add("fault: request lost", 1)
					if dice.IntN(3) == 0 { // so that it is too late when the client asks what became of it
						r.total.add("fault: request lost, and the network for a while", 1)
						away := time.Duration(dice.Int64N(int64(600 * time.Millisecond)))
						n.healers.Go(func() { p.Refuse(); time.Sleep(away); p.Admit() })
					}
					return &proxy.Fault{Unsent: true}
				case roll < chance:
					r.total.add("fault: answer lost", 1)
					return &proxy.Fault{After: dice.IntN(messages)}
				case roll < chance+late:
					r.total.add("fault: request late", 1)
					const least = 200 * time.Millisecond
					return &proxy.Fault{Late: least + time.Duration(dice.Int64N(int64(latest-least)))}
				}
				return nil
			})
		}
	}
	if r.maybe(0.4) {
		r.suffer("network reset", func(*testing.T) { one().Reset() })
	}
	if r.maybe(0.15) {
		r.sufferOnce("network refuses for long", func(*testing.T) {
			p := one()
			p.Refuse()
			time.Sleep(r.absence())
			p.Admit()
		})
	}
	if r.maybe(0.4) {
		r.suffer("network frozen", func(*testing.T) {
			p := one()
			p.Freeze()
			heal(100*time.Millisecond+r.upTo(700*time.Millisecond), p.Thaw)
		})
	}
	if r.maybe(0.3) {
		r.suffer("network slow", func(*testing.T) {
			p := one()
			p.Drag(r.upTo(8 * time.Millisecond))
			heal(r.upTo(500*time.Millisecond), func() { p.Drag(0) })
		})
	}
}

// calm mends the network, and lets the server have what is late.
func (n *network) calm() {
	for _, p := range n.proxies {
		p.Choose(nil)
	}
	n.healers.Wait()
	for _, p := range n.proxies {
		p.Deliver()
	}
}
