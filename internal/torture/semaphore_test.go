package torture

import (
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/assert"

	"github.com/gorm-dbmutex/dbmutex/internal/witness"
)

// inSlot puts an operation in a slot of a semaphore of 2; 0: it did not come to that.
func inSlot(n int) func(*operation) {
	s := semaphore{"s", 2}
	return func(o *operation) {
		if o.Mutex = s.ID; n > 0 {
			o.Mutex = s.slot(n)
		}
	}
}

func TestJudgePermits(t *testing.T) {
	s := semaphore{"s", 2}
	a, b := gets(0, 2, "a", 1, inSlot(1)), gets(5, 6, "b", 1, inSlot(2))
	for name, c := range map[string]struct {
		complaint string
		history   []*operation
	}{
		"two at once": {"", []*operation{a, b}},
		"a third after a release": {"", []*operation{a, b,
			at(10, 12, release, "a", ok, inSlot(1)), gets(11, 13, "c", 2, inSlot(1))}},
		"a third after a crash":    {"", []*operation{a, b, gets(101, 102, "c", 2, inSlot(1))}},
		"a third that was refused": {"", []*operation{a, b, at(10, 12, acquire, "c", held, sees("a"), inSlot(0))}},
		"three at once": {"3 leases at once, and there may be 2", []*operation{a, b,
			gets(7, 8, "c", 1, inSlot(3))}},
		"a third while one is renewed": {"3 leases at once, and there may be 2", []*operation{a, b,
			at(50, 51, renew, "a", ok, until(150), inSlot(1)), at(60, 61, renew, "b", ok, until(160), inSlot(2)),
			gets(120, 122, "c", 1, inSlot(3))}},
	} {
		t.Run(name, func(t *testing.T) {
			complaints := s.judgePermits(c.history)
			if c.complaint == "" {
				assert.Empty(t, complaints)
			} else if assert.Len(t, complaints, 1) {
				assert.Contains(t, complaints[0], c.complaint)
			}
		})
	}
}

func TestJudgeRefusals(t *testing.T) {
	s := semaphore{"s", 2}
	a, b := gets(0, 2, "a", 1, inSlot(1)), gets(5, 6, "b", 1, inSlot(2))
	of := func(n int) func(*operation) { return func(o *operation) { inSlot(0)(o); o.Slots = n } }
	ends := func(o *operation) { inSlot(1)(o); o.EndTo = 100 * ms }
	refused := at(20, 22, acquire, "c", held, sees("a"), of(2))
	for name, c := range map[string]struct {
		history []*operation
		wrong   bool
	}{
		"full":                            {[]*operation{a, b, refused}, false},
		"full for one who knows of fewer": {[]*operation{a, at(20, 22, acquire, "c", held, sees("a"), of(1))}, false},
		"one may be held":                 {[]*operation{a, at(5, 0, acquire, "b", unknown, cutOff, inSlot(0)), refused}, false},
		"one is released meanwhile":       {[]*operation{a, b, at(20, 21, release, "a", ok, ends), refused}, false},
		"one is not held long enough": {[]*operation{gets(0, 2, "a", 1, inSlot(1), minHold(50)), b,
			at(10, 12, release, "a", ok, ends), refused}, false},

		"one is free":      {[]*operation{a, refused}, true},
		"one was released": {[]*operation{a, b, at(10, 12, release, "a", ok, ends), refused}, true},
	} {
		complaints := s.judgeRefusals(c.history)
		assert.Equal(t, c.wrong, len(complaints) > 0, "%s: %v", name, complaints)
	}
}

