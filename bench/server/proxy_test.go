package server_test

import (
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/bench/server"
)

func TestProxyCountsRoundTrips(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = echo.Close() }()
	go func() {
		conn, err := echo.Accept()
		if err == nil {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	proxy, err := server.NewProxy(echo.Addr().String())
	require.NoError(t, err)
	defer proxy.Close()
	conn, err := net.Dial("tcp", proxy.Addr())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()

	for range 3 {
		_, err = conn.Write([]byte("question"))
		require.NoError(t, err)
		_, err = io.ReadFull(conn, make([]byte, len("question")))
		require.NoError(t, err)
	}

	assert.Equal(t, int64(3), proxy.RoundTrips())
}
