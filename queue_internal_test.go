package dbmutex

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
	_ "github.com/gorm-dbmutex/dbmutex/pgnotify"
)

// The tests of this file have no database: they look at the queue by itself.

// nowhere is a pool that has no connection, with an error that no other try mends.
type nowhere struct{}

func (nowhere) Connect(context.Context) (driver.Conn, error) { return nil, sql.ErrTxDone }
func (nowhere) Driver() driver.Driver                        { return nil }

// queueOf is a mutex that nobody can acquire, and a set of queues of its own that listens as if releases were heard of.
func queueOf(t *testing.T) (*Mutex, *queueSet) {
	t.Helper()
	pool := sql.OpenDB(nowhere{})
	t.Cleanup(func() { _ = pool.Close() })
	table, err := locktable.New("postgres", "db_mutexes", "none")
	require.NoError(t, err)
	config := &gorm.Config{ConnPool: pool, Logger: logger.Discard}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // no statement is tried
	m := &Mutex{id: "job", settings: DefaultSettings(), ctx: ctx, config: config, table: table.On(config)}
	m.key = queueKey{pool: pool, table: "none", id: m.id, notifies: true}
	qs := &queueSet{queues: map[queueKey]*queue{}, byNotice: map[noticeKey][]*queue{}, listeners: map[*sql.DB]*listener{}}
	t.Cleanup(func() {
		qs.mu.Lock()
		defer qs.mu.Unlock()
		for _, q := range qs.queues {
			qs.remove(q)
		}
		qs.sweeper.Stop()
	})
	return m, qs
}

// leaseOf is a lease that a waiter has got.
func leaseOf(m *Mutex, w *waiter) *Lease {
	return newLease(m, w.request.Key, locktable.Answer{Token: 1, Start: time.Now()})
}

// heldBy is what a head sees.
func heldBy(leaseID string) (locktable.Answer, error) {
	row := &locktable.Row{LockID: "job", LeaseID: leaseID, Holder: "another"}
	return locktable.Answer{Held: row}, heldError("job", row)
}

// TestTheStagesOfAWaiter follows every arrow between a waiter's stages.
func TestTheStagesOfAWaiter(t *testing.T) {
	m, qs := queueOf(t)
	see := func(w *waiter) {
		seen, err := heldBy(newLeaseID("another pool"))
		qs.stillHeldBy(w, seen, err, time.Millisecond)
	}
	rested := func() *waiter {
		w := qs.join(m)
		require.Equal(t, asking, w.stage, "a head asks at once")
		see(w)
		require.Equal(t, resting, w.stage)
		return w
	}
	releaser := &Lease{mutex: m}
	promise := func(w *waiter) {
		qs.queues[m.key].stoodBack = time.Now()
		next, turn := qs.next(releaser, true)
		require.Same(t, w, next)
		require.Nil(t, turn)
		require.Equal(t, promised, w.stage)
	}
	ask := func(w *waiter, over bool) stage {
		s, _, _ := qs.ask(w, over)
		require.Equal(t, s, w.stage)
		return s
	}

	t.Run("it asks and acquires", func(t *testing.T) {
		w := rested()
		require.Equal(t, asking, ask(w, false))
		next, _ := qs.next(releaser, true)
		require.Nil(t, next, "it is at the database by itself")
		lease := leaseOf(m, w)
		require.Equal(t, remains{acquired: true}, qs.leave(w, lease))
		require.Equal(t, served, w.stage)
	})
	t.Run("it is handed a lease", func(t *testing.T) {
		w := rested()
		promise(w)
		require.Equal(t, promised, ask(w, false), "it does not ask meanwhile")
		again, _ := qs.next(releaser, true)
		require.Nil(t, again, "it is promised the mutex once")
		lease := leaseOf(m, w)
		qs.hand(w, lease, false)
		require.Equal(t, handed, ask(w, false))
		require.Equal(t, remains{acquired: true}, qs.leave(w, lease))
		require.Equal(t, served, w.stage)
	})
	t.Run("the promise is taken back", func(t *testing.T) {
		w := rested()
		promise(w)
		qs.hand(w, nil, true)
		require.Equal(t, resting, w.stage)
		require.Len(t, w.wake, 1)
		require.Equal(t, remains{doubt: true}, qs.leave(w, nil))
		require.Equal(t, gone, w.stage)
	})
	t.Run("its time is over while it is promised the mutex", func(t *testing.T) {
		w := rested()
		promise(w)
		require.Equal(t, hurried, ask(w, true))
		qs.hand(w, nil, false)
		require.Equal(t, asking, w.stage, "it is at the database still")
		qs.leave(w, nil)

		w = rested()
		promise(w)
		require.Equal(t, hurried, ask(w, true))
		qs.hand(w, leaseOf(m, w), false)
		require.Equal(t, handed, ask(w, true))
		qs.leave(w, w.lease)
	})
	t.Run("it has gone when it is handed a lease", func(t *testing.T) {
		w := rested()
		promise(w)
		require.Equal(t, remains{}, qs.leave(w, nil))
		late := leaseOf(m, w)
		qs.hand(w, late, false)
		require.Equal(t, released, late.current())
		require.Nil(t, w.lease)
	})
	t.Run("it has acquired by itself when it is handed the same lease", func(t *testing.T) {
		w := rested()
		promise(w)
		require.Equal(t, hurried, ask(w, true))
		own := leaseOf(m, w)
		require.Equal(t, remains{acquired: true}, qs.leave(w, own))
		same := leaseOf(m, w)
		qs.hand(w, same, false)
		require.Equal(t, released, same.current())
		require.Equal(t, held, own.current())
	})
}

