package contender

import (
	"context"
	"time"

	"github.com/bsm/redislock"
	"github.com/redis/go-redis/v9"
)

// redisCrash is what a crash of Redis leaves.
func redisCrash(store Store) string {
	if store == VolatileRedis {
		return "nothing"
	}
	return "all of it"
}

// shortly tells the two Redis apart.
func shortly(store Store) string {
	if store == VolatileRedis {
		return "volatile Redis"
	}
	return "durable Redis"
}

func redisLock(store Store) Contender {
	return Contender{
		Name: "redislock, " + shortly(store), Module: "github.com/bsm/redislock", Store: store, Waits: true,
		Crash: redisCrash(store),
		Note:  "waits by asking every 100 ms, as in its example; its default is not to wait",
		Open: func(_ context.Context, where Where) (Instance, error) {
			client := openRedis(where)
			return &bsm{client, redislock.New(client)}, nil
		},
	}
}

type bsm struct {
	redis  *redis.Client
	client *redislock.Client
}

func (b *bsm) Cycle(ctx context.Context, id string) error {
	lock, err := b.client.Obtain(ctx, id, TTL, nil)
	if err != nil {
		return err
	}
	return lock.Release(ctx)
}

func (b *bsm) Try(ctx context.Context, id string) error {
	_, err := b.client.Obtain(ctx, id, TTL, nil)
	return mustBe(redislock.ErrNotObtained, err)
}

func (b *bsm) Acquire(ctx context.Context, id string) (func() error, error) {
	every := redislock.LinearBackoff(100 * time.Millisecond)
	lock, err := b.client.Obtain(ctx, id, TTL, &redislock.Options{RetryStrategy: every})
	if err != nil {
		return nil, err
	}
	return func() error { return lock.Release(context.WithoutCancel(ctx)) }, nil
}

func (b *bsm) Fill(ctx context.Context, n int) error { return fillRedis(ctx, b.redis, n) }

func (b *bsm) Close() { _ = b.redis.Close() }
