//go:build linux

package torture

import (
	"context"
	"strings"
	"sync"
	"time"
)

// bell calls clients together.
type bell struct {
	mu   sync.Mutex
	next chan struct{} // closed when it rings
}

func newBell() *bell { return &bell{next: make(chan struct{})} }

// wait waits until the bell rings, or has stopped.
func (b *bell) wait() {
	b.mu.Lock()
	next := b.next
	b.mu.Unlock()
	<-next
}

// ring rings until stop.
func (b *bell) ring(stop context.Context) {
	for stop.Err() == nil {
		time.Sleep(20 * time.Millisecond)
		b.mu.Lock()
		close(b.next)
		b.next = make(chan struct{})
		b.mu.Unlock()
	}
	b.mu.Lock()
	close(b.next)
	b.mu.Unlock()
}

// notes are those of a crowd's verbs, by the mutex. A statement that a crowd shares has the context of one of them.
type notes struct {
	mu   sync.Mutex
	byID map[string]*note
}

var crowdsNotes = notes{byID: map[string]*note{}}

func (n *notes) enter(id string, of *note) (leave func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.byID[id] = of
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.byID, id)
	}
}

// lost counts a statement without an answer for all whose mutexes it names.
func (n *notes) lost(ids string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, of := range n.byID {
		if strings.Contains(ids, id) {
			of.lost.Add(1)
		}
	}
}
