package torture

import (
	"cmp"
	"slices"

	"github.com/gorm-dbmutex/dbmutex/internal/witness"
)

// asLease is what a visit was told of its lease: an acquire and, if the work ran, a release.
func (o *operation) asLease() (acquired, released *operation) {
	acquired = &operation{Client: o.Client, Verb: acquire, Mutex: o.Mutex, Lease: o.Lease, Call: o.Call, Return: o.Return}
	v := o.Visit
	switch {
	case v.Began != 0:
		acquired.Return, acquired.Outcome, acquired.Token = v.Began, ok, v.Token
		end := *acquired
		end.Verb, end.Call, end.Return, end.Token = release, v.Ended, o.Return, 0
		end.Outcome = map[witness.Outcome]outcome{
			witness.Recorded: recorded, witness.Late: recorded, witness.Failed: either, witness.Lost: lost,
		}[v.Outcome]
		return acquired, &end
	case v.Outcome == witness.Done:
		acquired.Outcome = done
	case v.Outcome == witness.Held:
		acquired.Outcome = held
	}
	return acquired, nil
}

// visitsByTick are those of a history, and the ticks in their order.
func visitsByTick(history []*operation) (visits map[string][]*witness.Visit, ticks []string) {
	visits = map[string][]*witness.Visit{}
	for _, o := range history {
		if o.Verb != visit {
			continue
		}
		if visits[o.Mutex] == nil {
			ticks = append(ticks, o.Mutex)
		}
		visits[o.Mutex] = append(visits[o.Mutex], o.Visit)
	}
	slices.SortFunc(ticks, cmp.Compare[string])
	return visits, ticks
}
