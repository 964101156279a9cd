// Package proxy is a network between a client and its database server that breaks where a test wants it to. It reads the
// messages of the database's protocol, so that it can lose a certain part of the answer to a certain statement.
package proxy

import (
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// language is what a proxy must know of a kind of database.
type language struct {
	parse func(dsn string) (*target, error)
	on    func(*conn) protocol
}

// languages are those that a proxy knows, by the kind's name.
var languages = map[string]language{}

// target is what a DSN says of the server.
type target struct {
	address string
	trusts  bool // by TCP, without TLS, without a password
	at      func(address *net.TCPAddr) (dsn string)
}

// Fault is what becomes of a request, which is all that a client sends up to the point where it waits for an answer. The
// connection is cut, unless the answer is too short for that.
type Fault struct {
	Unsent bool // the server does not get the request
	After  int  // how many messages of the answer arrive; the server has done all that it was asked for

	// Late is how long after the client was cut off the server gets the request. No message of its answer arrives.
	Late time.Duration

	// Missed says afterwards that nothing was cut, as the answer has no more than After messages.
	Missed atomic.Bool
}

// Proxy is one such network.
type Proxy struct {
	// Database is the server's, through the proxy.
	Database *testdb.Database

	listener net.Listener
	server   string // its address
	protocol func(*conn) protocol

	mu      sync.Mutex
	conns   map[*conn]bool // nil once the proxy has ended
	late    map[*conn]bool // those of them whose last request is late
	choose  func(statement string) *Fault
	frozen  chan struct{} // closed when the network thaws; nil = it flows
	refuses bool
	delay   time.Duration
}

// New starts a proxy to the server of a database, which ends with the test. The test is skipped if the server wants a
// password or TLS, or is not reached by TCP.
func New(t testing.TB, d *testdb.Database) *Proxy {
	t.Helper()
	language := languages[d.Name]
	to, err := language.parse(d.DSN)
	if err != nil {
		t.Fatal(err)
	}
	if !to.trusts {
		t.Skip("a proxy needs a server that trusts its users, by TCP and without TLS")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	through := *d
	through.DSN = to.at(listener.Addr().(*net.TCPAddr))
	p := &Proxy{
		Database: &through,
		listener: listener,
		server:   to.address,
		protocol: language.on,
		conns:    map[*conn]bool{},
		late:     map[*conn]bool{},
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(client) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		p.Thaw()
		p.end()
		wg.Wait()
	})
	return p
}

// Choose sets what becomes of requests, by the text of their statement; for one that only prepares it, by PREPARE and the
// text. nil lets a request pass.
func (p *Proxy) Choose(choose func(statement string) *Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.choose = choose
}

// Freeze lets nothing pass, in either direction, until Thaw.
func (p *Proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen == nil {
		p.frozen = make(chan struct{})
	}
}

// Thaw ends Freeze: what was sent meanwhile arrives.
func (p *Proxy) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen != nil {
		close(p.frozen)
		p.frozen = nil
	}
}

// Drag delays every request and every message of an answer.
func (p *Proxy) Drag(delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = delay
}

// Reset cuts all connections, as a firewall does that restarts.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.cut()
	}
}

// Refuse cuts all connections, and every new one, until Admit.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	p.refuses = true
	p.mu.Unlock()
	p.Reset()
}

// Admit ends Refuse.
func (p *Proxy) Admit() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuses = false
}

// Deliver lets the server have all requests that are late now, and returns when it has answered them.
func (p *Proxy) Deliver() {
	p.mu.Lock()
	late := slices.Collect(maps.Keys(p.late))
	clear(p.late)
	p.mu.Unlock()
	for _, c := range late {
		close(c.hurry)
	}
	for _, c := range late {
		<-c.over
	}
}

func (p *Proxy) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.cut()
	}
	p.conns = nil
}

// travel is the time that a message takes.
func (p *Proxy) travel() {
	p.mu.Lock()
	frozen, delay := p.frozen, p.delay
	p.mu.Unlock()
	if frozen != nil {
		<-frozen
	}
	time.Sleep(delay)
}

func (p *Proxy) fault(c *conn, statement string) *Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.choose == nil {
		return nil
	}
	fault := p.choose(statement)
	if fault != nil && fault.Late > 0 {
		p.late[c] = true
	}
	return fault
}

func (p *Proxy) add(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil || p.refuses {
		return false
	}
	p.conns[c] = true
	return true
}

func (p *Proxy) remove(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	delete(p.late, c)
}
