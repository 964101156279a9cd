package torture

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/witness"
)

// never is the moment that does not come.
const never = math.MaxInt64

// verb is what an operation did.
type verb string

const (
	acquire     verb = "acquire" // of Acquire, Do or Transaction: until the work begins
	renew       verb = "renew"
	release     verb = "release" // of Release, Do, ReleaseIn or Transaction: from the end of the work
	force       verb = "force"   // ForceRelease
	guard       verb = "guard"
	pinned      verb = "pinned"      // the commit of a transaction with a guard
	promise     verb = "promise"     // a look at Lease.ExpiresAt
	holder      verb = "holder"      // Mutex.Holder, which sees no lease that has run out
	look        verb = "look"        // at the row itself
	transaction verb = "transaction" // the whole of a transaction that counts
	visit       verb = "visit"       // Once.Do or Once.Transaction
)

// outcome is how an operation ended, as far as its client can know.
type outcome string

const (
	unknown outcome = ""       // no answer, or an error that leaves open whether it had its effect
	ok      outcome = "ok"     // it did what it should
	held    outcome = "held"   // somebody's row was there: operation.Seen
	free    outcome = "free"   // nobody's was
	lost    outcome = "lost"   // the lease's row was found gone
	late    outcome = "late"   // a release that found its row, and reported that the lease had run out before the work ended
	either  outcome = "either" // a release after which the row is not the lease's, whether it was or not
	aborted outcome = "aborted"

	elsewhere outcome = "elsewhere" // an acquire of a semaphore that got, or was refused by, another slot
	done      outcome = "done"      // a visit that found the work done
	recorded  outcome = "recorded"  // one that did the work
)

// operation is what one client asked for and was told. Moments are nanoseconds of the machine's monotonic clock, which
// all its processes share.
type operation struct {
	Client  int     `json:"client"` // 0 is the parent; those of every process that was started differ
	N       int     `json:"n"`      // counts the client's operations
	Verb    verb    `json:"verb"`
	Mutex   string  `json:"mutex"`
	Lease   string  `json:"lease,omitempty"`   // its holder's text in the table, one for each acquire
	Attempt string  `json:"attempt,omitempty"` // the row that a transaction inserts
	Wait    bool    `json:"wait,omitempty"`    // an acquire that waits may name a holder of some time ago
	Tells   bool    `json:"tells,omitempty"`   // one that tells other processes of itself: they may keep the mutex for it
	TTL     int64   `json:"ttl,omitempty"`     // 0: it does not end
	Since   int64   `json:"since,omitempty"`   // not later than the lease's creation; 0: only Call is known
	MinHold int64   `json:"minHold,omitempty"`
	Slots   int     `json:"slots,omitempty"` // of a semaphore's acquire: how many it knows of
	Call    int64   `json:"call"`
	Return  int64   `json:"return,omitempty"` // 0: it did not
	Outcome outcome `json:"outcome,omitempty"`
	Token   int64   `json:"token,omitempty"`
	Expires int64   `json:"expires,omitempty"` // Lease.ExpiresAt: nobody else may get the mutex before
	EndFrom int64   `json:"endFrom,omitempty"` // of a release: between these two was the lease's deadline; 0: not known
	EndTo   int64   `json:"endTo,omitempty"`
	Seen    string  `json:"seen,omitempty"` // the lease of the row that was there; "" if it is not known
	Lost    int     `json:"lost,omitempty"` // how many of its statements were sent and got no answer
	Error   string  `json:"error,omitempty"`

	Visit *witness.Visit `json:"visit,omitempty"` // what a visit saw, as far as it came
}

// String is a line of a history.
func (o *operation) String() string {
	line := fmt.Sprintf(
		"%12.6f %12.6f  client %-3d %-8s %-7s %s %s", seconds(o.Call), seconds(o.Return), o.Client, o.Verb, o.Outcome, o.Mutex,
		o.Lease,
	)
	for _, part := range []struct {
		name  string
		shown bool
		value any
	}{
		{"seen", o.Seen != "", o.Seen},
		{"token", o.Token != 0, o.Token},
		{"expires", o.Expires != 0 && o.Expires != never, seconds(o.Expires)},
		{"ttl", o.TTL != 0, time.Duration(o.TTL)},
		{"minhold", o.MinHold != 0, time.Duration(o.MinHold)},
		{"wait", o.Wait, true},
		{"tells", o.Tells, true},
		{"answers lost", o.Lost != 0, o.Lost},
		{"attempt", o.Attempt != "", o.Attempt},
		{"error", o.Error != "", o.Error},
		{"visit", o.Visit != nil, o.Visit},
	} {
		if part.shown {
			line += fmt.Sprintf(" %s=%v", part.name, part.value)
		}
	}
	return line
}

func seconds(moment int64) float64 { return float64(moment) / float64(time.Second) }

// end is when the operation's effect is over at the latest.
func (o *operation) end() int64 {
	if o.Return == 0 {
		return never
	}
	return o.Return
}

// readHistory reads operations, one a line: each when it begins, and most a second time, when they end. A line that a
// killed process could not finish is the last and tells nothing. Lines that are no operations go to other.
func readHistory(r io.Reader, other func(line []byte)) (history []*operation, err error) {
	type key struct{ client, n int }
	begun := map[key]*operation{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		o := &operation{}
		if json.Unmarshal(lines.Bytes(), o) != nil || o.Verb == "" {
			other(lines.Bytes())
			continue
		}
		k := key{o.Client, o.N}
		if known := begun[k]; known != nil {
			*known = *o
			continue
		}
		begun[k] = o
		history = append(history, o)
	}
	return history, lines.Err()
}
