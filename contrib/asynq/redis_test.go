package asynqmutex_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// supervisor ends the server with this process, however that ends: its standard input is a pipe that only this process
// writes to.
const supervisor = `"$@" </dev/null >log 2>&1 & read -r _; kill $!; wait $!; rm -rf "$PWD"`

// redisServers start a server that ends with the test.
var redisServers = map[string]func(t *testing.T) asynq.RedisClientOpt{
	"miniredis": func(t *testing.T) asynq.RedisClientOpt {
		return asynq.RedisClientOpt{Addr: miniredis.RunT(t).Addr()}
	},
	"redis": startRedis,
}

func startRedis(t *testing.T) asynq.RedisClientOpt {
	program, err := exec.LookPath("redis-server")
	if err != nil && os.Getenv("DBMUTEX_TEST_POSTGRES") != "required" {
		t.Skip("no redis-server found: install it (Debian: apt-get install redis-server)")
	}
	require.NoError(t, err)
	folder, err := os.MkdirTemp("", "dbmutex-redis-") // a socket's path must be short, t.TempDir's is not
	require.NoError(t, err)
	socket := filepath.Join(folder, "socket")
	server := exec.Command("/bin/sh", "-c", supervisor, "sh", program, "--port", "0", "--unixsocket", socket, "--save", "")
	server.Dir = folder
	alive, err := server.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, server.Start())
	t.Cleanup(func() {
		require.NoError(t, alive.Close())
		_ = server.Wait()
	})
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: socket})
	defer func() { require.NoError(t, client.Close()) }()
	require.Eventually(t, func() bool { return client.Ping(context.Background()).Err() == nil },
		time.Minute, 10*time.Millisecond, "redis-server does not answer")
	return asynq.RedisClientOpt{Network: "unix", Addr: socket}
}
