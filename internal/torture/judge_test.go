package torture

import (
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/assert"
)

// The times of these histories are milliseconds; leases last 100 unless a test says otherwise.
const ms = int64(time.Millisecond)

// at is an operation of the mutex from one moment to another.
func at(call, end int64, v verb, lease string, out outcome, more ...func(*operation)) *operation {
	o := &operation{Verb: v, Lease: lease, Outcome: out, Call: call * ms, Return: end * ms}
	for _, change := range more {
		change(o)
	}
	return o
}

// gets is an acquire that gets the mutex.
func gets(call, end int64, lease string, token int64, more ...func(*operation)) *operation {
	return at(call, end, acquire, lease, ok, append([]func(*operation){
		func(o *operation) { o.Token, o.Since, o.Expires = token, o.Call, o.Call+100*ms }}, more...)...)
}

// tries is one that does not.
func tries(call, end int64, lease, seen string) *operation {
	return at(call, end, acquire, lease, held, sees(seen))
}

func sees(lease string) func(*operation)  { return func(o *operation) { o.Seen = lease } }
func until(moment int64) func(*operation) { return func(o *operation) { o.Expires = moment * ms } }
func minHold(d int64) func(*operation)    { return func(o *operation) { o.MinHold = d * ms } }
func lasts(d int64) func(*operation)      { return func(o *operation) { o.TTL = d * ms } }
func waits(o *operation)                  { o.Wait = true }
func tells(o *operation)                  { o.Wait, o.Tells = true, true }
func unanswered(o *operation)             { o.Lost++ }
func cutOff(o *operation)                 { o.Return = 0 }

