package server_test

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/bench/server"
)

// throughProxy connects to a server that sends back what it gets.
func throughProxy(t *testing.T, delay time.Duration) (*server.Proxy, net.Conn) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = echo.Close() })
	go func() {
		conn, err := echo.Accept()
		if err == nil {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	proxy, err := server.NewProxy(echo.Addr().String(), delay)
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	conn, err := net.Dial("tcp", proxy.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return proxy, conn
}

func TestProxyCountsRoundTrips(t *testing.T) {
	for _, delay := range []time.Duration{0, 10 * time.Millisecond} {
		proxy, conn := throughProxy(t, delay)
		for range 3 {
			_, err := conn.Write([]byte("question"))
			require.NoError(t, err)
			_, err = io.ReadFull(conn, make([]byte, len("question")))
			require.NoError(t, err)
		}
		assert.Equal(t, int64(3), proxy.RoundTrips(), delay)
	}
}

func TestProxyDelaysEveryByteBothWaysInOrder(t *testing.T) {
	const delay, numbers = 20 * time.Millisecond, 100
	_, conn := throughProxy(t, delay)
	sent := make(chan time.Time, numbers)
	go func() {
		for i := range numbers {
			sent <- time.Now()
			_, _ = fmt.Fprintf(conn, "%03d", i)
			time.Sleep(time.Millisecond) // many are on the way at once
		}
	}()
	for i := range numbers {
		text := make([]byte, 3)
		_, err := io.ReadFull(conn, text)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("%03d", i), string(text))
		require.GreaterOrEqual(t, time.Since(<-sent), 2*delay)
	}
}

func TestProxyReadsOnWhileBytesAreOnTheWay(t *testing.T) {
	const delay, size = time.Minute, 16 << 20 // more than connections hold by themselves
	_, conn := throughProxy(t, delay)
	require.NoError(t, conn.SetWriteDeadline(time.Now().Add(delay)))

	_, err := conn.Write(make([]byte, size))

	require.NoError(t, err)
}

func TestProxyPassesOnTheEndOfAConnection(t *testing.T) {
	_, conn := throughProxy(t, 10*time.Millisecond)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())

	_, err := io.ReadAll(conn)

	require.NoError(t, err)
}
