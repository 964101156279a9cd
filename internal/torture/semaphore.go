package torture

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// semaphore is one of a round's.
type semaphore struct {
	ID string
	N  int // how many leases there may be at a time
}

// slot is the lock_id of a slot, which is a mutex of its own.
func (s *semaphore) slot(n int) string { return fmt.Sprintf("%s\x1f%d", s.ID, n) }

func (s *semaphore) slots() (ids []string) {
	for n := range s.N {
		ids = append(ids, s.slot(n+1))
	}
	return ids
}

// histories are those of its slots. An acquire that got a slot may have had an effect on the others before that, and one
// without an answer on any of them. One that was refused has seen the lease of one slot.
func (s *semaphore) histories(history []*operation) map[string][]*operation {
	slotOf, known := map[string]string{}, map[string]bool{} // by lease
	for _, o := range history {
		if o.Verb == acquire && s.has(o) {
			known[o.Lease] = true
			if o.Mutex != s.ID {
				slotOf[o.Lease] = o.Mutex
			}
		}
	}
	of := map[string][]*operation{}
	for _, o := range history {
		own := o.Mutex
		switch {
		case !s.has(o):
			continue
		case o.Verb != acquire || o.Outcome != held:
		case o.Seen != "" && !known[o.Seen]:
			own = s.slot(1) // where nothing explains it
		default:
			own = slotOf[o.Seen]
		}
		for _, id := range s.slots() {
			switch {
			case id == own, own == s.ID:
				of[id] = append(of[id], o)
			case o.Verb == acquire:
				other := *o
				other.Outcome = elsewhere
				of[id] = append(of[id], &other)
			}
		}
	}
	return of
}

// has says whether an operation is of the semaphore, or of one of its slots.
func (s *semaphore) has(o *operation) bool {
	return o.Mutex == s.ID || strings.HasPrefix(o.Mutex, s.ID+"\x1f")
}

// judgeRefusals returns who was refused, though fewer leases than it would have been content with can have been held at any
// moment of its call. A lease that nobody is known to have released counts until the end, and one of which an answer was
// lost counts twice: a late request may take a second slot for a while.
func (s *semaphore) judgeRefusals(history []*operation) (complaints []string) {
	possible := map[string]*interval{} // of leases
	hold, doubtful := map[string]int64{}, map[string]int{}
	for _, o := range history {
		switch {
		case o.Verb != acquire || !s.has(o):
		case o.Outcome == ok, o.Outcome == unknown, o.Lost > 0:
			possible[o.Lease] = &interval{o.Call, never}
			hold[o.Lease] = o.Return + o.MinHold
			if o.Outcome == unknown || o.Lost > 0 {
				doubtful[o.Lease] = 1
			}
		case o.Wait: // it may have been handed a lease that came too late, and is undone
			possible[o.Lease] = &interval{o.Call, o.Return + int64(latest)}
		}
	}
	for _, o := range history {
		p := possible[o.Lease]
		if p != nil && o.Verb == release && o.Outcome != unknown && o.Lost == 0 && o.EndTo != 0 {
			p.to = max(o.Return, hold[o.Lease]) + slack
		}
	}
	for _, o := range history {
		if o.Verb != acquire || o.Outcome != held || o.Mutex != s.ID {
			continue
		}
		n := 0
		for name, p := range possible {
			if p.from <= o.Return && p.to >= o.Call {
				n += 1 + doubtful[name]
			}
		}
		if n < o.Slots {
			complaints = append(complaints, fmt.Sprintf("refused, while at most %d of %d leases were held:\n%v", n, o.Slots, o))
		}
	}
	return complaints
}

// judgePermits returns what is wrong with how many leases there were at once. It knows nothing of slots.
func (s *semaphore) judgePermits(history []*operation) (complaints []string) {
	type permit struct {
		acquire  *operation
		from, to int64 // between these it certainly was held
	}
	permits := map[string]*permit{}
	for _, o := range history {
		if o.Verb == acquire && o.Outcome == ok && s.has(o) {
			permits[o.Lease] = &permit{o, o.Return, o.Expires}
		}
	}
	for _, o := range history {
		if p := permits[o.Lease]; p != nil && (o.Verb == renew || o.Verb == promise) && o.Outcome == ok {
			p.to = max(p.to, o.Expires)
		}
	}
	for _, p := range permits {
		if p.to != never {
			p.to -= slack
		}
	}
	for _, o := range history {
		if p := permits[o.Lease]; p != nil && (o.Verb == release || o.Verb == force) {
			p.to = min(p.to, o.Call)
		}
	}
	var held []*permit
	byBeginning := func(a, b string) int { return cmp.Compare(permits[a].from, permits[b].from) }
	names := make([]string, 0, len(permits))
	for name := range permits {
		names = append(names, name)
	}
	slices.SortFunc(names, byBeginning)
	for _, name := range names {
		p := permits[name]
		if p.to < p.from {
			continue
		}
		held = slices.DeleteFunc(held, func(other *permit) bool { return other.to < p.from })
		if held = append(held, p); len(held) > s.N {
			text := fmt.Sprintf("%d leases at once, and there may be %d:", len(held), s.N)
			for _, one := range held {
				text += "\n" + one.acquire.String()
			}
			complaints = append(complaints, text)
		}
	}
	return complaints
}
