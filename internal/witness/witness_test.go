package witness

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The moments of these tests are milliseconds; a lease lasts for 100 from the beginning of its work.
const ms = int64(1_000_000)

// visit is one that ran the work, or not if began is 0.
func visit(name string, called, began, ended, returned, token int64, outcome Outcome, more ...func(*Visit)) *Visit {
	v := &Visit{
		ID: "tick", Name: name, Called: called * ms, Began: began * ms, Ended: ended * ms, Returned: returned * ms,
		Token: token, Outcome: outcome,
	}
	if began != 0 {
		v.Expires = v.Began + 100*ms
	}
	for _, change := range more {
		change(v)
	}
	return v
}

func withEffect(v *Visit) { v.Effect = true }

func TestJudge(t *testing.T) {
	first := visit("a", 1, 2, 10, 12, 1, Recorded)
	for name, c := range map[string]struct {
		complaint string
		visits    []*Visit
		left      Left
		undoable  func(*Visit) bool
	}{
		"once, and known to others": {"", []*Visit{
			first, visit("b", 3, 0, 0, 4, 0, Held), visit("c", 13, 0, 0, 14, 0, Done)}, Left{Token: 1}, nil},
		"again after a failure": {"", []*Visit{
			visit("a", 1, 2, 10, 12, 1, Failed), visit("b", 3, 11, 15, 16, 2, Recorded)}, Left{Token: 2}, nil},
		"again after a crash": {"", []*Visit{
			visit("a", 1, 2, 10, 0, 1, Unknown), visit("b", 11, 103, 105, 106, 2, Recorded)}, Left{Token: 2}, nil},
		"a crash after the record": {"", []*Visit{
			visit("a", 1, 2, 10, 0, 1, Unknown), visit("b", 11, 0, 0, 12, 0, Done)}, Left{Token: 1}, nil},
		"late, and nobody had followed": {"", []*Visit{
			visit("a", 1, 2, 150, 151, 1, Late), visit("b", 160, 0, 0, 161, 0, Done)}, Left{Token: 1}, nil},
		"lost, and done by another": {"", []*Visit{
			visit("a", 1, 2, 150, 151, 1, Lost), visit("b", 110, 112, 120, 121, 2, Recorded)}, Left{Token: 2}, nil},
		"a lease that had ended before the work began": {"", []*Visit{
			visit("a", 1, 150, 151, 152, 1, Lost, func(v *Visit) { v.Expires = 100 * ms }),
			visit("b", 101, 103, 105, 106, 2, Recorded)}, Left{Token: 2}, nil},
		"an effect": {"", []*Visit{
			visit("a", 1, 2, 10, 12, 1, Recorded, withEffect)}, Left{1, []string{"a"}}, nil},
		"an effect that was not told": {"", []*Visit{
			visit("a", 1, 2, 10, 0, 1, Unknown, withEffect)}, Left{1, []string{"a"}}, nil},
		"undone by a crash, and again": {"", []*Visit{
			visit("a", 1, 2, 10, 12, 1, Recorded, withEffect), visit("b", 30, 32, 40, 42, 2, Recorded, withEffect)},
			Left{2, []string{"b"}}, func(v *Visit) bool { return v.Name == "a" }},

		"twice": {"more than once", []*Visit{
			visit("a", 1, 2, 10, 12, 1, Recorded), visit("b", 3, 11, 15, 16, 2, Recorded)}, Left{Token: 2}, nil},
		"again after it was done": {"ran again", []*Visit{
			first, visit("b", 13, 14, 15, 16, 2, Failed)}, Left{Token: 1}, nil},
		"again after another heard of it, by one who had asked before": {"ran again", []*Visit{
			first, visit("b", 11, 0, 0, 12, 0, Done), visit("c", 1, 13, 15, 16, 2, Failed)}, Left{Token: 1}, nil},
		"somebody at it after it was done": {"at it after", []*Visit{
			first, visit("b", 13, 0, 0, 14, 0, Held)}, Left{Token: 1}, nil},
		"done by nobody": {"nobody had done", []*Visit{
			visit("a", 1, 0, 0, 2, 0, Done)}, Left{}, nil},
		"two at once": {"at once", []*Visit{
			visit("a", 1, 2, 20, 0, 1, Unknown), visit("b", 3, 11, 15, 16, 2, Failed)}, Left{}, nil},
		"two at once, one by a lease that only ran out": {"at once", []*Visit{
			visit("a", 1, 2, 150, 151, 1, Late), visit("b", 110, 112, 120, 121, 2, Lost)}, Left{Token: 1}, nil},
		"a token that does not grow": {"does not grow", []*Visit{
			visit("a", 1, 2, 10, 12, 2, Failed), visit("b", 13, 14, 15, 16, 1, Recorded)}, Left{Token: 1}, nil},
		"no record": {"no record", []*Visit{first}, Left{}, nil},
		"a record of another run": {"is not of this run", []*Visit{
			first, visit("b", 101, 110, 115, 0, 2, Unknown)}, Left{Token: 2}, nil},
		"a record of nobody's": {"no run had", []*Visit{
			visit("a", 1, 2, 10, 0, 1, Unknown)}, Left{Token: 2}, nil},
		"a record of work that failed": {"did not succeed", []*Visit{
			visit("a", 1, 2, 10, 12, 1, Failed)}, Left{Token: 1}, nil},
		"a record of a run that was lost": {"did not succeed", []*Visit{
			visit("a", 1, 2, 110, 112, 1, Lost)}, Left{Token: 1}, nil},
		"a record of work that had not ended": {"did not succeed", []*Visit{
			visit("a", 1, 2, 0, 0, 1, Unknown)}, Left{Token: 1}, nil},
		"two effects": {"2 effects", []*Visit{
			visit("a", 1, 2, 10, 12, 1, Recorded, withEffect), visit("b", 3, 110, 115, 0, 2, Unknown, withEffect)},
			Left{1, []string{"a", "b"}}, nil},
		"an effect that is missing": {"is not there", []*Visit{
			visit("a", 1, 2, 10, 12, 1, Recorded, withEffect)}, Left{Token: 1}, nil},
		"an effect of work that failed": {"is there", []*Visit{
			visit("a", 1, 2, 10, 12, 1, Failed, withEffect)}, Left{0, []string{"a"}}, nil},
		"an effect of nobody's": {"never began", []*Visit{
			visit("a", 1, 2, 10, 0, 1, Unknown, withEffect)}, Left{0, []string{"z"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			complaints := Judge(c.visits, c.left, c.undoable)
			if c.complaint == "" {
				assert.Empty(t, complaints)
			} else {
				assert.Contains(t, strings.Join(complaints, "\n"), c.complaint)
			}
		})
	}
}

func TestReadTakesTheLastLineOfEachVisit(t *testing.T) {
	var text strings.Builder
	require.NoError(t, Write(&text, &Visit{Name: "a"}))
	text.WriteString(`{"name":"a","began":`) // a process that was killed
	require.NoError(t, Write(&text, &Visit{Name: "b"}))
	require.NoError(t, Write(&text, &Visit{Name: "a", Began: 3}))

	visits, err := Read(strings.NewReader(text.String()))

	require.NoError(t, err)
	require.Len(t, visits, 2)
	assert.EqualValues(t, 3, visits[0].Began)

	_, err = Read(strings.NewReader(`{"name":"a"}{}`))
	assert.Error(t, err)
}