func TestAReleaserPromisesTheMutexToTheHeadAlone(t *testing.T) {
	m, qs := queueOf(t)
	first, second := qs.join(m), qs.join(m)
	qs.queues[m.key].stoodBack = time.Now()
	seen, err := heldBy(newLeaseID("another pool"))
	qs.stillHeldBy(first, seen, err, time.Millisecond)
	for _, closed := range []bool{true, false} { // a release that leaves a row behind gives nobody the mutex
		next, turn := qs.next(&Lease{mutex: m}, !closed)
		require.Nil(t, turn)
		if closed {
			require.Nil(t, next)
		} else {
			require.Same(t, first, next)
		}
	}
	select {
	case <-second.head:
		require.Fail(t, "there are two heads")
	default:
	}
	qs.leave(first, nil)
	<-second.head
	m.settings.TTL = nil
	forever := qs.join(m)
	qs.leave(second, nil)
	qs.stillHeldBy(forever, seen, err, time.Millisecond)
	next, _ := qs.next(&Lease{mutex: m}, true)
	require.Nil(t, next, "a lease that never expires could be left for ever")
}

// hearOf makes a queue hear of a waiter of another process.
func hearOf(t *testing.T, m *Mutex, qs *queueSet, from uint64, msg message) {
	t.Helper()
	msg.Table, msg.ID, msg.From = m.table.ID(), m.id, from
	text, err := json.Marshal(msg)
	require.NoError(t, err)
	qs.hear(m.key.pool.(*sql.DB), string(text))
}

func TestAWaiterOfAnotherProcessHasItsTurn(t *testing.T) {
	m, qs := queueOf(t)
	w := qs.join(m)
	defer qs.leave(w, nil)
	q := w.queue
	q.stoodBack = time.Now()
	ticket := newLeaseID("another pool")
	hearOf(t, m, qs, q.number+1, message{Wait: &candidate{Ticket: ticket, Holder: "far away", Reserve: 2_000_000}})
	releaser := &Lease{mutex: m}
	_, turn := qs.next(releaser, true)
	require.Nil(t, turn, "this process has two clients: the waiter and the releaser")
	_, turn = qs.next(releaser, true)
	require.NotNil(t, turn)
	require.Equal(t, ticket, turn.Ticket)
	require.Equal(t, "far away", turn.Holder)
	require.Equal(t, 2*time.Second, turn.For)
	var sent message
	require.NoError(t, json.Unmarshal([]byte(turn.Message), &sent))
	require.Equal(t, ticket, sent.Turn)
	require.Equal(t, w.request.Ticket, sent.Wait.Ticket, "the message also tells of the head")
	for range 2 * localRuns {
		_, turn = qs.next(releaser, true)
		require.Nil(t, turn, "a turn is given once")
	}
}

func TestAMessageOfAnotherMutexOrOfThisQueueIsNotHeard(t *testing.T) {
	m, qs := queueOf(t)
	w := qs.join(m)
	defer qs.leave(w, nil)
	wait := &candidate{Ticket: newLeaseID("another pool")}
	hearOf(t, m, qs, w.queue.number, message{Wait: wait})
	hearOf(t, m, qs, w.queue.number+1, message{Wait: &candidate{Ticket: "short"}})
	qs.hear(m.key.pool.(*sql.DB), "no message")
	other := message{Table: m.table.ID() + 1, ID: m.id, Wait: wait}
	qs.hear(m.key.pool.(*sql.DB), other.text())
	other = message{Table: m.table.ID(), ID: "another", Wait: wait}
	qs.hear(m.key.pool.(*sql.DB), other.text())
	require.Empty(t, w.queue.others)
}

