package locktable

import (
	"context"
	"database/sql"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
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
	taken    bool // a statement has it; guarded by crowd.mu
	done     chan struct{}
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

// gathering makes calls wait for each other; nil if none do.
var gathering atomic.Pointer[gather]

type gather struct {
	prefix  string
	n, come int // guarded by crowd.mu
}

// takes says whether a call waits for others.
func (g *gather) takes(lockID string) bool {
	return g != nil && g.come < g.n && strings.HasPrefix(lockID, g.prefix)
}

// Gather is for tests: the next n calls whose lock_id has the prefix run as one statement, once all have come.
func Gather(prefix string, n int) { gathering.Store(&gather{prefix: prefix, n: n}) }

// Waiting is for tests: how many acquires wait for others.
func (t Table) Waiting() int {
	t.crowd.mu.Lock()
	defer t.crowd.mu.Unlock()
	return len(t.crowd.kinds[acquireTogether].waiting)
}

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
	_, plain := t.config.ConnPool.(*sql.DB)
	return t.combining != nil && plain
}

// enqueue makes a call a member, or returns nil if it is to run by itself.
func (t Table) enqueue(ctx context.Context, how together, r Request) *member {
	c := &t.crowd
	c.mu.Lock()
	defer c.mu.Unlock()
	c.underWay++
	k := &c.kinds[how]
	g := gathering.Load()
	gathers := g.takes(r.LockID)
	switch {
	case !t.inspected.Load(), k.ids[r.LockID], len(k.waiting) >= crowdMost:
		return nil
	case gathers:
	case !k.flying && c.underWay <= t.alone() && !time.Now().Before(c.crowded):
		return nil
	case !k.rests.IsZero():
		if time.Now().Before(k.rests) {
			return nil
		}
		k.rests = time.Time{}
	}
	m := &member{Request: r, ctx: ctx, table: t, gathered: gathers, done: make(chan struct{})}
	if k.ids == nil {
		k.ids = map[string]bool{}
	}
	k.waiting, k.ids[r.LockID] = append(k.waiting, m), true
	if gathers {
		g.come++
	}
	if !k.flying && (!gathers || g.come == g.n) {
		k.flying = true
		go c.fly(how)
	}
	return m
}

// withdraw takes a member back, unless a statement has it.
func (c *crowd) withdraw(how together, m *member) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := &c.kinds[how]
	if m.taken {
		return false
	}
	k.waiting = slices.DeleteFunc(k.waiting, func(other *member) bool { return other == m })
	delete(k.ids, m.LockID)
	return true
}

// take gives the members of the next statement. Without any, no statement follows.
func (c *crowd) take(how together) (members []*member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := &c.kinds[how]
	members, k.waiting = k.waiting, nil
	clear(k.ids)
	for _, m := range members {
		m.taken = true
	}
	k.flying = len(members) > 0
	return members
}

// fly runs a statement for those that wait, and sees to the next one. If a callback of GORM's panics, or ends the goroutine,
// the members run it again by themselves.
func (c *crowd) fly(how together) {
	runtime.Gosched() // so that more can come
	members := c.take(how)
	if members == nil {
		return
	}
	start, failed := time.Now(), true
	paid := members[0].gathered || c.pays(len(members), members[0].table.alone())
	defer func() {
		_ = recover()
		if paid {
			c.landed(how, start, failed)
		}
		for _, m := range members {
			close(m.done)
		}
		go c.fly(how)
	}()
	if paid {
		failed = !carry(how, members)
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

// carry runs a statement under the context and the logger of its first member. It says whether that was of use.
func carry(how together, members []*member) (done bool) {
	t, limit := members[0].table, Limit
	// A release has Limit in all, also behind a statement for others; and who leaves may have to wait for the statement's end.
	if how != acquireTogether || t.remote == nil {
		limit = grace
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(members[0].ctx), limit)
	defer cancel()
	doubt := true
	defer func() {
		for _, m := range members {
			m.doubt = doubt
		}
	}()
	err := t.tryOnce(ctx, func(on executor) (err error) {
		if err := t.look(on); err != nil {
			return err
		}
		on = on.hushing(failures)
		if how == acquireTogether {
			return acquireFor(on, t, members)
		}
		keys := make([]Key, len(members))
		for i, m := range members {
			keys[i] = m.Key
		}
		found, err := t.releaseMany(on, keys, how)
		if err != nil {
			return err
		}
		for i, m := range members {
			m.found = found[i]
		}
		return nil
	})
	f := failure(-1)
	if err != nil {
		f = t.failureOf(err)
	}
	doubt = f == unknown || f == unread
	return err == nil
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
		m.answer = answers[i]
		m.answer.Start = start
	}
	return nil
}