func TestJudgeOrder(t *testing.T) {
	crash := interval{200 * ms, 300 * ms}
	for name, c := range map[string]struct {
		verdict porcupine.CheckResult
		history []*operation
		crashes []interval
		pruned  bool
	}{
		"one after the other": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(10, 12, release, "a", ok), gets(13, 15, "b", 2), at(20, 22, release, "b", ok)}},
		"concurrent calls in the only order that works": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 50, "b", 2), gets(0, 50, "a", 1), at(51, 60, release, "b", ok), at(20, 60, release, "a", ok)}},
		"expiry and take-over": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), gets(90, 101, "b", 2), at(102, 103, release, "a", lost), at(110, 111, release, "b", ok)}},
		"a renewal that counts": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(50, 52, renew, "a", ok, until(150)), gets(150, 153, "b", 2)}},
		"a hand-on without an answer, to a lease that ran out at once": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(5, 150, acquire, "b", held, sees("a"), waits), at(20, 60, release, "a", ok, unanswered),
			at(30, 31, look, "", held, sees("b")), gets(62, 64, "c", 2)}},
		"a release past the deadline": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(500, 501, release, "a", late), gets(502, 503, "b", 2)}},
		"an acquire of unknown outcome that took effect": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(50, 60, release, "a", ok), at(70, 80, acquire, "b", unknown), tries(81, 82, "c", "b")}},
		"one that was cut off and took over": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(90, 0, acquire, "b", unknown, cutOff), at(120, 121, renew, "a", lost)}},
		"a release of unknown outcome that took effect": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(10, 12, release, "a", unknown), gets(20, 22, "b", 2)}},
		"a release of unknown outcome that took none": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(10, 12, release, "a", unknown), tries(20, 22, "b", "a"), gets(100, 102, "c", 2)}},
		"a release that went on in the background, and one that finds it done": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1, until(9000)), at(10, 12, release, "a", unknown), gets(7000, 7002, "b", 2),
			at(7010, 7012, release, "a", ok), at(7020, 7021, renew, "b", ok, until(7200))}},
		"a release in the background that a crash undid": {verdict: porcupine.Ok, crashes: []interval{{9000 * ms, 9500 * ms}},
			history: []*operation{
				gets(0, 2, "a", 1, until(60000)), at(10, 12, release, "a", unknown), at(8000, 8001, look, "", free),
				at(9600, 9601, look, "", held, sees("a"))}},
		"a request of an acquire that came after its release": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1, unanswered), at(10, 12, release, "a", ok), tries(2000, 2001, "b", "a"), gets(2100, 2101, "b", 2)}},
		"a lease that was lost, and that such a request brings back": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1, unanswered), gets(101, 103, "b", 2), at(110, 112, release, "b", ok), at(150, 151, guard, "a", ok)}},
		"a row that came after its release, though every answer came": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(10, 12, release, "a", ok), tries(2000, 2001, "b", "a"), gets(2100, 2101, "b", 2)}},
		"an operator's release": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(10, 12, force, "", ok), gets(20, 22, "b", 2), at(30, 31, promise, "a", ok, until(100)),
			at(40, 41, release, "a", lost)}},
		"an operator's release that came with a release before its MinHold": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1, minHold(50)), at(10, 20, force, "", ok), at(12, 14, release, "a", ok),
			at(21, 22, look, "", held, sees("a")), gets(50, 52, "b", 2)}},
		"an acquire that waited and tells of a holder of before": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(10, 12, release, "a", ok), at(13, 20, acquire, "b", held, sees("a"), waits)}},
		"a crash that undid a release": {verdict: porcupine.Ok, crashes: []interval{crash}, history: []*operation{
			gets(150, 152, "a", 1), at(170, 172, release, "a", ok), tries(310, 312, "b", "a"), gets(320, 322, "c", 2)}},
		"a MinHold that is over": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1, minHold(50)), at(10, 12, release, "a", ok), tries(20, 22, "b", "a"), gets(50, 52, "c", 2)}},
		"a release with an answer lost that came too late": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(10, 12, release, "a", either, unanswered), gets(13, 14, "b", 2)}},
		"one before the deadline of a lease that was forced": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(10, 12, force, "", ok), at(13, 15, release, "a", ok, unanswered), gets(16, 18, "b", 2),
			at(20, 22, release, "b", ok, unanswered), gets(23, 25, "c", 3)}},

		"called free after it ran out, and taken over": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(105, 106, holder, "", free), gets(110, 112, "b", 2), at(120, 121, renew, "b", ok, until(220))}},
		"called free after a release, and had by another": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(10, 12, release, "a", ok), at(13, 14, holder, "", free), gets(15, 17, "b", 2),
			at(20, 21, renew, "b", ok, until(120)), at(30, 31, holder, "", held, sees("b"))}},
		"called free after it ran out, and its row still there": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(105, 106, holder, "", free), at(110, 111, look, "", held, sees("a")),
			at(112, 113, guard, "a", ok), at(114, 115, pinned, "a", ok), at(120, 121, release, "a", late)}},
		"called free before a crash undid the release": {verdict: porcupine.Ok, crashes: []interval{crash}, history: []*operation{
			gets(150, 152, "a", 1), at(170, 172, release, "a", unknown), at(180, 181, holder, "", free),
			at(310, 312, holder, "", held, sees("a"))}},
		"a renewal that came before it was called free": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(90, 160, renew, "a", ok, until(150)), at(120, 155, holder, "", free)}},
		"a holder that asks who it is": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(10, 11, holder, "a", held, sees("a"))}},

		"held by itself, of which it did not hear before it ran out": {verdict: porcupine.Ok, history: []*operation{
			at(0, 110, acquire, "a", held, sees("a"), unanswered, lasts(100))}},

		"kept for one that never gets it, and free again": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(5, 30, acquire, "b", held, sees("a"), tells), at(10, 12, release, "a", ok),
			at(9000, 9001, look, "", held, sees("b")), gets(9002, 9003, "c", 2), at(9004, 9005, release, "c", ok)}},
		"kept by a release of unknown outcome": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(5, 0, acquire, "b", unknown, tells, cutOff), at(10, 12, release, "a", unknown),
			tries(13, 14, "c", "b")}},

		"a take-over by a waiter that passed the mutex on": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(90, 150, acquire, "b", held, sees("c"), tells), at(110, 120, release, "a", lost),
			at(125, 126, look, "", held, sees("b"))}},

		"kept by a waiter that took over, for one that never gets it": {verdict: porcupine.Ok, history: []*operation{
			gets(0, 2, "a", 1), at(5, 30, acquire, "b", held, sees("a"), tells), at(90, 150, acquire, "c", held, sees("b"), tells),
			at(110, 111, look, "", held, sees("b")), at(112, 113, release, "a", lost)}},
		"kept for one before the lease ran out": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(5, 30, acquire, "b", held, sees("a"), tells), at(50, 150, acquire, "c", held, sees("b"), tells),
			at(60, 61, look, "", held, sees("b"))}},

		"a take-over by a waiter that had gone by then": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(20, 90, acquire, "b", held, sees("a"), tells), at(110, 120, release, "a", lost)}},
		"kept before anything was released": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), tries(6, 8, "c", "b"), at(5, 30, acquire, "b", held, sees("a"), tells),
			at(10, 12, release, "a", ok)}},
		"kept for a waiter that had not asked yet": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(10, 12, release, "a", ok), tries(13, 14, "c", "b"), gets(15, 20, "b", 2, tells)}},
		"kept for one that tells nobody of itself": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(5, 30, acquire, "b", held, sees("a"), waits), at(10, 12, release, "a", ok),
			tries(13, 14, "c", "b")}},
		"kept for too long": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(5, 30, acquire, "b", held, sees("a"), tells), at(10, 12, release, "a", ok),
			tries(13031, 13032, "c", "b")}},
		"kept while another holds it": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(5, 60, acquire, "b", held, sees("a"), tells), at(10, 12, release, "a", ok),
			gets(15, 20, "c", 2), tries(30, 31, "d", "b")}},
		"two holders at once": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), gets(10, 12, "b", 2)}},
		"two holders at once, of whom one said it goes on": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(50, 51, promise, "a", ok, until(150)), gets(110, 120, "b", 2)}},
		"two holders at once, though an acquire is in doubt": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(5, 6, acquire, "x", unknown), gets(10, 12, "b", 2)}},
		"a promise that is not kept": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), gets(110, 120, "b", 2), at(125, 126, promise, "a", ok, until(200))}},
		"a token that does not grow": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 5), at(10, 12, release, "a", ok), gets(13, 15, "b", 4)}},
		"a release that was no loss after a take-over": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), gets(101, 103, "b", 2), at(110, 111, release, "a", ok)}},
		"a lease that only ran out, after a take-over": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), gets(101, 103, "b", 2), at(110, 111, release, "a", late)}},
		"a renewal that worked after a take-over": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), gets(101, 103, "b", 2), at(110, 111, renew, "a", ok, until(210))}},
		"a guard that worked after a take-over": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), gets(101, 103, "b", 2), at(110, 111, guard, "a", ok)}},
		"a take-over during a guard": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(90, 91, guard, "a", ok), gets(105, 106, "b", 2), at(120, 121, pinned, "a", ok)}},
		"a loss that a pruner caused": {verdict: porcupine.Ok, pruned: true, history: []*operation{
			gets(0, 2, "a", 1), at(200, 201, release, "a", lost), gets(210, 212, "b", 2)}},
		"a row that a pruner removed before its time": {verdict: porcupine.Illegal, pruned: true, history: []*operation{
			gets(0, 2, "a", 1), at(20, 21, look, "", free)}},
		"a lease that was pruned, and renewed after it": {verdict: porcupine.Illegal, pruned: true, history: []*operation{
			gets(0, 2, "a", 1), at(120, 121, look, "", free), at(130, 131, renew, "a", ok, until(230))}},
		"a loss that nobody caused": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(200, 201, release, "a", lost)}},
		"a loss before the deadline": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(5, 6, acquire, "x", unknown), at(20, 21, renew, "a", lost)}},
		"held by nobody": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(10, 12, release, "a", ok), tries(13, 15, "b", "a")}},
		"held by itself": {verdict: porcupine.Illegal, history: []*operation{
			at(0, 10, acquire, "a", held, sees("a"), unanswered, lasts(100))}},
		"held by one that never asked": {verdict: porcupine.Illegal, history: []*operation{tries(0, 1, "b", "z")}},
		"a row that nobody removed and that is gone": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(200, 201, look, "", free)}},
		"a crash that undid an acquire": {verdict: porcupine.Illegal, crashes: []interval{crash}, history: []*operation{
			gets(150, 152, "a", 1), gets(310, 312, "b", 2), at(320, 321, look, "", held, sees("a"))}},
		"a MinHold that is not kept": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1, minHold(50)), at(10, 12, release, "a", ok), gets(20, 22, "b", 2)}},
		"an operator's release that did nothing": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1, minHold(50)), at(12, 14, release, "a", ok), at(15, 20, force, "", ok),
			at(21, 22, look, "", held, sees("a"))}},
		"renewed after it was called free": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(105, 106, holder, "", free), at(110, 111, renew, "a", ok, until(210))}},
		"told that it goes on after it was called free": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(105, 106, holder, "", free), at(110, 111, promise, "a", ok, until(210))}},
		"live after it was called free": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(105, 106, holder, "", free), at(110, 111, holder, "", held, sees("a"))}},
		"in another's way after it was called free": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(105, 106, holder, "", free), tries(110, 111, "b", "a")}},
		"free while it is held": {verdict: porcupine.Illegal, history: []*operation{
			gets(0, 2, "a", 1), at(10, 11, holder, "", free)}},
	} {
		t.Run(name, func(t *testing.T) {
			record := newRecord(c.history, c.crashes, undoWindow)
			record.pruned = c.pruned
			verdict, why := record.judgeOrder(time.Minute)
			if assert.Equal(t, c.verdict, verdict) && why != nil {
				assert.Contains(t, why.excerpt(), "?", "the excerpt shows what is not explained")
			}
		})
	}
}

