package torture

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	// slack is what a lease may seem to end too early: the operations' clock and the database's are two readings of one
	// machine's time, of which SQLite's counts whole milliseconds.
	slack = int64(2 * time.Millisecond)

	// undoWindow is for how long before a crash of the server a commit that did not wait for the disk may have been lost.
	undoWindow = int64(5 * time.Second)

	// latest is how late a request may reach the server.
	latest = 3 * time.Second

	// keepWindow is for how long after its end an acquire that told other processes of itself may seem to hold the mutex:
	// they believe it for 5 seconds, may say so late, and then keep the mutex for 5 seconds.
	keepWindow = int64(10*time.Second + latest)
)

// interval is a span of time, both ends in it.
type interval struct{ from, to int64 }

// record is what was seen of one mutex.
type record struct {
	history []*operation
	crashes []interval // of the server
	leases  map[string]*lease
	numbers []*lease         // lease number n is at n
	forced  []interval       // when a ForceRelease may have had its effect
	anyTime int64            // from when on one may at any time, as its answer was lost; never: no answer was
	pruned  bool             // rows that have run out may be removed at any time
	doubts  map[string]int64 // leases that may take effect at any time, from when on; see doubt
	first   []passer         // the two doubts that begin first
	passers []passer         // acquires that may have had the mutex and have passed it on, to wait again
}

// lease is what is known of a lease without regard to the order of things.
type lease struct {
	number     int
	acquire    *operation
	releases   []interval
	releasable int64 // from when on a release without an answer may have had its effect
	back       int64 // from when on it may be back, as a crash may have undone its release
}

// passer is a lease that may have taken effect, and have gone again, between two moments.
type passer struct {
	lease    string
	from, to int64
}

// doubt says that an acquire may take effect at any time from a moment on, as its answer, or that of one of its statements,
// was lost. A statement that nobody waits for any more may still run on the server, or reach it later; and one that is tried
// again may have had an effect that ran out before it had its second.
func (r *record) doubt(lease string, from int64) {
	if known, is := r.doubts[lease]; !is || from < known {
		r.doubts[lease] = from
	}
}

// newRecord is the record of one mutex. A crash may have undone what was released undone before it, or later.
func newRecord(history []*operation, crashes []interval, undone int64) *record {
	r := &record{history: history, crashes: crashes, leases: map[string]*lease{}, numbers: []*lease{nil}, anyTime: never,
		doubts: map[string]int64{}}
	for _, o := range history {
		switch o.Verb {
		case acquire:
			l := &lease{number: len(r.numbers), acquire: o, releasable: never, back: never}
			r.leases[o.Lease], r.numbers = l, append(r.numbers, l)
			end := o.end()
			if o.Outcome == unknown || o.Lost > 0 {
				end = never
				r.doubt(o.Lease, o.Call)
			}
			if o.Tells {
				r.passers = append(r.passers, passer{o.Lease, o.Call, end})
			}
		case force:
			if o.Outcome == ok && o.Lost == 0 {
				r.forced = append(r.forced, interval{o.Call, o.Return})
			} else {
				r.forced = append(r.forced, interval{o.Call, never})
				r.anyTime = min(r.anyTime, o.Call)
			}
		}
	}
	for _, o := range history {
		if o.Verb == release && (o.Outcome == unknown || o.Lost > 0) {
			r.handedOn(o)
		}
		if l := r.leases[o.Lease]; o.Verb == release && l != nil {
			end := o.end()
			if o.Outcome == unknown { // it goes on in the background
				end = never
				l.releasable = min(l.releasable, o.Call)
			}
			l.releases = append(l.releases, interval{o.Call, end})
			for _, crash := range crashes {
				if o.Call <= crash.to && end >= crash.from-undone {
					l.back = min(l.back, crash.from)
				}
			}
		}
	}
	for lease, from := range r.doubts {
		r.first = append(r.first, passer{lease, from, never})
	}
	slices.SortFunc(r.first, func(a, b passer) int { return cmp.Compare(a.from, b.from) })
	r.first = r.first[:min(2, len(r.first))]
	return r
}

// handedOn casts doubt on the acquires that wait during a release whose answer was lost: one of them may have been handed
// the mutex, for a lease that ran out before anybody knew of it.
func (r *record) handedOn(o *operation) {
	for name, l := range r.leases {
		if l.acquire.Wait && l.acquire.Call <= o.end() && l.acquire.end() >= o.Call {
			r.doubt(name, o.Call)
		}
	}
}

