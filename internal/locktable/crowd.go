package locktable

import (
	"context"
	"database/sql"
	"runtime"
	"slices"
	"sync"
	"time"

	"gorm.io/gorm"
)

// The policy of a crowd: docs/architecture.md has what was measured.
const (
	// crowdLeast is the smallest number of calls that a statement for many is worth.
	crowdLeast = 2
	// crowdMost is the greatest one. More calls run by themselves.
	crowdMost = 512

	// crowdRest is for how long all run by themselves, once a statement for many has failed.
	crowdRest = time.Second
)

// combining is a dialect that can do in one statement for many calls what it does for one.
type combining interface {
	// alone is how many calls on a table run by themselves, while no statement for many is under way.
	alone() int
	// acquireMany is acquire for requests that have different lock_ids and no slots. It waits for nobody's transaction longer
	// than a moment. An answer that has neither a token nor a lease in the way says nothing: the request is to be tried by
	// itself.
	acquireMany(on executor, requests []Request) ([]Answer, error)
	// releaseMany is release, or releaseUnmarked, for some of the rows, and waits for nobody's transaction. It says of each
	// whether it was there. One that was not is to be tried by itself.
	releaseMany(on executor, keys []Key, how together) (found []bool, err error)
}

// together is what many calls do in one statement.
type together int

const (
	acquireTogether  together = iota
	releaseTogether           // with Release.Async
	notifyTogether            // the same, with Release.Notify
	unmarkedTogether          // the same, with Release.Unaware
	kindsOfTogether
)

// crowd has the calls on a table that are under way in this process. As a group commit does, it combines what comes while
// a statement is under way in the next one. That statement is a first attempt: who gets no clear answer tries by itself, by
// the statements for one, which know the lease's own row.
type crowd struct {
	mu       sync.Mutex
	underWay int
	crowded  time.Time // until when all join, as those of the last statement for many may come again
	kinds    [kindsOfTogether]struct {
		waiting []*member
		ids     map[string]bool // of those that wait
		flying  bool            // a goroutine runs statements for many
		rests   time.Time       // until when it does not, after a failure
	}
}

// member is a call that waits for a statement which it shares.
type member struct {
	Request
	ctx      context.Context
	table    Table
	gathered bool // by Gather
	aboard   bool // a statement under way has it; guarded by crowd.mu
	gone     bool // it waits no more; guarded by crowd.mu
	done     chan struct{}
	draft    verdict // the statement's, until all have theirs
	verdict
}

// verdict is what a statement for many says of one of its members. It may be read once member.done is closed.
type verdict struct {
	answer Answer
	found  bool // a release's row
	doubt  bool // the statement may have its effect, but its answer did not come
}

// clear says whether the member need not try by itself.
func (v *verdict) clear() bool { return v.found || v.answer.Token != 0 || v.answer.Held != nil }

// join counts a call, until leave. It waits for the statement that the call shares with others, if there is one. It waits no
// longer than a statement may go on after the call's context is done.
func (t Table) join(ctx context.Context, how together, r Request) (v verdict) {
	m := t.enqueue(ctx, how, r)
	if m == nil {
		return verdict{}
	}
	select {
	case <-m.done:
		return m.verdict
	case <-ctx.Done():
	}
	if t.crowd.withdraw(how, m) {
		return verdict{}
	}
	if t.remote == nil { // nothing comes after the statement's end, which carry sees to
		<-m.done
		return m.verdict
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-m.done:
		return m.verdict
	case <-timer.C:
		return verdict{doubt: true}
	}
}

// leave ends what join began.
func (t Table) leave() {
	t.crowd.mu.Lock()
	defer t.crowd.mu.Unlock()
	t.crowd.underWay--
}

// combines says whether calls of this handle may join others.
func (t Table) combines() bool {
	switch t.config.ConnPool.(type) {
	case *sql.DB, *gorm.PreparedStmtDB:
		return t.combining != nil
	}
	return false
}

// likens says whether statements of this handle run under the same callbacks and limit as those of another one.
func (t Table) likens(other Table) bool {
	a, b := gorm.DB{Config: t.config}, gorm.DB{Config: other.config}
	return a.Callback() == b.Callback() && a.DefaultContextTimeout == b.DefaultContextTimeout
}

// enqueue makes a call a member, or returns nil if it is to run by itself.
func (t Table) enqueue(ctx context.Context, how together, r Request) *member {
	c := &t.crowd
	c.mu.Lock()
	defer c.mu.Unlock()
	c.underWay++
	k := &c.kinds[how]
	g := gathering.Load().of(c, r.LockID)
	switch {
	case !t.inspected.Load(), k.ids[r.LockID], len(k.waiting) >= crowdMost:
		return nil
	case len(k.waiting) > 0 && !t.likens(k.waiting[0].table):
		return nil
	case g != nil:
	case !k.flying && c.underWay <= t.alone() && !time.Now().Before(c.crowded):
		return nil
	case !k.rests.IsZero():
		if time.Now().Before(k.rests) {
			return nil
		}
		k.rests = time.Time{}
	}
	m := &member{Request: r, ctx: ctx, table: t, gathered: g != nil, done: make(chan struct{})}
	if k.ids == nil {
		k.ids = map[string]bool{}
	}
	k.waiting, k.ids[r.LockID] = append(k.waiting, m), true
	if g.add(c) && !k.flying {
		k.flying = true
		go c.fly(how)
	}
	return m
}