func TestJudgeTokens(t *testing.T) {
	assert.Empty(t, judgeTokens([]*operation{gets(0, 10, "a", 2), gets(5, 15, "b", 1), gets(16, 17, "c", 3)}),
		"concurrent acquires may come in any order")
	assert.Len(t, judgeTokens([]*operation{gets(0, 10, "a", 2), gets(11, 15, "b", 1)}), 1)
	assert.Len(t, judgeTokens([]*operation{gets(0, 10, "a", 2), gets(5, 15, "b", 2)}), 1)
}

func TestJudgeEnds(t *testing.T) {
	ends := func(from, to int64) func(*operation) {
		return func(o *operation) { o.EndFrom, o.EndTo = from*ms, to*ms }
	}
	commits := func(o *operation) { o.Attempt = "x" }
	for name, c := range map[string]struct {
		complaint string
		release   *operation
	}{
		"in time":                        {"", at(99, 120, release, "a", ok, ends(100, 101))},
		"late, and told":                 {"", at(90, 120, release, "a", late, ends(100, 101))},
		"late, and lost":                 {"", at(110, 120, release, "a", lost, ends(100, 101))},
		"late, and not told":             {"nobody was told", at(102, 120, release, "a", ok, ends(100, 101))},
		"in time, and called late":       {"called late", at(90, 99, release, "a", late, ends(100, 101))},
		"a commit that is late":          {"", at(102, 120, release, "a", ok, ends(100, 101), commits)},
		"a failed transaction, late":     {"", at(102, 120, release, "a", late, ends(100, 101), commits)},
		"a deadline that is not known":   {"", at(102, 120, release, "a", ok)},
		"one whose outcome is not known": {"", at(102, 120, release, "a", unknown, ends(100, 101))},
		"a lease that does not end": {"", at(102, 120, release, "a", ok, func(o *operation) {
			o.EndFrom, o.EndTo = never, never
		})},
		"one that may have been released": {"", at(102, 120, release, "a", either, ends(100, 101))},
	} {
		t.Run(name, func(t *testing.T) {
			complaints := judgeEnds([]*operation{c.release})
			if c.complaint == "" {
				assert.Empty(t, complaints)
			} else if assert.Len(t, complaints, 1) {
				assert.Contains(t, complaints[0], c.complaint)
			}
		})
	}
}

