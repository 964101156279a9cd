package dbmutex

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

const (
	// A waiter tells other processes of itself when it has asked announceAt times, and again after remindAfter. It also does
	// when it was passed by a process that has told of nobody, and so may not have listened: after remindPause, then after
	// twice as long. Other processes believe it for believed.
	announceAt  = 2
	remindAfter = 2 * time.Second
	remindPause = 50 * time.Millisecond
	believed    = 10 * time.Second

	// A waiter that has had its turn, or has gone, is remembered for as long as an older message of its may come.
	remembered = time.Second

	// The mutex is kept for a waiter whose turn it is for reserveLeast and some round trips of its, up to reserveMost.
	reserveLeast = time.Second
	reserveMost  = 5 * time.Second
	reserveTrips = 8

	// holderLimit is how many characters of its holder's name a waiter tells: a notification has less than 8000 bytes.
	holderLimit = 256
)

// message is what processes tell each other of their waiters.
type message struct {
	Table uint32     `json:"table"` // the same id in another table is another mutex
	ID    string     `json:"id"`
	From  uint64     `json:"from"`           // the queue that it comes from
	Turn  string     `json:"turn,omitempty"` // the ticket that the mutex is kept under
	Gone  string     `json:"gone,omitempty"` // the ticket of a waiter that waits no more
	Wait  *candidate `json:"wait,omitempty"` // a waiter
}

// candidate is a waiter, as it tells other processes of itself.
type candidate struct {
	Ticket  string `json:"ticket"` // what the mutex is to be kept under for it; never a lease's id, so that it brings none back
	Holder  string `json:"holder"`
	Reserve int64  `json:"reserve"` // for how long it needs the mutex to be kept for it, in microseconds
}

// stranger is a waiter of another process.
type stranger struct {
	candidate
	heard time.Time
	over  bool // it has had its turn or has gone
}

func (m message) text() string {
	text, _ := json.Marshal(m) // nothing in it can fail
	return string(text)
}

// goneMessage says that a waiter waits no more.
func (m *Mutex) goneMessage(ticket string) string {
	return message{Table: m.table.ID(), ID: m.id, Gone: ticket}.text()
}

func (q *queue) message() message {
	return message{Table: q.table.ID(), ID: q.key.id, From: q.number}
}

// announce is what a waiter tells of itself when a lease is in its way.
func (q *queue) announce(w *waiter, inTheWay string, now time.Time) *candidate {
	w.announced.at, w.announced.passedBy = now, inTheWay
	w.announced.times++
	return &candidate{
		Ticket:  w.request.Ticket,
		Holder:  shortened(w.request.Holder),
		Reserve: min(reserveLeast+reserveTrips*q.trip, reserveMost).Microseconds(),
	}
}

// announces says whether it is time for a waiter to tell other processes of itself.
func (q *queue) announces(w *waiter, inTheWay string, now time.Time) bool {
	since := now.Sub(w.announced.at)
	if w.announced.times == 0 || since >= remindAfter {
		return w.asks >= announceAt || q.trip >= remindPause/2
	}
	known := func(o *stranger) bool { return samePool(o.Ticket, inTheWay) }
	pause := remindPause << min(w.announced.times-1, 5)
	return inTheWay != w.announced.passedBy && since >= pause && !slices.ContainsFunc(q.others, known)
}

// hear keeps what a message tells.
func (q *queue) hear(m message) {
	now := time.Now()
	if m.Turn != "" {
		q.changes++
	}
	q.others = slices.DeleteFunc(q.others, func(o *stranger) bool { return o.outdated(now) })
	for _, ticket := range []string{m.Turn, m.Gone} {
		if ticket != "" {
			o := q.stranger(ticket)
			o.heard, o.over = now, true
		}
	}
	own := func(w *waiter) bool { return m.Turn != "" && w.request.Ticket == m.Turn }
	if i := slices.IndexFunc(q.waiters, own); i >= 0 {
		q.waiters[i].turn = true
		q.waiters[i].signal()
	}
	if m.Wait == nil || m.From == q.number || len(m.Wait.Ticket) != locktable.LeaseIDLength {
		return
	}
	q.used = now
	if o := q.stranger(m.Wait.Ticket); !o.over {
		o.candidate, o.heard = m.Wait.plausible(), now
	}
}

// stranger is the one with a ticket; it is made if there is none.
func (q *queue) stranger(ticket string) *stranger {
	i := slices.IndexFunc(q.others, func(o *stranger) bool { return o.Ticket == ticket })
	if i < 0 {
		i = len(q.others)
		q.others = append(q.others, &stranger{candidate: candidate{Ticket: ticket}})
	}
	return q.others[i]
}

// outdated says whether there is nothing in it any more.
func (o *stranger) outdated(now time.Time) bool {
	if o.over {
		return now.Sub(o.heard) >= remembered
	}
	return now.Sub(o.heard) >= believed
}

// plausible is a candidate that can do no harm: anybody may send a notification.
func (c candidate) plausible() candidate {
	c.Reserve = max(reserveLeast.Microseconds(), min(c.Reserve, reserveMost.Microseconds()))
	c.Holder = shortened(strings.ReplaceAll(c.Holder, "\x00", ""))
	return c
}

func shortened(holder string) string {
	runes := []rune(holder)
	return string(runes[:min(len(runes), holderLimit)])
}
