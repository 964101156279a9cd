package contender

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gorm-dbmutex/dbmutex"
)

// Full is the id of a lock whose every lease is held once an instance of a semaphore was filled.
const Full = "full"

// Leases are a mutex on a table, for 0 slots, or semaphores of so many.
func (t *Table) Leases(slots int) Instance { return &leases{t.DB, slots} }

type leases struct {
	db    *dbmutex.DB
	slots int
}

type locker interface {
	Do(fn func(ctx context.Context) error) error
	Acquire() (*dbmutex.Lease, error)
}

func (l *leases) lock(ctx context.Context, id string, opts ...dbmutex.Option) locker {
	db := l.db.WithContext(ctx)
	if l.slots == 0 {
		return db.Mutex(id, opts...)
	}
	return db.Semaphore(fmt.Sprintf("%s of %d", id, l.slots), l.slots, opts...)
}

func (l *leases) Cycle(ctx context.Context, id string) error {
	return l.lock(ctx, id).Do(func(context.Context) error { return nil })
}

func (l *leases) Try(ctx context.Context, id string) error {
	return mustBe(dbmutex.ErrNotAcquired, l.Cycle(ctx, id))
}

func (l *leases) Acquire(context.Context, string) (func() error, error) {
	return nil, errors.ErrUnsupported
}

// Fill takes all leases of Full, for an hour; n does not matter.
func (l *leases) Fill(ctx context.Context, _ int) error {
	for range max(1, l.slots) {
		if _, err := l.lock(ctx, Full, dbmutex.WithTTL(time.Hour)).Acquire(); err != nil {
			return err
		}
	}
	return nil
}

func (l *leases) Close() {}

// RedisSemaphore is that of J. L. Carlson, Redis in Action, 11.2.3, with the server's clock. No Go library of it is kept up.
func RedisSemaphore(store Store, slots int) Contender {
	return Contender{
		Name: fmt.Sprintf("a sorted set of %d, %s", slots, shortly(store)), Store: store, Crash: redisCrash(store),
		Note: "a counting semaphore as in Redis in Action, 11.2.3: a sorted set and a script in Lua",
		Open: func(_ context.Context, where Where) (Instance, error) {
			return &zset{openRedis(where), slots}, nil
		},
	}
}

var zsetAcquire = redis.NewScript(`local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[1]) then
	redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[3])
	return 1
end
return 0`)

type zset struct {
	client *redis.Client
	slots  int
}

var errFull = errors.New("all leases are held")

func (z *zset) acquire(ctx context.Context, id string, ttl time.Duration) (leaseID string, err error) {
	leaseID = rand.Text()
	got, err := zsetAcquire.Run(ctx, z.client, []string{id}, z.slots, ttl.Milliseconds(), leaseID).Int()
	if err == nil && got == 0 {
		err = errFull
	}
	return leaseID, err
}

func (z *zset) Cycle(ctx context.Context, id string) error {
	leaseID, err := z.acquire(ctx, id, TTL)
	if err != nil {
		return err
	}
	removed, err := z.client.ZRem(ctx, id, leaseID).Result()
	if err == nil && removed != 1 {
		err = errLost
	}
	return err
}

func (z *zset) Try(ctx context.Context, id string) error {
	_, err := z.acquire(ctx, id, TTL)
	return mustBe(errFull, err)
}

func (z *zset) Acquire(context.Context, string) (func() error, error) {
	return nil, errors.ErrUnsupported
}

// Fill takes all leases of Full, for an hour; n does not matter.
func (z *zset) Fill(ctx context.Context, _ int) error {
	for range z.slots {
		if _, err := z.acquire(ctx, Full, time.Hour); err != nil {
			return err
		}
	}
	return nil
}

func (z *zset) Close() { _ = z.client.Close() }
