// Package witness judges what many processes saw of work that is to be done once. It believes none of the database's
// answers: each visit writes down, outside of the database, when its work began and ended, and what it was told then.
package witness

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
)

// slack is what a lease may seem to end too early: the visits' clock and the database's are two readings of one machine's
// time, of which one may count whole milliseconds.
const slack = int64(2 * time.Millisecond)

// Outcome is what a visit was told.
type Outcome string

// The outcomes.
const (
	Unknown  Outcome = ""         // nothing, or an error that leaves open whether the work is recorded
	Recorded Outcome = "recorded" // its work is recorded
	Late     Outcome = "late"     // the same, and its lease had run out by then
	Done     Outcome = "done"     // the work had been done, and was not run
	Held     Outcome = "held"     // somebody else was at it
	Failed   Outcome = "failed"   // the work failed, and may be run again
	Lost     Outcome = "lost"     // its lease was lost, and nothing is recorded
)

// Visit is one call of Once.Do or Once.Transaction. Moments are nanoseconds of a clock that all processes share; 0 is one
// that did not come.
type Visit struct {
	ID       string  `json:"id"`       // of the Once
	Name     string  `json:"name"`     // that no other visit has
	Effect   bool    `json:"effect"`   // the work leaves one, in the transaction of the record
	Called   int64   `json:"called"`   // before the call
	Began    int64   `json:"began"`    // the work
	Token    int64   `json:"token"`    // of its lease
	Expires  int64   `json:"expires"`  // when its lease ends: nobody else may be at it before
	Ended    int64   `json:"ended"`    // the work
	Returned int64   `json:"returned"` // after the call
	Outcome  Outcome `json:"outcome"`
	Text     string  `json:"text,omitempty"` // of the error, for people
}

// Left is what the database has of an id in the end.
type Left struct {
	Token   int64    // of the record; 0: there is none
	Effects []string // of which visits
}

func (v *Visit) ran() bool { return v.Began != 0 }

func (v *Visit) succeeded() bool { return v.Outcome == Recorded || v.Outcome == Late }

// Told says whether the visit was told that the work is done.
func (v *Visit) Told() bool { return v.succeeded() || v.Outcome == Done }

// OutcomeOf is what the error of a visit's call means, by what its work had returned.
func OutcomeOf(v *Visit, err, workErr error) Outcome {
	var timeout *dbmutex.TimeoutError
	timedOut := errors.As(err, &timeout)
	switch {
	case err == nil && v.ran():
		return Recorded
	case err == nil:
		return Done
	case errors.Is(err, dbmutex.ErrNotAcquired):
		return Held
	case timedOut && timeout.Lost && strings.Contains(timeout.Error(), "was lost"):
		return Lost
	case timedOut && timeout.Lost: // its row could not be asked for
		return Unknown
	case workErr != nil && v.ran():
		return Failed
	// A timeout alone: joined with another error it may not be recorded. A transaction that is late and commits is told
	// nothing.
	case timedOut && err == error(timeout) && v.ran() && !v.Effect: //nolint:errorlint // see above
		return Late
	}
	return Unknown
}

// protected is the last moment at which nobody else may have been at it, whatever the visit was told.
func (v *Visit) protected() int64 {
	end := v.Expires - slack
	if v.Ended != 0 {
		end = min(end, v.Ended)
	}
	return end
}

// kept is the last moment at which nobody else was at it, by what the visit was told.
func (v *Visit) kept() int64 {
	if v.succeeded() || v.Outcome == Failed {
		return v.Ended
	}
	return v.protected()
}

// String is a line for people.
func (v *Visit) String() string {
	s := func(moment int64) float64 { return float64(moment) / 1e9 }
	return fmt.Sprintf("%s %s: called %.6f, began %.6f, ended %.6f, returned %.6f, expires %.6f, token %d, effect %v: %q %s",
		v.ID, v.Name, s(v.Called), s(v.Began), s(v.Ended), s(v.Returned), s(v.Expires), v.Token, v.Effect, v.Outcome, v.Text)
}

// Write adds a visit to what Read reads, as far as it has come. Many processes may write to a file that is open for
// appending.
func Write(w io.Writer, v *Visit) error {
	line, err := json.Marshal(v)
	if err == nil {
		_, err = w.Write([]byte("\n" + string(line) + "\n")) // the line before may be torn
	}
	return err
}

// Read reads visits, one a line. Each may be there several times, as it went on; the last line counts. The end of a line is
// missing where a process was killed while it wrote. What it then wrote of was not yet so, and is left out.
func Read(r io.Reader) (visits []*Visit, err error) {
	known := map[string]*Visit{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if !bytes.HasSuffix(lines.Bytes(), []byte("}")) {
			continue
		}
		v := &Visit{}
		if err := json.Unmarshal(lines.Bytes(), v); err != nil {
			return nil, fmt.Errorf("%q: %w", lines.Text(), err)
		}
		if old := known[v.Name]; old != nil {
			*old = *v
			continue
		}
		known[v.Name] = v
		visits = append(visits, v)
	}
	return visits, lines.Err()
}

