package locktable

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

const (
	// What is tried later is tried after laterFirst, then after twice as long, up to laterMost.
	laterFirst = 100 * time.Millisecond
	laterMost  = 5 * time.Second

	// LaterLimit is how long it is tried for a lease that never expires.
	LaterLimit = time.Hour

	// A request that the network has held back may arrive after lateFirst, or twice as much, and so on up to lateMost.
	lateFirst = time.Second
	lateMost  = 32 * time.Second

	// closedPause is between two looks at whether the pool is closed.
	closedPause = 100 * time.Millisecond
)

// Later runs a try in the background until it says that it is done, or until a moment. It ends with the pool, too. A try
// has Limit.
func (t Table) Later(ctx context.Context, until time.Time, try func(ctx context.Context) (done bool)) {
	go t.later(context.WithoutCancel(ctx), until, laterFirst, laterMost, try)
}

func (t Table) later(
	ctx context.Context, until time.Time, pause, most time.Duration, try func(ctx context.Context) (done bool),
) {
	for ; t.rest(min(pause, time.Until(until))) && time.Now().Before(until); pause = min(2*pause, most) {
		limited, cancel := context.WithTimeout(ctx, Limit)
		done := try(limited)
		cancel()
		if done {
			return
		}
	}
}

// rest sleeps, and says whether the pool is still open.
func (t Table) rest(pause time.Duration) bool {
	for end := time.Now().Add(pause); ; {
		if pool, err := sqlDB(t.config.ConnPool); err == nil && IsClosed(pool) {
			return false
		}
		left := time.Until(end)
		if left <= 0 {
			return true
		}
		time.Sleep(min(left, closedPause))
	}
}

// DiscardLater is Discard in the background, for a lease whose row may come yet: because nobody could remove it, or because
// a request is still under way (see Answer.Doubt). It looks for the row again and again, for about a minute after it could
// look first. No lease with the key may be in use any more.
func (t Table) DiscardLater(ctx context.Context, k Key, ttl *time.Duration) {
	life := LaterLimit
	if ttl != nil {
		life = *ttl
	}
	until := time.Now().Add(life)
	go func() {
		ctx := context.WithoutCancel(ctx)
		remove := func(ctx context.Context) (asked bool) {
			err := t.tryOnce(ctx, func(on executor) error {
				_, err := t.remove(on, k)
				return err
			})
			return err == nil || t.Refused(err)
		}
		t.later(ctx, until, lateFirst, laterMost, remove)
		if t.remote != nil {
			t.later(ctx, time.Now().Add(2*lateMost), lateFirst, lateMost, func(ctx context.Context) bool {
				remove(ctx)
				return false
			})
		}
	}()
}

// IsClosed asks a pool without touching a connection.
func IsClosed(pool *sql.DB) bool {
	done, cancel := context.WithCancel(context.Background())
	cancel()
	return !errors.Is(pool.PingContext(done), context.Canceled)
}
