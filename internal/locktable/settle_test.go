package locktable

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// script is a dialect without a database: each release is the next step. A row is there until a release finds it.
type script struct {
	dialect
	steps  []error
	tries  int
	gone   bool
	effect func(try int) bool // whether a try that fails has its effect
	local  bool
	lost   bool // Discard finds no row
}

// failureOf is an error that classify knows.
type failureOf failure

func (f failureOf) Error() string { return fmt.Sprint("failure ", int(f)) }

func (s *script) inspect(executor) error { return nil }

func (s *script) clean(executor) (bool, func(), error) { return false, func() {}, nil }

func (s *script) rename(executor, Key, string) (bool, error) { return true, nil }

func (s *script) classify(err error) failure {
	var f failureOf
	if errors.As(err, &f) {
		return failure(f)
	}
	return unknown
}

func (s *script) release(on executor, _ Release) (found bool, err error) {
	try := s.tries
	s.tries++
	if try < len(s.steps) {
		err = s.steps[try]
	}
	if err == nil || s.effect != nil && s.effect(try) {
		found = !s.gone && !s.lost
		s.gone = true
	}
	if err != nil {
		found = false
	}
	return found, err
}

func (s *script) table() Table {
	table := Table{&statements{dialect: s, remote: s}, &gorm.Config{Logger: logger.Discard}}
	if s.local {
		table.remote = nil
	}
	return table
}

// end is a patient release, as Lease.Release does it.
func (s *script) end(limit time.Duration) Outcome {
	return s.table().Release(context.Background(), time.Now().Add(limit), Release{})
}

// What a release does after each failure, and what it says of the row.
func TestFailuresThatAnotherTryMends(t *testing.T) {
	for _, test := range []struct {
		name  string
		steps []error
		tries int
		row   RowState
		doubt bool
	}{
		{"none", nil, 1, RowFound, false},
		{"refused", []error{failureOf(refused)}, 1, RowNotAsked, false},
		{"no table", []error{failureOf(noTable)}, 1, RowMissing, false},
		{"conflicting", []error{failureOf(conflicting), failureOf(conflicting)}, 3, RowFound, false},
		{"hindered", []error{failureOf(hindered)}, 2, RowFound, false},
		{"unreachable", []error{failureOf(unreachable)}, 2, RowFound, false},
		{"unknown", []error{failureOf(unknown)}, 2, RowFound, true},
		{"unknown, then refused", []error{failureOf(unknown), failureOf(refused)}, 2, RowNotAsked, true},
		{"unknown, then unreachable", []error{failureOf(unknown), failureOf(unreachable)}, 3, RowFound, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &script{steps: test.steps}
			o := s.end(time.Minute)
			require.Equal(t, test.tries, s.tries)
			require.Equal(t, test.row, o.Row)
			require.Equal(t, test.doubt, o.Doubt)
			require.Equal(t, test.row == RowFound, o.Err == nil)
		})
	}
}

// What is not patient does not wait for a database that cannot be reached, nor beyond a time limit, unless in doubt.
func TestAStatementThatIsNotPatient(t *testing.T) {
	for _, test := range []struct {
		name  string
		steps []error
		tries int
	}{
		{"refused", []error{failureOf(refused)}, 1},
		{"conflicting", []error{failureOf(conflicting)}, 2},
		{"hindered", []error{failureOf(hindered)}, 1},
		{"unreachable", []error{failureOf(unreachable)}, 1},
		{"unknown", []error{failureOf(unknown)}, 2},
		{"unknown, by a time limit", []error{context.DeadlineExceeded}, 1},
		{"unknown, then unreachable", []error{failureOf(unknown), failureOf(unreachable)}, 3},
		{"unknown, then hindered", []error{failureOf(unknown), failureOf(hindered)}, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &script{steps: test.steps}
			_, err := s.table().settle(context.Background(), time.Time{}, func(on executor) error {
				_, err := s.release(on, Release{})
				return err
			})
			require.Equal(t, test.tries, s.tries)
			require.Equal(t, test.tries > len(test.steps), err == nil)
		})
	}
}

// A try whose answer is lost may have removed the row: the next one finds none, in doubt.
func TestADoubtfulReleaseFindsNoRow(t *testing.T) {
	s := &script{steps: []error{failureOf(unknown)}, effect: func(try int) bool { return try == 0 }}
	o := s.end(time.Minute)
	require.Equal(t, Outcome{Row: RowMissing, Doubt: true}, o)
}

func TestAReleaseEndsAtItsLimit(t *testing.T) {
	s := &script{}
	for range 1000 {
		s.steps = append(s.steps, failureOf(unreachable))
	}
	o := s.end(time.Second)
	require.Equal(t, RowNotAsked, o.Row)
	require.Greater(t, s.tries, 1)
	require.Less(t, s.tries, 1000)
}

func TestNoTryTakesMoreThanHalfOfWhatIsLeft(t *testing.T) {
	s := &script{}
	limit := time.Now().Add(time.Hour)
	_, err := s.table().settle(context.Background(), limit, func(on executor) error {
		end, limited := on.ctx.Deadline()
		require.True(t, limited)
		require.WithinDuration(t, limit.Add(-30*time.Minute), end, time.Minute)
		return nil
	})
	require.NoError(t, err)
}

func TestAStatementEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	tries := 0
	_, err := (&script{}).table().settle(ctx, time.Time{}, func(executor) error {
		tries++
		cancel()
		return failureOf(conflicting)
	})
	require.Equal(t, failureOf(conflicting), err)
	require.Equal(t, 1, tries)
}