// withdraw takes a member back, unless a statement under way has it.
func (c *crowd) withdraw(how together, m *member) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := &c.kinds[how]
	if m.aboard {
		return false
	}
	m.gone = true
	if i := slices.Index(k.waiting, m); i >= 0 {
		k.waiting = slices.Delete(k.waiting, i, i+1)
		delete(k.ids, m.LockID)
	}
	return true
}

// take gives the members of the next statement. Without any, no statement follows.
func (c *crowd) take(how together) (members []*member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := &c.kinds[how]
	if gathering.Load().waits(c) {
		k.flying = false
		return nil
	}
	members, k.waiting = k.waiting, nil
	clear(k.ids)
	k.flying = len(members) > 0
	return members
}

// board gives those who still wait, now that there is a connection for their statement.
func (c *crowd) board(members []*member) (aboard []*member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range members {
		if m.aboard = !m.gone; m.aboard {
			aboard = append(aboard, m)
		}
	}
	return aboard
}

// fly runs a statement for those that wait, and sees to the next one. If a callback of GORM's panics, ends the goroutine or
// hangs, the members run it again by themselves.
func (c *crowd) fly(how together) {
	runtime.Gosched() // so that more can come
	members := c.take(how)
	if len(members) == 0 {
		return
	}
	start, failed := time.Now(), true
	paid := members[0].gathered || c.pays(len(members), members[0].table.alone())
	var once sync.Once
	land := func(hangs bool) {
		if paid {
			c.landed(how, start, hangs || failed)
		}
		for _, m := range members {
			if m.verdict.doubt = hangs; !hangs {
				m.verdict = m.draft
			}
			close(m.done)
		}
		go c.fly(how)
	}
	defer func() {
		_ = recover()
		once.Do(func() { land(false) })
	}()
	if paid {
		limit := members[0].table.limit(how)
		late := time.AfterFunc(limit+grace, func() { once.Do(func() { land(true) }) })
		defer late.Stop()
		failed = !carry(how, members, limit)
	}
}

// pays says whether a statement for so many is worth it. If not, they run by themselves, as up to alone do.
func (c *crowd) pays(members, alone int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	pays := members >= crowdLeast && c.underWay > alone
	if !pays {
		c.crowded = time.Time{}
	}
	return pays
}

// landed is told of the end of a statement for many.
func (c *crowd) landed(how together, start time.Time, failed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if failed {
		c.crowded, c.kinds[how].rests = time.Time{}, now.Add(crowdRest)
		return
	}
	c.crowded = now.Add(now.Sub(start))
}

// limit is how long a statement for many may take. A release has Limit in all, also behind a statement for others; and who
// leaves may have to wait for the statement's end.
func (t Table) limit(how together) time.Duration {
	switch own := t.config.DefaultContextTimeout; {
	case how != acquireTogether, t.remote == nil:
		return grace
	case own > 0:
		return min(own, Limit)
	}
	return Limit
}

// carry runs a statement under the context and the logger of its first member. It says whether that was of use.
func carry(how together, members []*member, limit time.Duration) (useful bool) {
	t := members[0].table
	ctx, cancel := context.WithTimeout(context.WithoutCancel(members[0].ctx), limit)
	defer cancel()
	doubt := true
	defer func() {
		for _, m := range members {
			m.draft.doubt = doubt
		}
	}()
	err := t.tryOnce(ctx, func(on executor) (err error) {
		if err := t.look(on); err != nil {
			return err
		}
		aboard := t.crowd.board(members)
		if len(aboard) == 0 {
			return nil
		}
		on = on.hushing(failures)
		if how == acquireTogether {
			return acquireFor(on, t, aboard)
		}
		return releaseFor(on, t, aboard, how)
	})
	f := failure(-1)
	if err != nil {
		f = t.failureOf(err)
	}
	doubt = f == unknown || f == unread
	return slices.ContainsFunc(members, func(m *member) bool { return m.draft.clear() })
}

func acquireFor(on executor, t Table, members []*member) error {
	requests := make([]Request, len(members))
	for i, m := range members {
		requests[i] = m.Request
	}
	start := time.Now()
	answers, err := t.acquireMany(on, requests)
	if err != nil {
		return err
	}
	for i, m := range members {
		m.draft.answer = answers[i]
		m.draft.answer.Start = start
	}
	return nil
}

func releaseFor(on executor, t Table, members []*member, how together) error {
	keys := make([]Key, len(members))
	for i, m := range members {
		keys[i] = m.Key
	}
	found, err := t.releaseMany(on, keys, how)
	if err != nil {
		return err
	}
	for i, m := range members {
		m.draft.found = found[i]
	}
	return nil
}
