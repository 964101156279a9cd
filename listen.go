package dbmutex

import (
	"context"
	"database/sql"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
	"github.com/gorm-dbmutex/dbmutex/internal/wake"
)

// relistenMost is the longest pause before a listener that failed tries again. Its first pause is pollLast.
const relistenMost = time.Minute

// listener is a pool's connection that hears of releases and of waiters in other processes. It lives while any queue of the
// pool listens.
type listener struct {
	queues int
	hears  bool // it has proof that notifications reach it
	stop   context.CancelFunc
}

// hears says whether a queue hears of waiters of other processes.
func (q *queue) hears() bool { return q.listener != nil && q.listener.hears }

// deaf says that it does not, and would not if there were any.
func (q *queue) deaf() bool { return !q.key.listens() || q.listener != nil && !q.listener.hears }

// listen makes a queue hear of other processes.
func (qs *queueSet) listen(q *queue) {
	if q.listener != nil || !q.key.listens() {
		return
	}
	pool := q.key.pool.(*sql.DB)
	l := qs.listeners[pool]
	if l == nil {
		ctx, stop := context.WithCancel(context.Background())
		l = &listener{stop: stop}
		qs.listeners[pool] = l
		go qs.keepListening(ctx, pool, l, wake.Listen)
	}
	l.queues++
	q.listener = l
}

// unlisten ends the listener with the last queue that listens.
func (qs *queueSet) unlisten(q *queue) {
	l := q.listener
	if l == nil {
		return
	}
	q.listener = nil
	if l.queues--; l.queues == 0 {
		l.stop()
		delete(qs.listeners, q.key.pool.(*sql.DB))
	}
}

// watch makes a queue tell of releases, until stop.
func (qs *queueSet) watch(m *Mutex) (news <-chan struct{}, stop func()) {
	watcher := make(chan struct{}, 1)
	qs.mu.Lock()
	defer qs.mu.Unlock()
	var used time.Time // to watch is no use that lingers
	if q := qs.queues[m.key]; q != nil {
		used = q.used
	}
	q := qs.of(m)
	q.used = used
	q.watchers = append(q.watchers, watcher)
	qs.listen(q)
	return watcher, func() {
		qs.mu.Lock()
		defer qs.mu.Unlock()
		q.watchers = slices.DeleteFunc(q.watchers, func(other chan struct{}) bool { return other == watcher })
		if qs.queues[q.key] == q && q.idle() {
			qs.remove(q)
		}
	}
}

// listened are the pools that have a listener.
func (qs *queueSet) listened() (pools []*sql.DB) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	for pool := range qs.listeners {
		pools = append(pools, pool)
	}
	return pools
}

func (qs *queueSet) keepListening(ctx context.Context, pool *sql.DB, l *listener, listen wake.Listener) {
	pause := pollLast
	hears := func(now bool) {
		qs.mu.Lock()
		defer qs.mu.Unlock()
		l.hears = now
	}
	ready := func() {
		pause = pollLast
		hears(true)
		qs.wakeAll(pool)
	}
	notified := func(channel, payload string) {
		if channel == locktable.ReleaseChannel {
			table, id, _ := strings.Cut(payload, " ")
			qs.wakeID(pool, table, id)
		} else {
			qs.hear(pool, payload)
		}
	}
	for ctx.Err() == nil {
		_ = listen(ctx, pool, []string{locktable.ReleaseChannel, locktable.MessageChannel}, ready, notified)
		hears(false)
		_ = locktable.Sleep(ctx, pause) // the poll goes on meanwhile
		pause = min(2*pause, relistenMost)
	}
}

// wakeID wakes the heads of the queues that a notification of a release is for: of a mutex, or of a semaphore's slot, in the
// table with a Table.ID.
func (qs *queueSet) wakeID(pool *sql.DB, table, id string) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	id, slot := locktable.SplitSlot(id)
	for _, q := range qs.byNotice[noticeKey{pool, id, slot > 0}] {
		if strconv.FormatUint(uint64(q.table.ID()), 10) == table {
			q.changes++
			q.signal()
		}
	}
}

// wakeAll wakes the heads of all queues of a pool.
func (qs *queueSet) wakeAll(pool *sql.DB) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	for key, q := range qs.queues {
		if key.pool == pool && key.notifies {
			q.changes++
			q.signal()
		}
	}
}

// hear passes a message, of another process or of this one, to the queue that it is for.
func (qs *queueSet) hear(pool *sql.DB, payload string) {
	var m message
	if json.Unmarshal([]byte(payload), &m) != nil {
		return
	}
	qs.mu.Lock()
	defer qs.mu.Unlock()
	for _, q := range qs.byNotice[noticeKey{pool, m.ID, false}] {
		if q.table.ID() == m.Table {
			q.hear(m)
		}
	}
}

// knocked makes a queue that listens: a waiter in another process has left its mark, which this process did not hear of.
func (qs *queueSet) knocked(m *Mutex) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	qs.listen(qs.of(m))
}

// unaware says whether this process could hear of waiters in other processes, but does not listen.
func (qs *queueSet) unaware(key queueKey) bool {
	if !key.takesTurns() {
		return false
	}
	qs.mu.Lock()
	defer qs.mu.Unlock()
	q := qs.queues[key]
	return q == nil || q.listener == nil
}
