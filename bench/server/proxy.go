// Package server has the servers that the benchmark measures on, counts what they are asked, and puts them far away.
package server

import (
	"net"
	"sync/atomic"
	"time"
)

// Proxy is a way to a server. It counts round trips: how often a client, after it was answered, sends something. Every byte
// takes the proxy's delay, each way, and then comes in order.
type Proxy struct {
	listener net.Listener
	server   string
	delay    time.Duration
	trips    atomic.Int64
}

// NewProxy opens a proxy to the server at an address, with a delay each way.
func NewProxy(server string, delay time.Duration) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: listener, server: server, delay: delay}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go p.serve(client)
		}
	}()
	return p, nil
}

// Addr is where clients find it.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// RoundTrips is their number so far, over all connections.
func (p *Proxy) RoundTrips() int64 { return p.trips.Load() }

// Close takes no more connections.
func (p *Proxy) Close() { _ = p.listener.Close() }

func (p *Proxy) serve(conn net.Conn) {
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		_ = conn.Close()
		return
	}
	client := &client{Conn: conn, trips: &p.trips}
	go pass(server, client, p.delay)
	pass(client, server, p.delay)
}

// client counts the round trips of a connection.
type client struct {
	net.Conn
	trips *atomic.Int64
	asked atomic.Bool // since the last answer
}

func (c *client) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && !c.asked.Swap(true) {
		c.trips.Add(1)
	}
	return n, err
}

func (c *client) Write(b []byte) (int, error) {
	c.asked.Store(false)
	return c.Conn.Write(b)
}
