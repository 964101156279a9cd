package torture

import (
	"encoding/json"
	"fmt"
	"slices"
)

// told is what the observer of a worker was told: an event.
type told struct {
	Event   string `json:"told"`
	Mutex   string `json:"mutex"`
	Lease   string `json:"lease"` // its holder's text, one for each acquire
	Outcome string `json:"outcome,omitempty"`
	Token   int64  `json:"token,omitempty"`
	Dropped int    `json:"dropped,omitempty"`
}

// readTold reads an event from a line; nil if it is none.
func readTold(line []byte) *told {
	e := &told{}
	if json.Unmarshal(line, e) != nil || e.Event == "" {
		return nil
	}
	return e
}

// outcomes are those that the end of an acquire, or of a lease, may be told with, by what the client was told. After an
// unknown one there is no saying: a transaction that failed has released its lease nevertheless.
var outcomes = map[verb]map[outcome][]string{
	acquire: {
		ok: {"acquired"}, held: {"held", "skipped"}, done: {"done"}, unknown: {"acquired", "cancelled", "failed"},
	},
	release: {
		ok: {"released", "handed on"}, late: {"released", "handed on"}, lost: {"lost"},
		recorded: {"recorded"},
		either:   {"released", "handed on", "lost", "unknown"},
		unknown:  {"released", "handed on", "lost", "unknown", "recorded"},
	},
}

// use is what one use of a mutex came to: as its client was told, and as the observer was.
type use struct {
	acquire, release *operation // the release that came first; nil if there was none
	renewals         int
	events           []*told
}

func (u *use) named(event string) (found []*told) {
	for _, e := range u.events {
		if e.Event == event {
			found = append(found, e)
		}
	}
	return found
}

// judgeTold compares the history of a worker that was not killed with what its observer was told.
func judgeTold(history []*operation, events []*told) (complaints []string) {
	uses := map[string]*use{}
	of := func(lease string) *use {
		if uses[lease] == nil {
			uses[lease] = &use{}
		}
		return uses[lease]
	}
	for _, o := range history {
		switch {
		case o.Verb == acquire:
			of(o.Lease).acquire = o
		case o.Verb == visit:
			of(o.Lease).acquire, of(o.Lease).release = o.asLease()
		case o.Verb == release && o.EndTo != 0 && of(o.Lease).release == nil: // not by ReleaseIn, which does not end the lease
			of(o.Lease).release = o
		case o.Verb == renew && o.Outcome == ok:
			of(o.Lease).renewals++
		}
	}
	for _, e := range events {
		if e.Event != "force released" { // of any lease, also another worker's
			of(e.Lease).events = append(of(e.Lease).events, e)
		}
	}
	for lease, u := range uses {
		if problem := u.problem(); problem != "" {
			complaints = append(complaints, fmt.Sprintf("%s: the observer of %s: %v", lease, problem, u))
		}
	}
	return complaints
}

// problem is what does not fit; "" if all does.
func (u *use) problem() string {
	if u.acquire == nil {
		return "an acquire that there was not"
	}
	began, ended := u.named("acquire began"), u.named("acquire ended")
	if len(began) != 1 || len(ended) != 1 {
		return "an acquire was not told of it once"
	}
	if !slices.Contains(outcomes[acquire][u.acquire.Outcome], ended[0].Outcome) || ended[0].Token != u.acquire.Token &&
		u.acquire.Outcome == ok {
		return "an acquire was told something else than its client"
	}
	leases, ends := u.named("lease began"), u.named("lease ended")
	acquired := ended[0].Outcome == "acquired"
	released := u.release != nil || u.acquire.Outcome != ok // by the library, as the work did not run
	switch {
	case acquired != (len(leases) == 1) || len(leases) > 1:
		return "a lease was not told once that it began"
	case (acquired && released) != (len(ends) == 1) || len(ends) > 1:
		return "a lease was not told once that it ended"
	case acquired && leases[0].Token != ended[0].Token, len(ends) == 1 && ends[0].Token != ended[0].Token:
		return "a lease was told of another token"
	case u.release != nil && !slices.Contains(outcomes[release][u.release.Outcome], ends[0].Outcome):
		return "a lease's end was told something else than its client"
	case len(ends) == 1 && len(u.named("lease renewed"))+ends[0].Dropped < u.renewals:
		return "a lease was not told of its renewals"
	}
	order := slices.Concat(began, ended, leases, ends)
	if !slices.IsSortedFunc(order, func(a, b *told) int { return slices.Index(u.events, a) - slices.Index(u.events, b) }) {
		return "a lease was told in another order"
	}
	return ""
}

// String shows all of a use.
func (u *use) String() (text string) {
	for _, o := range []*operation{u.acquire, u.release} {
		if o != nil {
			text += "\n" + o.String()
		}
	}
	for _, e := range u.events {
		text += fmt.Sprintf("\n%+v", *e)
	}
	return text
}
