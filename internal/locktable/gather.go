package locktable

import (
	"strings"
	"sync"
	"sync/atomic"
)

// gathering makes calls share a statement, for tests; nil if none are to.
var gathering atomic.Pointer[gather]

type gather struct {
	prefix string
	n      int

	mu   sync.Mutex
	come map[*crowd]int
}

// Gather is for tests: on each table the next n calls whose lock_id has the prefix run as one statement, once all have come.
func Gather(prefix string, n int) {
	gathering.Store(&gather{prefix: prefix, n: n, come: map[*crowd]int{}})
}

// of is the gather that a call is to wait for, or nil.
func (g *gather) of(c *crowd, lockID string) *gather {
	if g == nil || !strings.HasPrefix(lockID, g.prefix) {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.come[c] >= g.n {
		return nil
	}
	return g
}

// add counts a call, and says whether all have come.
func (g *gather) add(c *crowd) (all bool) {
	if g == nil {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.come[c]++
	return g.come[c] == g.n
}

// waits says whether some have come, but not all.
func (g *gather) waits(c *crowd) bool {
	if g == nil {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.come[c] > 0 && g.come[c] < g.n
}

// Waiting is for tests: how many acquires wait for others.
func (t Table) Waiting() int {
	t.crowd.mu.Lock()
	defer t.crowd.mu.Unlock()
	return len(t.crowd.kinds[acquireTogether].waiting)
}
