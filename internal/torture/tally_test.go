//go:build linux

package torture

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/gorm-dbmutex/dbmutex/internal/witness"
)

// tally counts what happened.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func newTally() *tally { return &tally{counts: map[string]int{}} }

func (c *tally) add(what string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[what] += n
}

func (c *tally) get(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[what]
}

// ticks counts the visits of one tick.
func (c *tally) ticks(visits []*witness.Visit) {
	c.add("ticks", 1)
	for _, v := range visits {
		what := "visit "
		if v.Effect {
			what = "visit in a transaction "
		}
		c.add(what+cmp.Or(string(v.Outcome), "without an answer"), 1)
		if v.Began != 0 {
			c.add("visits that did the work", 1)
		}
	}
}

// record counts the history of one mutex, or of a slot.
func (c *tally) record(id string, r *record, left counted) {
	var leases []*operation
	released := map[string]bool{}
	for _, o := range r.history {
		if o.Mutex != id || o.Outcome == elsewhere {
			continue
		}
		c.add("operations", 1)
		if o.Verb == acquire && o.Outcome == ok {
			leases = append(leases, o)
		}
		if o.Verb == release && (o.Outcome == ok || o.Outcome == late || o.Outcome == either) {
			released[o.Lease] = true
		}
		c.add(name(o)+" "+ending(o), 1)
		if o.Outcome == lost {
			c.add("losses reported", 1)
		}
		if o.Verb == transaction {
			c.transaction(o, left)
		} else if o.Lost > 0 {
			c.add("answers lost", 1)
			c.add("answers lost: "+name(o)+" "+settled(o), 1)
		}
	}
	slices.SortFunc(leases, func(a, b *operation) int { return cmp.Compare(a.Token, b.Token) })
	for i, o := range leases[1:] {
		if previous := leases[i].Lease; !released[previous] && !r.forcible(r.leases[previous], o.Return) {
			c.add("take-overs", 1)
		}
	}
	c.add("transactions that are there", len(left.runs))
}

func (c *tally) transaction(o *operation, left counted) {
	switch {
	case o.Outcome == ok:
		c.add("transactions committed", 1)
	case o.Outcome == aborted:
		c.add("transactions not done or rolled back", 1)
	case left.runs[o.Attempt]:
		c.add("transactions of unknown outcome, there", 1)
	default:
		c.add("transactions of unknown outcome, not there", 1)
	}
}

// name is an operation's verb; the release that commits a Transaction has one of its own.
func name(o *operation) string {
	if o.Verb == release && o.Attempt != "" {
		return "commit"
	}
	return string(o.Verb)
}

func ending(o *operation) string {
	switch {
	case o.Outcome != unknown:
		return string(o.Outcome)
	case o.Return == 0:
		return "cut off"
	case strings.Contains(o.Error, "context"):
		return "ended by its context"
	case o.Error == "":
		return "without result"
	}
	return "failed"
}

// settled says what became of an operation of which a statement got no answer.
func settled(o *operation) string {
	if o.Outcome == unknown || o.Outcome == aborted {
		return ending(o)
	}
	return "settled"
}

// headlines come first, in this order.
var headlines = []string{
	"rounds", "operations", "acquire ok", "acquire held", "take-overs", "losses reported",
	"transactions committed", "transactions not done or rolled back",
	"transactions of unknown outcome, there", "transactions of unknown outcome, not there",
	"answers lost", "histories Ok", "histories Illegal", "histories Unknown",
}

func (c *tally) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var rest []string
	for what := range c.counts {
		if !slices.Contains(headlines, what) {
			rest = append(rest, what)
		}
	}
	slices.Sort(rest)
	var text strings.Builder
	for _, what := range append(slices.Clone(headlines), rest...) {
		fmt.Fprintf(&text, "%9d %s\n", c.counts[what], what)
	}
	return text.String()
}