func TestATurnWakesItsWaiter(t *testing.T) {
	m, qs := queueOf(t)
	w := qs.join(m)
	defer qs.leave(w, nil)
	hearOf(t, m, qs, w.queue.number+1, message{Turn: w.request.Ticket})
	require.Len(t, w.wake, 1)
	_, _, turn := qs.ask(w, false)
	require.True(t, turn)
}

func TestAProcessStandsBack(t *testing.T) {
	m, qs := queueOf(t)
	w := qs.join(m)
	defer qs.leave(w, nil)
	q := w.queue
	long := time.Now().Add(-2 * standBackEvery)
	for _, test := range []struct {
		name      string
		local     bool
		stoodBack time.Time
		most      time.Duration
	}{
		{"another process had the mutex", false, long, 0},
		{"it has just done so", true, time.Now(), 0},
		{"it has not for long", true, long, standBackHearing},
	} {
		q.local, q.stoodBack, q.freed = test.local, test.stoodBack, time.Now().Add(time.Minute)
		pause := qs.standBack(q)
		require.Equal(t, test.most > 0, pause > 0, test.name)
		require.LessOrEqual(t, pause, time.Minute+test.most, test.name)
		require.Zero(t, qs.standBack(q), "it does so once")
	}
}

func TestADeafProcessThatKnowsOfAnotherHasAllItsRuns(t *testing.T) {
	m, qs := queueOf(t)
	m.key.notifies = false
	w := qs.join(m)
	defer qs.leave(w, nil)
	q, now := w.queue, time.Now()
	require.True(t, q.deaf())
	for _, test := range []struct {
		name    string
		foreign time.Time
		runs    int
		want    bool
	}{
		{"the other is yet to see it", now, 1, false},
		{"it has had its runs", now, localRuns, true},
		{"it has seen nobody for long", now.Add(-2 * rivalsWithin), 1, true},
	} {
		q.local, q.stoodBack, q.freed = true, now.Add(-2*standBackEvery), now
		q.foreign, q.sinceBack = test.foreign, test.runs
		require.Equal(t, test.want, qs.standBack(q) > 0, test.name)
	}
}

func TestQuestionsAreSpaced(t *testing.T) {
	b := backoff{next: pollFirst, most: pollLast}
	seen, _ := heldBy("first")
	for _, next := range []time.Duration{pollFirst, 2 * pollFirst, 4 * pollFirst} {
		require.Equal(t, next, b.next)
		pause := b.after(seen, false, false, 0)
		require.GreaterOrEqual(t, pause, next/2)
		require.Less(t, pause, next/2+next)
	}
	for range 20 {
		b.after(seen, false, false, 0)
	}
	require.Equal(t, pollLast, b.next)
	require.Equal(t, time.Hour, b.after(seen, false, false, time.Hour), "the answer to a message may be on its way")

	until := time.Now()
	seen.Held.ExpiresAt = &until
	for _, left := range []time.Duration{time.Millisecond, 0} { // SQLite does not see a part of a millisecond
		seen.Left = left
		require.LessOrEqual(t, b.after(seen, false, false, time.Hour), 2*time.Millisecond, "the lease runs out before")
	}
	seen.Ended = true
	require.Equal(t, time.Hour, b.after(seen, false, false, time.Hour), "its row is pinned")
	seen.Ended = false

	seen.Left = math.MaxInt64
	require.Positive(t, b.after(seen, false, false, time.Millisecond), "a rest without end would be forever")
	seen.Held.ExpiresAt = nil

	other, _ := heldBy("second")
	b.after(other, false, true, 0)
	require.Equal(t, pollLast, b.next, "this change was heard of")
	third, _ := heldBy("third")
	b.after(third, false, false, 0)
	require.Equal(t, 2*pollFirst, b.next)
	for range 20 {
		b.after(third, false, false, 0)
	}
	require.Equal(t, pollBusy, b.next, "the gaps are short, and are not heard of")

	fourth, _ := heldBy("fourth")
	b.after(fourth, true, true, 0)
	require.Equal(t, pollLast, b.most)
	for range 20 {
		b.after(fourth, true, true, 0)
	}
	require.Equal(t, pollHearing, b.next, "its end will be heard of")
	b.after(fourth, false, false, 0)
	require.Equal(t, pollLast, b.next, "not any more")
	b.most = pollHearing
	fourth.Ended = true
	b.after(fourth, true, true, 0)
	require.Equal(t, pollLast, b.next, "nobody hears of the end of what pins it")

	fifth, _ := heldBy("fifth")
	b.after(fifth, true, false, 0)
	for range 20 {
		b.after(fifth, true, false, 0)
	}
	require.Equal(t, pollBusy, b.next, "who does not notify once will not next time")
}