// forcible says whether an operator may have released a lease before a moment.
func (r *record) forcible(l *lease, moment int64) bool {
	return slices.ContainsFunc(r.forced, func(f interval) bool { return f.from <= moment && f.to >= l.acquire.Call })
}

// constraints are the operations that have a say, as the model wants them. Whatever has an unknown outcome is not among
// them: it widens what the others may have seen.
func (r *record) constraints() []porcupine.Operation {
	var ops []porcupine.Operation
	for _, o := range r.history {
		l := r.leases[o.Lease]
		switch {
		case o.Outcome == unknown, o.Outcome == aborted, o.Outcome == elsewhere, o.Verb == transaction,
			o.Outcome == held && (o.Seen == "" || o.Wait),
			o.Verb == force && o.Lost > 0,
			o.Verb == promise && (o.Expires <= o.Return || r.forcible(l, o.Return)):
			continue
		}
		ops = append(ops, porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Return: o.Return})
	}
	return ops
}

// state is a mutex between two operations.
type state struct {
	phase phase
	lease int   // the number of the last one
	until int64 // before which it cannot run out, while there is a row
	over  bool  // the mutex has been called free since
	token int64 // the last one
	now   int64 // before which it cannot be
}

type phase int

const (
	freed   phase = iota
	taken         // the row is the lease's
	resting       // the row is nobody's until the MinHold is over
)

// model is a lock with expiry. It is deterministic: an effect that is in doubt makes more outcomes legal, within the time
// in which it may have come, and changes the state only if an outcome needs it.
func (r *record) model() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return state{} },
		Step: func(s, input, _ any) (bool, any) { return r.step(s.(state), input.(*operation)) },
		DescribeOperation: func(input, _ any) string {
			o := input.(*operation)
			return fmt.Sprintf("%s %s %s %s", o.Verb, o.Lease, o.Outcome, o.Seen)
		},
		DescribeState: func(s any) string { return fmt.Sprintf("%+v", s) },
	}
}

func (r *record) step(s state, o *operation) (bool, any) {
	if s.now > o.Return+slack {
		return false, s
	}
	l := r.leases[o.Lease]
	ours := l != nil && s.phase == taken && s.lease == l.number
	switch o.Verb {
	case acquire, look, holder:
		switch o.Outcome {
		case ok:
			return r.acquired(s, o)
		case held:
			// A lease is in its own way only if its first answer was lost, and it runs out while others take it over.
			ranOut := o.TTL != 0 && o.Call+o.TTL <= o.Return
			return r.visible(s, o) && (o.Verb != acquire || o.Seen != o.Lease || ranOut), s
		}
		if o.Verb == holder {
			return r.calledFree(s, o)
		}
		return r.vanished(s, o)
	case force:
		return true, r.forceReleased(s, o)
	case release:
		if o.Outcome == lost {
			break
		}
		if ours {
			s = s.released(l, o)
		}
		// Before the deadline a release takes a missing row for the work of its own statement whose answer was lost. One that
		// failed may also have had its effect before this one began.
		return ours || o.Outcome == either || l.releasable <= o.Return || o.Lost > 0 && r.forcible(l, o.Return), s
	}
	if o.Outcome == lost {
		if !ours {
			return true, s
		}
		return r.vanished(s, o)
	}
	if s.over && o.Expires > s.until+slack { // free stays free, though a guard may still pin the row
		return false, s
	}
	if ours {
		s.until = max(s.until, o.Expires)
	}
	return ours, s
}

// calledFree is a Holder that saw nobody: the lease's row is gone, or is there and has run out.
func (r *record) calledFree(s state, o *operation) (bool, any) {
	from := r.takeable(s)
	if from > o.Return+slack {
		return false, s
	}
	s.over, s.now = true, max(s.now, from)
	return true, s
}

// forceReleased ends the lease that was there when an operator asked: if its own release comes first, a MinHold of it
// may go on.
func (r *record) forceReleased(s state, o *operation) state {
	if s.phase == resting {
		for _, release := range r.numbers[s.lease].releases {
			if release.from <= o.Return && release.to >= o.Call {
				s.until = 0 // there may be a row, or none
				return s
			}
		}
	}
	s.phase = freed
	return s
}

