package gocronmutex

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-co-op/gocron/v2"

	"github.com/gorm-dbmutex/dbmutex"
)

const (
	// campaign is how long a candidate waits for the mutex until it looks again who holds it.
	campaign = 10 * time.Second

	// recess is the pause after a lease that ended or a failure of the database, before the next campaign.
	recess = time.Second
)

// ErrNotLeader says that somebody else is the leader, or nobody. The error of Elector.IsLeader matches it, and wraps what is
// known of the reason:
//   - the *dbmutex.HeldError of a leader elsewhere, as it was some seconds ago;
//   - the database's error;
//   - context.Canceled after Close;
//   - dbmutex.ErrTimeout just after this leader's lease ended. The *dbmutex.TimeoutError in it says whether the lease was
//     lost, so that another may have led already, or only ran out. Until the database has answered it counts as lost.
var ErrNotLeader = errors.New("dbmutex: not the leader")

// Elector is a gocron.Elector, for gocron.WithDistributedElector: one scheduler at a time, the leader, runs all the jobs.
// It is safe for many goroutines.
//
// The leader's lease is renewed every TTL/3. If the leader crashes, another takes over when the lease has run out. After a
// Close another takes over within half a second if the database answers promptly, but not before a MinHold is over.
//
// One Elector at most is the leader at a time: docs/guarantees.md of dbmutex says under which conditions. But gocron asks
// IsLeader when a job begins: a job that runs when the leadership ends goes on, beside the next leader's jobs. The ticks of
// two schedulers are not the same either: at a change of leaders one tick may run twice, if the clocks differ, or not at
// all. The jobs of Locker.NewJob do not run twice if the MinHold is longer than the clocks differ and there is no
// dbmutex.WithWait.
type Elector struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when the campaigns have ended
	last   error         // of the release at their end

	mu    sync.Mutex     // guards what follows
	lease *dbmutex.Lease // the last, which may have ended
	err   error          // why there is none
}

var _ gocron.Elector = (*Elector)(nil)

// NewElector campaigns for the leadership, which is the mutex id, in the background: until Close, or the end of the
// handle's context. Give the same id to all schedulers that should have one leader. It is the id of a mutex like any other,
// so it may not be the name of a job. DB.Mutex(id).Holder says who leads.
//
// NewElector sets Renew, Wait and SkipHeld of the settings itself. A short TTL, such as 30 seconds, makes for a quick
// take-over.
//
// NewElector first runs one SELECT. The error is dbmutex.ErrInvalidSettings for settings that are not allowed and for leases
// without a TTL; dbmutex.ErrInvalidLockID; what DB.Mutex says is wrong with the handle; or the context's or the
// database's, also if the table is missing. Nothing runs then.
func NewElector(db *dbmutex.DB, id string, opts ...dbmutex.Option) (*Elector, error) {
	opts = append(slices.Clone(opts), func(s *dbmutex.Settings) { s.Renew, s.Wait, s.SkipHeld = true, campaign, false })
	settings, err := check(db, id, opts)
	switch {
	case err != nil:
		return nil, err
	case settings.TTL == nil:
		return nil, fmt.Errorf("%w: a gocron elector needs a TTL: a leader that crashes would never be replaced",
			dbmutex.ErrInvalidSettings)
	}
	ctx, cancel := context.WithCancel(cmp.Or(db.Statement.Context, context.Background()))
	e := &Elector{cancel: cancel, done: make(chan struct{})}
	go e.run(ctx, db.WithContext(ctx).Mutex(id, opts...))
	return e, nil
}

func (e *Elector) run(ctx context.Context, mutex *dbmutex.Mutex) {
	defer close(e.done)
	defer e.cancel()
	for ctx.Err() == nil {
		e.last = nil
		lease, err := mutex.Acquire()
		e.set(lease, err)
		if err == nil {
			<-lease.Context().Done()
			if e.last = lease.Release(); e.last != nil {
				e.set(nil, e.last)
			}
		}
		if !errors.Is(err, dbmutex.ErrNotAcquired) {
			select {
			case <-ctx.Done():
			case <-time.After(recess):
			}
		}
	}
	e.set(nil, context.Cause(ctx))
}

func (e *Elector) set(lease *dbmutex.Lease, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lease, e.err = lease, err
}

// IsLeader returns nil if this Elector is the leader, and else an error that matches ErrNotLeader. gocron asks before
// every run of a job. It then skips the run, counts it as gocron.Skip, and throws the error away.
//
// IsLeader does not ask the database, and does not look at ctx. The leadership ends, at the latest, when the lease does by
// this process's monotonic clock. It ends at once if a renewal finds the lease gone. A second later the Elector campaigns
// again.
func (e *Elector) IsLeader(context.Context) error {
	if e == nil {
		return ErrNotLeader
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	err := e.err
	if e.lease != nil {
		err = context.Cause(e.lease.Context())
		if deadline, _ := e.lease.ExpiresAt(); err == nil && time.Now().Before(deadline) {
			return nil
		}
		if err == nil { // the end of the context is due
			<-e.lease.Context().Done()
			err = context.Cause(e.lease.Context())
		}
	}
	if err == nil { // the first campaign has not ended
		return ErrNotLeader
	}
	return fmt.Errorf("%w: %w", ErrNotLeader, err)
}

// Close ends the campaigns and the leadership, and returns when the mutex is released. Shut the scheduler down before. The
// end of the handle's context does the same. Close may be called again.
//
// If this was the leader, the error is that of the release. It is the database's if the release failed: others may have to
// wait for the TTL then. It is dbmutex.ErrTimeout if the leader's lease had ended before. The *dbmutex.TimeoutError in it
// says whether the lease was lost, so that another may have led already, or only ran out.
func (e *Elector) Close() error {
	if e == nil || e.done == nil {
		return nil
	}
	e.cancel()
	<-e.done
	return e.last
}
