package dbmutex

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/wake"
)

// listener is a pool's connection that hears of releases and of waiters in other processes. It lives while any queue of the
// pool listens.
type listener struct {
	queues int
	hears  bool // it has proof that notifications reach it
	stop   context.CancelFunc
}

// listen makes a queue hear of other processes.
func (a *waiting) listen(q *queue) {
	if q.listener != nil || !q.key.listens() {
		return
	}
	pool := q.key.pool.(*sql.DB)
	l := a.listeners[pool]
	if l == nil {
		ctx, stop := context.WithCancel(context.Background())
		l = &listener{stop: stop}
		a.listeners[pool] = l
		go a.keepListening(ctx, pool, l, wake.Listen)
	}
	l.queues++
	q.listener = l
}

// unlisten ends the listener with the last queue that listens.
func (a *waiting) unlisten(q *queue) {
	l := q.listener
	if l == nil {
		return
	}
	q.listener = nil
	if l.queues--; l.queues == 0 {
		l.stop()
		delete(a.listeners, q.key.pool.(*sql.DB))
	}
}

func (a *waiting) keepListening(ctx context.Context, pool *sql.DB, l *listener, listen wake.Listener) {
	pause := pollLast
	hears := func(now bool) {
		a.mu.Lock()
		defer a.mu.Unlock()
		l.hears = now
	}
	ready := func() {
		pause = pollLast
		hears(true)
		a.notified(pool, nil)
	}
	notified := func(channel, payload string) {
		if channel == notifyChannel {
			a.notified(pool, &payload)
		} else {
			a.told(pool, payload)
		}
	}
	for ctx.Err() == nil {
		_ = listen(ctx, pool, []string{notifyChannel, turnChannel}, ready, notified)
		hears(false)
		_ = sleep(ctx, pause) // the poll goes on meanwhile
		pause = min(2*pause, time.Minute)
	}
}

// notified wakes the heads of the queues for an id, or of all.
func (a *waiting) notified(pool *sql.DB, id *string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if id != nil {
		for _, q := range a.byID[poolID{pool, *id}] {
			q.heard++
			q.signal()
		}
		return
	}
	for key, q := range a.queues {
		if key.pool == pool && key.notifies {
			q.heard++
			q.signal()
		}
	}
}

// told passes a message of another process's, or of this one's, to the queue that it is for.
func (a *waiting) told(pool *sql.DB, payload string) {
	var m message
	if json.Unmarshal([]byte(payload), &m) != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, q := range a.byID[poolID{pool, m.ID}] {
		if q.dialect.(notifying).tableID() == m.Table {
			q.hear(m)
		}
	}
}

// isClosed asks a pool without touching a connection.
func isClosed(pool *sql.DB) bool {
	done, cancel := context.WithCancel(context.Background())
	cancel()
	return !errors.Is(pool.PingContext(done), context.Canceled)
}