func (s state) released(l *lease, o *operation) state {
	s.phase = freed
	if hold := l.acquire.MinHold; o.Call < l.acquire.Return+hold {
		s.phase, s.until = resting, max(l.acquire.Call, l.acquire.Since)+hold
	}
	return s
}

func (r *record) acquired(s state, o *operation) (bool, any) {
	from := r.takeable(s)
	if from > o.Return+slack || o.Token <= s.token {
		return false, s
	}
	return true, state{
		phase: taken, lease: r.leases[o.Lease].number, until: o.Expires, token: o.Token, now: max(s.now, from),
	}
}

// visible says whether the row that was seen may have been there. All but a look at the row itself see live leases alone.
func (r *record) visible(s state, o *operation) bool {
	l := r.leases[o.Seen]
	if l == nil {
		return false
	}
	there := s.phase != freed && (o.Verb == look || !s.over)
	if l.number == s.lease && (there || l.back <= o.Return) {
		return true
	}
	passing := r.takeable(s) <= o.Return+slack && slices.ContainsFunc(r.passers, func(p passer) bool {
		return p.lease == o.Seen && p.from <= o.Return && p.to >= o.Call
	})
	from, doubted := r.doubts[o.Seen]
	return passing || r.kept(s, l, o) || doubted && from <= o.Return
}

// kept says whether a release, or a waiter that passed the mutex on, may have kept it for a waiter when a row of it was
// seen.
func (r *record) kept(s state, l *lease, o *operation) bool {
	passedOn := func(p passer) bool {
		then := max(r.takeable(s), p.from)
		return then <= p.to && then <= o.Return+slack
	}
	released := s.lease != 0 && (s.phase == freed || r.numbers[s.lease].releasable <= o.Return) ||
		slices.ContainsFunc(r.passers, passedOn)
	return l.acquire.Tells && released && l.acquire.Call <= o.Return && o.Call-keepWindow <= l.acquire.end()
}

// takeable is from when on another may acquire.
func (r *record) takeable(s state) int64 {
	if s.phase == freed {
		return 0
	}
	return min(s.until, r.numbers[s.lease].releasable, r.anyTime)
}

// vanished is a look that finds the last lease's row gone.
func (r *record) vanished(s state, o *operation) (bool, any) {
	from := int64(0)
	if s.phase != freed {
		from = min(r.numbers[s.lease].releasable, r.anyTime)
		if s.phase == resting || r.pruned { // a release at the end of that time leaves no row
			from = min(from, s.until)
		}
		for _, others := range [][]passer{r.first, r.passers} { // one may have taken over and gone again
			for _, p := range others {
				if then := max(s.until, p.from); then <= p.to && r.leases[p.lease].number != s.lease {
					from = min(from, then)
				}
			}
		}
	}
	if from > o.Return+slack {
		return false, s
	}
	s.phase, s.now = freed, max(s.now, from)
	return true, s
}

// judgeOrder looks for an order of the operations in which each has its effect at one moment between its call and its
// return, and which a mutex allows. If there is none it also says how far the best attempt came.
func (r *record) judgeOrder(timeout time.Duration) (porcupine.CheckResult, *impossible) {
	model, ops := r.model(), r.constraints()
	result := porcupine.CheckOperationsTimeout(model, ops, timeout)
	if result != porcupine.Illegal {
		return result, nil
	}
	_, info := porcupine.CheckOperationsVerbose(model, ops, timeout)
	best := []int{}
	for _, partial := range info.PartialLinearizations()[0] {
		if len(partial) > len(best) {
			best = partial
		}
	}
	judged, explained := map[*operation]bool{}, map[*operation]bool{}
	for _, op := range ops {
		judged[op.Input.(*operation)] = true
	}
	for _, i := range best {
		explained[ops[i].Input.(*operation)] = true
	}
	return result, &impossible{model, info, r.history, judged, explained}
}

// impossible is a history that no order explains.
type impossible struct {
	model     porcupine.Model
	info      porcupine.LinearizationInfo
	history   []*operation
	judged    map[*operation]bool
	explained map[*operation]bool // by the longest order
}

