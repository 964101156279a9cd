package proxy

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// protocol is a database's, on one connection.
type protocol interface {
	// start passes all that comes before the first request. It fails if none follows.
	start() error
	// request is what the client sends up to the point where it waits for an answer, and the text of its statement.
	request() (bytes []byte, statement string, err error)
	// answer is the next message of an answer, and whether it is the last.
	answer() (bytes []byte, last bool, err error)
}

// conn is a client's connection and the server's that goes with it.
type conn struct {
	proxy          *Proxy
	client, server net.Conn
	fault          atomic.Pointer[Fault] // of the request that the server is at; drivers send the next after its answer
	hurry          chan struct{}         // closed when a request that is late must wait no longer
	over           chan struct{}         // closed when no more answers come
}

func (p *Proxy) serve(client net.Conn) {
	p.travel()
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		_ = client.Close()
		return
	}
	c := &conn{proxy: p, client: client, server: server, hurry: make(chan struct{}), over: make(chan struct{})}
	defer c.cut()
	if !p.add(c) {
		return
	}
	defer p.remove(c)

	talk := p.protocol(c)
	if talk.start() != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { defer c.cut(); c.requests(talk) })
	wg.Go(func() { defer c.cut(); defer close(c.over); c.answers(talk) })
	wg.Wait()
}

// cut ends the connection at once, on both sides. The server goes on with the statement that it has.
func (c *conn) cut() {
	reset(c.client)
	reset(c.server)
}

func reset(side net.Conn) {
	_ = side.(*net.TCPConn).SetLinger(0)
	_ = side.Close()
}

// requests passes what the client sends.
func (c *conn) requests(from protocol) {
	for {
		request, statement, err := from.request()
		if err != nil {
			return
		}
		fault := c.proxy.fault(c, statement)
		if fault != nil && fault.Unsent {
			return
		}
		c.fault.Store(fault)
		if fault != nil && fault.Late > 0 {
			c.sendLate(request, fault.Late)
			return
		}
		if c.send(c.server, request) != nil {
			return
		}
	}
}

// sendLate cuts the client off, and sends its last request to the server some time after that.
func (c *conn) sendLate(request []byte, delay time.Duration) {
	reset(c.client)
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.hurry:
	case <-c.over:
		return
	}
	if c.send(c.server, request) == nil {
		<-c.over
	}
}

// answers passes what the server sends, at any time.
func (c *conn) answers(from protocol) {
	for passed := 0; ; {
		message, last, err := from.answer()
		if err != nil {
			return
		}
		if fault := c.fault.Load(); fault == nil || passed < fault.After {
			if fault != nil && last {
				fault.Missed.Store(true)
			}
			if c.send(c.client, message) != nil {
				return
			}
			passed++
		} else if last { // the server has done what it was asked for
			return
		}
		if last {
			passed = 0
		}
	}
}

func (c *conn) send(to net.Conn, bytes []byte) error {
	c.proxy.travel()
	_, err := to.Write(bytes)
	return err
}
