package contender

import (
	"context"
	"errors"

	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"
)

func redsyncLock(store Store) Contender {
	return Contender{
		Name: "redsync, " + shortly(store), Module: "github.com/go-redsync/redsync/v4", Store: store, Waits: true,
		Crash: redisCrash(store),
		Note:  "one Redis, so no quorum; waits by asking every 50 to 250 ms, as by default",
		Open: func(_ context.Context, where Where) (Instance, error) {
			client := openRedis(where)
			return &redsyncs{client, redsync.New(goredis.NewPool(client))}, nil
		},
	}
}

type redsyncs struct {
	redis *redis.Client
	sync  *redsync.Redsync
}

func (r *redsyncs) mutex(id string) *redsync.Mutex {
	return r.sync.NewMutex(id, redsync.WithExpiry(TTL))
}

func (r *redsyncs) give(ctx context.Context, mutex *redsync.Mutex) error {
	ok, err := mutex.UnlockContext(ctx)
	if err == nil && !ok {
		err = errLost
	}
	return err
}

func (r *redsyncs) Cycle(ctx context.Context, id string) error {
	mutex := r.mutex(id)
	if err := mutex.TryLockContext(ctx); err != nil {
		return err
	}
	return r.give(ctx, mutex)
}

func (r *redsyncs) Try(ctx context.Context, id string) error {
	err := r.mutex(id).TryLockContext(ctx)
	if taken := (*redsync.ErrTaken)(nil); errors.As(err, &taken) {
		return nil
	}
	return mustBe(redsync.ErrFailed, err)
}

// Acquire begins again if the 32 tries of the default were not enough.
func (r *redsyncs) Acquire(ctx context.Context, id string) (func() error, error) {
	mutex := r.mutex(id)
	for {
		err := mutex.LockContext(ctx)
		if err == nil {
			return func() error { return r.give(context.WithoutCancel(ctx), mutex) }, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if taken := (*redsync.ErrTaken)(nil); !errors.As(err, &taken) && !errors.Is(err, redsync.ErrFailed) {
			return nil, err
		}
	}
}

func (r *redsyncs) Fill(ctx context.Context, n int) error { return fillRedis(ctx, r.redis, n) }

func (r *redsyncs) Close() { _ = r.redis.Close() }
