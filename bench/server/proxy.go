// Package server has the servers that the benchmark measures on, and counts what they are asked.
package server

import (
	"io"
	"net"
	"sync/atomic"
)

// Proxy is a way to a server that counts round trips: how often a client, after it was answered, sends something.
type Proxy struct {
	listener net.Listener
	server   string
	trips    atomic.Int64
}

// NewProxy opens a proxy to the server at an address.
func NewProxy(server string) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: listener, server: server}
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

func (p *Proxy) serve(client net.Conn) {
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		_ = client.Close()
		return
	}
	var asked atomic.Bool // since the last answer
	go func() {
		_, _ = io.Copy(server, reader{client, func() {
			if !asked.Swap(true) {
				p.trips.Add(1)
			}
		}})
		_ = server.Close()
	}()
	_, _ = io.Copy(client, reader{server, func() { asked.Store(false) }})
	_ = client.Close()
}

// reader tells of what it reads before it hands it on.
type reader struct {
	io.Reader
	tell func()
}

func (r reader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		r.tell()
	}
	return n, err
}