// judgeTokens returns what is wrong with the fencing tokens of one mutex: a lease that was acquired after another, on
// the clock, must have the greater.
func judgeTokens(history []*operation) (complaints []string) {
	var byCall []*operation
	for _, o := range history {
		if o.Verb == acquire && o.Outcome == ok {
			byCall = append(byCall, o)
		}
	}
	byReturn := slices.Clone(byCall)
	slices.SortFunc(byCall, func(a, b *operation) int { return cmp.Compare(a.Call, b.Call) })
	slices.SortFunc(byReturn, func(a, b *operation) int { return cmp.Compare(a.Return, b.Return) })
	seen := map[int64]*operation{}
	var greatest *operation
	for _, o := range byCall {
		for len(byReturn) > 0 && byReturn[0].Return < o.Call {
			if greatest == nil || byReturn[0].Token > greatest.Token {
				greatest = byReturn[0]
			}
			byReturn = byReturn[1:]
		}
		if greatest != nil && o.Token <= greatest.Token {
			complaints = append(complaints, fmt.Sprintf("the token does not grow:\n%v\n%v", greatest, o))
		}
		if other := seen[o.Token]; other != nil {
			complaints = append(complaints, fmt.Sprintf("two leases have one token:\n%v\n%v", other, o))
		}
		seen[o.Token] = o
	}
	return complaints
}

// judgeEnds returns what is wrong with what was said of the ends of leases: work that ended after its lease is reported,
// and no other. A transaction that committed is not late.
func judgeEnds(history []*operation) (complaints []string) {
	for _, o := range history {
		committed := o.Attempt != "" && o.Outcome == ok
		switch {
		case o.Verb != release || o.EndTo == 0 || committed:
		case o.Outcome == ok && o.Call > o.EndTo:
			complaints = append(complaints, fmt.Sprintf("the work ended after its lease, and nobody was told:\n%v", o))
		case o.Outcome == late && o.Return < o.EndFrom:
			complaints = append(complaints, fmt.Sprintf("the work ended before its lease, and was called late:\n%v", o))
		}
	}
	return complaints
}

// counted is what the transactions of one mutex left behind.
type counted struct {
	n    int             // the counter that each raised by 1, by what it had read
	runs map[string]bool // the attempts that are there
}

// judgeCounter returns what is wrong with it. A transaction for which undoable holds may have been lost in a crash, as the
// server was told not to wait for the disk.
func judgeCounter(c counted, history []*operation, undoable func(*operation) bool) (complaints []string) {
	if c.n != len(c.runs) {
		complaints = append(
			complaints, fmt.Sprintf("%d transactions committed, but the counter says %d: they overlapped", len(c.runs), c.n),
		)
	}
	known := map[string]bool{}
	for _, o := range history {
		if o.Verb != transaction {
			continue
		}
		known[o.Attempt] = true
		switch there := c.runs[o.Attempt]; {
		case o.Outcome == ok && !there && !undoable(o):
			complaints = append(complaints, fmt.Sprintf("a transaction that said it had committed is not there:\n%v", o))
		case o.Outcome == aborted && there:
			complaints = append(complaints, fmt.Sprintf("a transaction that said it had failed is there:\n%v", o))
		}
	}
	for attempt := range c.runs {
		if !known[attempt] {
			complaints = append(complaints, fmt.Sprintf("nobody began the transaction %q, which is there", attempt))
		}
	}
	return complaints
}

// String is the whole history in the order of the calls; operations that the longest order explains are marked.
func (i *impossible) String() string { return strings.Join(i.lines(), "\n") }

// excerpt is the part of it around the first operation to end that is not explained.
func (i *impossible) excerpt() string {
	first, around := int64(never), 0
	byCall := i.byCall()
	for n, o := range byCall {
		if i.judged[o] && !i.explained[o] && o.Return < first {
			first, around = o.Return, n
		}
	}
	return strings.Join(i.lines()[max(0, around-40):min(len(byCall), around+20)], "\n")
}

func (i *impossible) byCall() []*operation {
	return slices.SortedFunc(slices.Values(i.history), func(a, b *operation) int { return cmp.Compare(a.Call, b.Call) })
}

func (i *impossible) lines() (lines []string) {
	for _, o := range i.byCall() {
		mark := " "
		switch {
		case i.explained[o]:
			mark = "+"
		case i.judged[o]:
			mark = "?"
		}
		lines = append(lines, mark+o.String())
	}
	return lines
}
