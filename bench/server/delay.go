package server

import (
	"net"
	"slices"
	"time"
)

const (
	chunkSize = 32 << 10
	onTheWay  = 1024 // chunks, which is more than anybody sends in a delay
)

// chunk is what was read at once, and when it arrives.
type chunk struct {
	bytes []byte
	due   time.Time
}

// pass hands on what one connection sends to another, each chunk after a delay of its own, so that the delay limits no
// throughput. At the end of the one it closes the other.
func pass(to, from net.Conn, delay time.Duration) {
	chunks := make(chan chunk, onTheWay)
	go func() {
		defer close(chunks)
		buffer := make([]byte, chunkSize)
		for {
			n, err := from.Read(buffer)
			if n > 0 {
				chunks <- chunk{slices.Clone(buffer[:n]), time.Now().Add(delay)}
			}
			if err != nil {
				return
			}
		}
	}()
	for c := range chunks {
		time.Sleep(time.Until(c.due))
		_, _ = to.Write(c.bytes) // if nobody is there any more, the rest is thrown away
	}
	_ = to.Close()
}