// A statement without an answer may make the row yet, if the database is another process.
func TestDiscardLooksAgainWhereTheDatabaseIsRemote(t *testing.T) {
	for _, local := range []bool{true, false} {
		s := &script{local: local, lost: true}
		s.table().Discard(context.Background(), Key{}, nil)
		require.Equal(t, map[bool]int{true: 1, false: 3}[local], s.tries)
	}
	found := &script{}
	found.table().Discard(context.Background(), Key{}, nil)
	require.Equal(t, 1, found.tries)
}

// asked is a dialect whose acquires are steps, too.
type asked struct {
	script
	answers []Answer
	errs    []error
	at      int
}

func (a *asked) acquire(executor, Request) (Answer, error) {
	at := a.at
	a.at++
	return a.answers[at], a.errs[at]
}

func TestAnAcquireInDoubtIsUndone(t *testing.T) {
	held := Answer{Held: &Row{LeaseID: "another"}}
	for _, test := range []struct {
		name    string
		answers []Answer
		errs    []error
		undone  bool
	}{
		{"acquired", []Answer{{Token: 1}}, []error{nil}, false},
		{"held", []Answer{held}, []error{nil}, false},
		{"refused", []Answer{{}}, []error{failureOf(refused)}, false},
		{"acquired in doubt", []Answer{{}, {Token: 1}}, []error{failureOf(unknown), nil}, false},
		{"held in doubt", []Answer{{}, held}, []error{failureOf(unknown), nil}, true},
		{"refused in doubt", []Answer{{}, {}}, []error{failureOf(unknown), failureOf(refused)}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := &asked{answers: test.answers, errs: test.errs}
			table := Table{&statements{dialect: a, remote: a}, &gorm.Config{Logger: logger.Discard}}
			_, err := table.Acquire(context.Background(), Request{})
			require.Equal(t, test.errs[len(test.errs)-1], err)
			require.Equal(t, test.undone, a.tries > 0, "a release ran")
		})
	}
}

func TestWhatWasAcquiredForADoneContextIsUndone(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	a := &asked{answers: []Answer{{Token: 1}}, errs: []error{nil}}
	table := Table{&statements{dialect: cancelling{a, cancel}, remote: a}, &gorm.Config{Logger: logger.Discard}}
	answer, err := table.Acquire(ctx, Request{})
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, answer.Token)
	require.True(t, a.gone)
}

// cancelling ends the caller's context during an acquire.
type cancelling struct {
	*asked
	cancel context.CancelFunc
}

func (c cancelling) acquire(on executor, r Request) (Answer, error) {
	c.cancel()
	return c.asked.acquire(on, r)
}

// noted is a dialect that notifies: it refuses a release that has a notification.
type noted struct {
	script
	notifying
	sent []Release
}

func (n *noted) id() uint32 { return 7 }

func (n *noted) release(on executor, r Release) (bool, error) {
	n.sent = append(n.sent, r)
	if r.Notify {
		return false, failureOf(refused)
	}
	return n.script.release(on, r)
}

func (n *noted) releaseUnmarked(on executor, r Release) (bool, error) { return false, nil }

func TestAReleaseThatMayNotNotifyIsDoneWithout(t *testing.T) {
	n := &noted{}
	table := Table{&statements{dialect: n, notifying: n}, &gorm.Config{Logger: logger.Discard}}
	o := table.Release(context.Background(), time.Now().Add(time.Minute), Release{Notify: true, Message: "gone"})
	require.Equal(t, Outcome{Row: RowFound}, o)
	require.Equal(t, []Release{{Notify: true, Message: "gone"}, {}}, n.sent)
}

// The mark is looked for by the first try alone: a later one may find the row of a try that had its effect gone.
func TestTheMarkOfAWaiterIsToldOnce(t *testing.T) {
	s := &script{}
	n := &marked{script: s}
	table := Table{&statements{dialect: n, notifying: n}, &gorm.Config{Logger: logger.Discard}}
	o := table.Release(context.Background(), time.Now().Add(time.Minute), Release{Unaware: true})
	require.Equal(t, Outcome{Row: RowFound, Knocked: true}, o)
	require.Equal(t, 1, n.looks)

	n = &marked{script: &script{steps: []error{failureOf(unknown)}}}
	table = Table{&statements{dialect: n, notifying: n}, &gorm.Config{Logger: logger.Discard}}
	o = table.Release(context.Background(), time.Now().Add(time.Minute), Release{Unaware: true})
	require.Equal(t, Outcome{Row: RowFound, Doubt: true}, o)
	require.Equal(t, 1, n.looks)
}

// marked is a dialect with a mark at the row.
type marked struct {
	*script
	notifying
	looks int
}

func (m *marked) id() uint32 { return 7 }

func (m *marked) releaseUnmarked(executor, Release) (bool, error) {
	m.looks++
	return false, nil
}

func TestDone(t *testing.T) {
	require.NoError(t, Done(context.Background()))
	ctx, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancel()
	require.ErrorIs(t, Done(ctx), context.DeadlineExceeded)
	require.ErrorIs(t, Done(late{context.Background()}), context.DeadlineExceeded, "its timer has not fired yet")
}

// late is a context whose deadline has passed and whose timer is late.
type late struct{ context.Context }

func (late) Deadline() (time.Time, bool) { return time.Now().Add(-time.Second), true }

func TestWhatNeedsNoConnectionIsUnsent(t *testing.T) {
	err := error(&unsentError{error: sql.ErrConnDone})
	require.True(t, isUnsent(fmt.Errorf("wrapped: %w", err)))
	require.ErrorIs(t, err, sql.ErrConnDone)
	require.False(t, isUnsent(sql.ErrConnDone))
}
