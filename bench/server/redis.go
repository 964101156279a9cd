package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisSupervisor ends the server with this process, however that ends, and removes its folder: its standard input is a
// pipe that only this process writes to.
const redisSupervisor = `"$@" </dev/null >log 2>&1 & read -r _; kill $!; wait $!; rm -rf "$PWD"`

// Redis is a throw-away server.
type Redis struct {
	Version string

	client *redis.Client
	cmd    *exec.Cmd
	alive  io.Closer
	folder string
	asked  int64 // how often Commands has
}

// StartRedis starts redis-server on loopback. A durable one waits for the disk after every write, a volatile one keeps
// nothing.
func StartRedis(ctx context.Context, durable bool) (*Redis, error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, errors.New("no redis-server found: install it")
	}
	folder, err := os.MkdirTemp("", "dbmutex-bench-redis-")
	if err != nil {
		return nil, err
	}
	r := &Redis{folder: folder}
	if err := r.start(ctx, program, durable); err != nil {
		log, _ := os.ReadFile(filepath.Join(folder, "log"))
		r.Close()
		return nil, fmt.Errorf("start redis-server: %w\n%s", err, log)
	}
	return r, nil
}

func (r *Redis) start(ctx context.Context, program string, durable bool) error {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address := free.Addr().(*net.TCPAddr)
	if err := free.Close(); err != nil {
		return err
	}
	args := []string{
		"-c", redisSupervisor, "sh", program, "--bind", "127.0.0.1", "--port", fmt.Sprint(address.Port), "--save", "",
	}
	if durable {
		args = append(args, "--appendonly", "yes", "--appendfsync", "always")
	}
	r.cmd = exec.Command("/bin/sh", args...)
	r.cmd.Dir = r.folder
	if r.alive, err = r.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := r.cmd.Start(); err != nil {
		return err
	}
	r.client = redis.NewClient(&redis.Options{Addr: address.String()})
	for giveUp := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err = r.client.Ping(ctx).Err(); err == nil || time.Now().After(giveUp) {
			break
		}
	}
	if err != nil {
		return err
	}
	info, err := r.client.InfoMap(ctx, "server").Result()
	r.Version = info["Server"]["redis_version"]
	return err
}

// Addr is where clients find it.
func (r *Redis) Addr() string { return r.client.Options().Addr }

// Empty removes the keys of all its databases.
func (r *Redis) Empty(ctx context.Context) error { return r.client.FlushAll(ctx).Err() }

// Commands is how many it has run so far, those of scripts among them, without its own.
func (r *Redis) Commands(ctx context.Context) (int64, error) {
	info, err := r.client.InfoMap(ctx, "stats").Result()
	if err != nil {
		return 0, err
	}
	var n int64
	_, err = fmt.Sscan(info["Stats"]["total_commands_processed"], &n)
	n -= r.asked
	r.asked++
	return n, err
}

// Close ends the server and removes its folder.
func (r *Redis) Close() {
	if r.client != nil {
		_ = r.client.Close()
	}
	if r.alive != nil {
		_ = r.alive.Close()
		_ = r.cmd.Wait()
	}
	_ = os.RemoveAll(r.folder)
}