func TestJudgeCounter(t *testing.T) {
	said := func(attempt string, out outcome) *operation {
		return &operation{Verb: transaction, Attempt: attempt, Outcome: out}
	}
	history := []*operation{said("a", ok), said("b", ok), said("c", aborted), said("d", unknown)}
	safe := func(*operation) bool { return false }
	for name, c := range map[string]struct {
		complaint string
		left      counted
		undoable  func(*operation) bool
	}{
		"the unknown one did not commit": {"", counted{2, map[string]bool{"a": true, "b": true}}, safe},
		"the unknown one committed":      {"", counted{3, map[string]bool{"a": true, "b": true, "d": true}}, safe},
		"a crash lost one": {"", counted{1, map[string]bool{"a": true}}, func(o *operation) bool {
			return o.Attempt == "b"
		}},
		"an update was lost":             {"they overlapped", counted{1, map[string]bool{"a": true, "b": true}}, safe},
		"an acknowledged one is missing": {"is not there", counted{1, map[string]bool{"a": true}}, safe},
		"a failed one is there":          {"is there", counted{3, map[string]bool{"a": true, "b": true, "c": true}}, safe},
		"one that nobody began":          {"nobody began", counted{3, map[string]bool{"a": true, "b": true, "z": true}}, safe},
	} {
		t.Run(name, func(t *testing.T) {
			complaints := judgeCounter(c.left, history, c.undoable)
			if c.complaint == "" {
				assert.Empty(t, complaints)
			} else if assert.Len(t, complaints, 1) {
				assert.Contains(t, complaints[0], c.complaint)
			}
		})
	}
}

func TestReadHistory(t *testing.T) {
	var other []string
	history, err := readHistory(strings.NewReader(`{"client":1,"n":1,"verb":"acquire","mutex":"m","call":5}
{"client":2,"n":1,"verb":"force","mutex":"m","call":6}
{"client":1,"n":1,"verb":"acquire","mutex":"m","call":5,"return":7,"outcome":"ok"}
{"client":2,"n":2,"ver`), func(line []byte) { other = append(other, string(line)) })

	assert.NoError(t, err)
	assert.Equal(t, []string{`{"client":2,"n":2,"ver`}, other)
	assert.Len(t, history, 2)
	assert.Equal(t, ok, history[0].Outcome)
	assert.EqualValues(t, never, history[1].end())
}