func TestJudgeSlots(t *testing.T) {
	s := semaphore{"s", 2}
	a, b := gets(0, 2, "a", 5, inSlot(1)), gets(3, 4, "b", 1, inSlot(2))
	for name, c := range map[string]struct {
		first, second porcupine.CheckResult // of the slots
		history       []*operation
	}{
		"a lease each": {porcupine.Ok, porcupine.Ok, []*operation{a, b}},
		"one after the other": {porcupine.Ok, porcupine.Ok, []*operation{a, b,
			at(10, 12, release, "b", ok, inSlot(2)), gets(13, 14, "c", 2, inSlot(2))}},
		"refused by a lease of the second slot": {porcupine.Ok, porcupine.Ok, []*operation{a, b,
			at(10, 12, acquire, "c", held, sees("b"), inSlot(0))}},
		"refused by one without an answer": {porcupine.Ok, porcupine.Ok, []*operation{a,
			at(3, 0, acquire, "b", unknown, cutOff, inSlot(0)), at(10, 12, acquire, "c", held, sees("b"), inSlot(0))}},
		"a look at one without an answer": {porcupine.Ok, porcupine.Ok, []*operation{a,
			at(3, 0, acquire, "b", unknown, cutOff, inSlot(0)), at(10, 12, look, "", held, sees("b"), inSlot(2))}},

		"two in one slot": {porcupine.Ok, porcupine.Illegal, []*operation{a, b, gets(10, 12, "c", 2, inSlot(2))}},
		"a token that does not grow in its slot": {porcupine.Illegal, porcupine.Ok, []*operation{a, b,
			at(10, 12, release, "a", ok, inSlot(1)), gets(13, 14, "c", 2, inSlot(1))}},
		"refused by one that has gone": {porcupine.Ok, porcupine.Illegal, []*operation{a, b,
			at(5, 6, release, "b", ok, inSlot(2)), at(10, 12, acquire, "c", held, sees("b"), inSlot(0))}},
		"refused by one that never asked": {porcupine.Illegal, porcupine.Ok, []*operation{a, b,
			at(10, 12, acquire, "c", held, sees("z"), inSlot(0))}},
		"a lease of another slot": {porcupine.Ok, porcupine.Illegal, []*operation{a,
			at(10, 12, look, "", held, sees("a"), inSlot(2))}},
	} {
		t.Run(name, func(t *testing.T) {
			of := s.histories(c.history)
			for n, want := range []porcupine.CheckResult{c.first, c.second} {
				verdict, _ := newRecord(of[s.slot(n+1)], nil, undoWindow).judgeOrder(time.Minute)
				assert.Equal(t, want, verdict, "slot %d: %v", n+1, of[s.slot(n+1)])
			}
		})
	}
}

func TestTransactionsOfASemaphoreAreThoseOfAnySlot(t *testing.T) {
	s := semaphore{"s", 2}
	cut := at(0, 0, transaction, "a", unknown, cutOff, inSlot(0), func(o *operation) { o.Attempt = "x" })
	of := s.histories([]*operation{cut})
	assert.Empty(t, judgeCounter(counted{1, map[string]bool{"x": true}}, of[s.slot(2)], func(*operation) bool { return false }))
}

func TestVisitsAreToldOf(t *testing.T) {
	came := func(how witness.Outcome, began int64) *operation {
		o := at(0, 12, visit, "a", unknown)
		o.Visit = &witness.Visit{Began: began * ms, Ended: 10 * ms, Outcome: how}
		if began != 0 {
			o.Visit.Token = 1
		}
		return o
	}
	ended := func(outcome string) []*told {
		all := events("acquire began", "acquired", "lease began", "released")
		all[3].Outcome = outcome
		return all
	}
	found := events("acquire began", "held")
	found[1].Outcome = "done"
	for name, c := range map[string]struct {
		visit *operation
		told  []*told
		wrong bool
	}{
		"recorded":              {came(witness.Recorded, 1), ended("recorded"), false},
		"late":                  {came(witness.Late, 1), ended("recorded"), false},
		"done":                  {came(witness.Done, 0), found, false},
		"failed":                {came(witness.Failed, 1), ended("released"), false},
		"without an answer":     {came(witness.Unknown, 1), ended("recorded"), false},
		"recorded, not told so": {came(witness.Recorded, 1), ended("released"), true},
		"lost, not told so":     {came(witness.Lost, 1), ended("recorded"), true},
		"done, not told so":     {came(witness.Done, 0), events("acquire began", "held"), true},
	} {
		complaints := judgeTold([]*operation{c.visit}, c.told)
		assert.Equal(t, c.wrong, len(complaints) > 0, "%s: %v", name, complaints)
	}
}
