//go:build linux

package torture

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/gorm-dbmutex/dbmutex"
)

// reporter is an Observer that writes down what it is told.
type reporter struct{ out *json.Encoder }

func (r reporter) Observe(_ context.Context, e dbmutex.Event) context.Context {
	line := told{Event: e.Kind.String(), Mutex: e.LockID, Lease: e.Holder, Token: e.Token, Dropped: e.Dropped}
	if e.Outcome != 0 {
		line.Outcome = e.Outcome.String()
	}
	_ = r.out.Encode(line) // the parent may have gone
	return nil
}

// events are what is told of lease a, with token 1.
func events(ends ...string) (all []*told) {
	for _, end := range ends {
		e := &told{Event: end, Lease: "a", Token: 1}
		for name, event := range map[string]told{
			"acquired":  {Event: "acquire ended", Outcome: "acquired"},
			"held":      {Event: "acquire ended", Outcome: "held"},
			"failed":    {Event: "acquire ended", Outcome: "failed"},
			"released":  {Event: "lease ended", Outcome: "released"},
			"handed on": {Event: "lease ended", Outcome: "handed on"},
			"lost":      {Event: "lease ended", Outcome: "lost"},
			"unknown":   {Event: "lease ended", Outcome: "unknown"},
			"dropped":   {Event: "lease ended", Outcome: "released", Dropped: 1},
			"other":     {Event: "lease ended", Outcome: "released", Token: 2},
		} {
			if name == end {
				e.Event, e.Outcome, e.Dropped = event.Event, event.Outcome, event.Dropped
				e.Token += event.Token
			}
		}
		all = append(all, e)
	}
	return all
}

func TestJudgeTold(t *testing.T) {
	acquired := gets(0, 2, "a", 1)
	fails := at(0, 2, acquire, "a", unknown)
	ends := func(how outcome) *operation {
		return at(10, 12, release, "a", how, func(o *operation) { o.EndTo = 1 })
	}
	releaseIn := at(5, 6, release, "a", ok)
	renews := at(5, 6, renew, "a", ok)
	for name, c := range map[string]struct {
		history []*operation
		told    []*told
		wrong   bool
	}{
		"a cycle": {[]*operation{acquired, ends(ok)}, events("acquire began", "acquired", "lease began", "released"), false},
		"handed on, late": {
			[]*operation{acquired, ends(late)}, events("acquire began", "acquired", "lease began", "handed on"), false},
		"held":           {[]*operation{tries(0, 2, "a", "b")}, events("acquire began", "held"), false},
		"failed":         {[]*operation{fails}, events("acquire began", "failed"), false},
		"forgotten":      {[]*operation{acquired}, events("acquire began", "acquired", "lease began"), false},
		"nothing ran":    {[]*operation{fails}, events("acquire began", "acquired", "lease began", "released"), false},
		"a forced other": {nil, events("force released"), false},
		"ReleaseIn": {
			[]*operation{acquired, releaseIn, ends(either)}, events("acquire began", "acquired", "lease began", "lost"), false},
		"renewed": {
			[]*operation{acquired, renews, ends(ok)},
			events("acquire began", "acquired", "lease began", "lease renewed", "released"), false},
		"renewed, and not told": {
			[]*operation{acquired, renews, ends(ok)}, events("acquire began", "acquired", "lease began", "dropped"), false},

		"no acquire":      {nil, events("acquire began", "failed"), true},
		"not told at all": {[]*operation{acquired, ends(ok)}, nil, true},
		"no end":          {[]*operation{acquired, ends(ok)}, events("acquire began", "acquired", "lease began"), true},
		"two ends": {
			[]*operation{acquired, ends(ok)}, events("acquire began", "acquired", "lease began", "released", "released"), true},
		"two acquires": {
			[]*operation{acquired}, events("acquire began", "acquire began", "acquired", "lease began"), true},
		"no beginning":    {[]*operation{acquired, ends(ok)}, events("acquire began", "acquired", "released"), true},
		"an end too many": {[]*operation{acquired}, events("acquire began", "acquired", "lease began", "released"), true},
		"a lease without": {[]*operation{tries(0, 2, "a", "b")}, events("acquire began", "held", "lease began"), true},
		"another outcome": {[]*operation{acquired}, events("acquire began", "held"), true},
		"a loss that was none": {
			[]*operation{acquired, ends(ok)}, events("acquire began", "acquired", "lease began", "lost"), true},
		"a loss that is not told": {
			[]*operation{acquired, ends(lost)}, events("acquire began", "acquired", "lease began", "unknown"), true},
		"another token": {[]*operation{acquired, ends(ok)}, events("acquire began", "acquired", "lease began", "other"), true},
		"a renewal that is not told": {
			[]*operation{acquired, renews, ends(ok)}, events("acquire began", "acquired", "lease began", "released"), true},
		"in another order": {
			[]*operation{acquired, ends(ok)}, events("acquire began", "acquired", "released", "lease began"), true},
		"nothing ran, and no end": {[]*operation{fails}, events("acquire began", "acquired", "lease began"), true},
	} {
		assert.Equal(t, c.wrong, len(judgeTold(c.history, c.told)) > 0, "%s: %v", name, judgeTold(c.history, c.told))
	}
}
