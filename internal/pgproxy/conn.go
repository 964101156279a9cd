package pgproxy

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// conn is a client's connection and the server's that goes with it.
type conn struct {
	proxy          *Proxy
	client, server net.Conn
	fault          atomic.Pointer[Fault] // of the request that the server is at; pgx sends the next after its answer
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

	backend := pgproto3.NewBackend(client, client)
	hello, err := backend.ReceiveStartupMessage()
	if err != nil {
		return
	}
	bytes, err := hello.Encode(nil)
	if err != nil || c.send(server, bytes) != nil {
		return
	}
	if _, cancels := hello.(*pgproto3.CancelRequest); cancels {
		_, _ = io.Copy(client, server)
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { defer c.cut(); c.requests(backend) })
	wg.Go(func() { defer c.cut(); defer close(c.over); c.answers() })
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

// requests passes what the client sends. The server must trust its users, as no password is understood.
func (c *conn) requests(client *pgproto3.Backend) {
	prepared := map[string]string{}
	for {
		var request []byte
		statement := ""
		for whole := false; !whole; {
			message, err := client.Receive()
			if err != nil {
				return
			}
			if request, err = message.Encode(request); err != nil {
				return
			}
			switch m := message.(type) {
			case *pgproto3.Parse:
				prepared[m.Name] = m.Query
				statement = "PREPARE " + m.Query
			case *pgproto3.Bind:
				statement = prepared[m.PreparedStatement]
			case *pgproto3.Query:
				statement, whole = m.String, true
			case *pgproto3.Sync, *pgproto3.Terminate:
				whole = true
			}
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
func (c *conn) answers() {
	frontend := pgproto3.NewFrontend(c.server, c.server)
	for passed := 0; ; {
		message, err := frontend.Receive()
		if err != nil {
			return
		}
		bytes, err := message.Encode(nil)
		if err != nil {
			return
		}
		_, done := message.(*pgproto3.ReadyForQuery)
		if fault := c.fault.Load(); fault == nil || passed < fault.After {
			if c.send(c.client, bytes) != nil {
				return
			}
			passed++
		} else if done { // the server has done what it was asked for
			return
		}
		if done {
			passed = 0
		}
	}
}

func (c *conn) send(to net.Conn, bytes []byte) error {
	c.proxy.travel()
	_, err := to.Write(bytes)
	return err
}