// Judge returns what is wrong with the visits of one id, and with what they left. A success for which undoable holds may
// have been undone by a crash of the server, together with its record and its effect; nil: none was.
func Judge(visits []*Visit, left Left, undoable func(*Visit) bool) (complaints []string) {
	j := &judge{left: left, effects: map[string]bool{}}
	for _, name := range left.Effects {
		j.effects[name] = true
	}
	for _, v := range visits {
		undone := undoable != nil && undoable(v)
		if v.ran() {
			j.runs = append(j.runs, v)
		}
		if v.Told() && !undone {
			j.acknowledged = append(j.acknowledged, v)
		}
		if v.succeeded() && !undone || v.Effect && j.effects[v.Name] {
			j.recorded = append(j.recorded, v)
		}
	}
	slices.SortFunc(j.runs, func(a, b *Visit) int { return cmp.Compare(a.Began, b.Began) })
	j.successes()
	j.afterwards(visits)
	j.overlaps()
	j.tokens()
	j.record()
	j.traces(visits, undoable)
	return j.complaints
}

// judge is at one id.
type judge struct {
	left         Left
	effects      map[string]bool
	runs         []*Visit // in the order of their beginnings
	acknowledged []*Visit // who were told that the work is done
	recorded     []*Visit // whose work is recorded
	complaints   []string
}

func (j *judge) complain(what string, visits ...*Visit) {
	for _, v := range visits {
		what += "\n" + v.String()
	}
	j.complaints = append(j.complaints, what)
}

func (j *judge) successes() {
	if len(j.recorded) > 1 {
		j.complain("the work was recorded more than once:", j.recorded...)
	}
	for _, v := range j.acknowledged {
		if len(j.runs) == 0 || j.runs[0].Began > v.Returned {
			j.complain("nobody had done the work of which this was told that it was done:", v)
		}
	}
}

// afterwards looks at what comes after somebody was told that the work is done.
func (j *judge) afterwards(visits []*Visit) {
	if len(j.acknowledged) == 0 {
		return
	}
	first := slices.MinFunc(j.acknowledged, func(a, b *Visit) int { return cmp.Compare(a.Returned, b.Returned) })
	for _, v := range visits {
		switch {
		case v.ran() && (v.Called > first.Returned || v.Began > first.Returned && v.Began <= v.protected()):
			j.complain("the work ran again after it was done:", first, v)
		case v.Called > first.Returned && v.Outcome == Held:
			j.complain("somebody was at it after it was done:", first, v)
		}
	}
}

func (j *judge) overlaps() {
	for i, v := range j.runs {
		for _, w := range j.runs[i+1:] {
			if w.Began <= v.kept() && w.Began <= w.kept() {
				j.complain("two were at it at once:", v, w)
			}
		}
	}
}

func (j *judge) tokens() {
	for i, v := range j.runs {
		for _, w := range j.runs[i+1:] {
			if w.Token == v.Token || w.Called > v.Began && w.Token < v.Token {
				j.complain("the token does not grow:", v, w)
			}
		}
	}
}

// record compares the record with the runs.
func (j *judge) record() {
	if len(j.acknowledged) > 0 && j.left.Token == 0 {
		j.complain("there is no record of what was told to be done:", j.acknowledged[0])
	}
	if j.left.Token == 0 {
		return
	}
	i := slices.IndexFunc(j.runs, func(v *Visit) bool { return v.Token == j.left.Token })
	switch {
	case i < 0:
		j.complain(fmt.Sprintf("the record has the token %d, which no run had", j.left.Token), j.runs...)
	case j.runs[i].Ended == 0, j.runs[i].Outcome == Failed, j.runs[i].Outcome == Lost:
		j.complain("this run has the record, and did not succeed:", j.runs[i])
	}
	for _, v := range j.recorded {
		if v.Token != j.left.Token {
			j.complain(fmt.Sprintf("the record has the token %d, and is not of this run:", j.left.Token), v)
		}
	}
}

// traces compares the effects with what was told.
func (j *judge) traces(visits []*Visit, undoable func(*Visit) bool) {
	if len(j.left.Effects) > 1 {
		j.complain(fmt.Sprintf("there are %d effects: %v", len(j.left.Effects), j.left.Effects))
	}
	begun := map[string]bool{}
	for _, v := range visits {
		begun[v.Name] = v.ran() && v.Effect
		there, undone := j.effects[v.Name], undoable != nil && undoable(v)
		switch {
		case !v.Effect:
		case there && v.Outcome != Unknown && !v.succeeded():
			j.complain("the effect of a visit that was told it had none is there:", v)
		case !there && !undone && (v.succeeded() || v.ran() && v.Token == j.left.Token):
			j.complain("the effect of a run that is recorded is not there:", v)
		}
	}
	for _, name := range j.left.Effects {
		if !begun[name] {
			j.complain(fmt.Sprintf("there is an effect of %q, which never began", name))
		}
	}
}
