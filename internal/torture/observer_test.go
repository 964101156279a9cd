//go:build linux

package torture

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/witness"
)

// observer reads the lock's table, as client 0.
type observer struct {
	db      *dbmutex.DB
	mutexes []string
	history []*operation
	quit    chan struct{}
	done    chan struct{}
}

func newObserver(db *dbmutex.DB, mutexes []string) *observer {
	return &observer{db: db, mutexes: mutexes, quit: make(chan struct{}), done: make(chan struct{})}
}

func (b *observer) watch() {
	defer close(b.done)
	for {
		select {
		case <-b.quit:
			return
		case <-time.After(20 * time.Millisecond):
			_ = b.look() // the database may be down
		}
	}
}

func (b *observer) stop() {
	close(b.quit)
	<-b.done
}

func (b *observer) begin(v verb, id string) *operation {
	o := &operation{N: len(b.history) + 1, Verb: v, Mutex: id, Call: now()}
	b.history = append(b.history, o)
	return o
}

func (b *observer) look() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	call := now()
	var rows []dbmutex.DBMutex
	err := testdb.Taken(b.db.WithContext(ctx).Gorm).Where("lock_id IN ?", b.mutexes).Find(&rows).Error
	if err != nil {
		return err
	}
	end := now()
	holders := map[string]string{}
	for _, row := range rows {
		holders[row.LockID] = row.Holder
	}
	for _, id := range b.mutexes {
		o := b.begin(look, id)
		o.Call, o.Return, o.Outcome, o.Seen = call, end, held, holders[id]
		if o.Seen == "" {
			o.Outcome = free
		}
	}
	return nil
}

// longestWait is longer than a lease lasts, and than the mutex is kept for a waiter that has gone.
const longestWait = 8 * time.Second

// freeAll releases the leases of semaphores that do not end.
func (b *observer) freeAll(t *testing.T, semaphores []semaphore) {
	require.NoError(t, b.look())
	for _, s := range semaphores {
		var rows []dbmutex.DBMutex
		require.NoError(t, testdb.Taken(b.db.Gorm).Where("lock_id IN ? AND expires_at IS NULL", s.slots()).Find(&rows).Error)
		for _, row := range rows {
			o := b.begin(force, row.LockID)
			o.Lease = row.Holder
			released, err := b.db.Semaphore(s.ID, s.N).ForceReleaseLease(row.LeaseID)
			require.NoError(t, err)
			require.True(t, released)
			o.Return, o.Outcome = now(), ok
		}
	}
}

// comeForAll lets every tick be done, if it is not yet. A run that does not end by itself is left by those alone who were
// killed, or not told how theirs ended.
func (b *observer) comeForAll(t *testing.T, visits map[string][]*witness.Visit, ticks []string) {
	var left []dbmutex.DBOnce
	require.NoError(t, b.db.Where("lease_id <> '' AND expires_at IS NULL").Find(&left).Error)
	for _, row := range left {
		for _, v := range visits[row.LockID] {
			if v.Name == row.Holder && v.Outcome != witness.Unknown {
				t.Errorf("%s: a run is left of one that has ended:\n%v", row.LockID, v)
			}
		}
		require.NoError(t, b.db.Once(row.LockID, keep).ForceRelease())
	}
	for i, id := range ticks {
		o := b.begin(visit, id)
		o.Lease = fmt.Sprintf("parent's visit %d", i)
		o.Visit = &witness.Visit{ID: id, Name: o.Lease, Called: o.Call}
		err := b.db.Once(id, keep, dbmutex.WithHolder(o.Lease), dbmutex.WithWait(longestWait)).Do(func(ctx context.Context) error {
			lease, _ := dbmutex.LeaseFrom(ctx)
			o.Visit.Began, o.Visit.Token, o.Visit.Expires = now(), lease.Token(), expires(lease)
			o.Visit.Ended = now()
			return nil
		})
		o.Return = now()
		o.Visit.Returned, o.Visit.Outcome, o.Error = o.Return, witness.OutcomeOf(o.Visit, err, nil), text(err)
		if err != nil {
			t.Errorf("%s: after the last lease's TTL: %v", id, err)
		}
	}
}

// conclude sees what is left, and has every mutex once, and every slot of each semaphore: whatever is left must have run out
// soon.
func (b *observer) conclude(t *testing.T, mutexes []string, semaphores []semaphore) {
	for _, s := range semaphores {
		b.concludeSemaphore(t, s)
	}
	for _, id := range mutexes {
		var row dbmutex.DBMutex
		require.NoError(t, testdb.Taken(b.db.Gorm).Where("lock_id = ?", id).Limit(1).Find(&row).Error)
		if row.LockID != "" && row.ExpiresAt == nil {
			o := b.begin(force, id)
			require.NoError(t, b.db.Mutex(id).ForceRelease())
			o.Return, o.Outcome = now(), ok
		}
		o := b.begin(acquire, id)
		o.Lease, o.Wait = "parent", true
		lease, err := b.db.Mutex(id, dbmutex.WithHolder(o.Lease), dbmutex.WithWait(longestWait)).Acquire()
		if err != nil {
			t.Errorf("%s: after the last lease's TTL: %v", id, err)
			continue
		}
		o.Outcome, o.Token, o.Expires, o.Return = ok, lease.Token(), expires(lease), now()
		o = b.begin(release, id)
		o.Lease = "parent"
		require.NoError(t, lease.Release())
		o.Outcome, o.Return = ok, now()
	}
	require.NoError(t, b.look())
	var rows []dbmutex.DBMutex
	require.NoError(t, testdb.Taken(b.db.Gorm).Find(&rows).Error)
	require.Empty(t, rows, "rows that no lease explains")
}

// concludeSemaphore has all of its slots at once.
func (b *observer) concludeSemaphore(t *testing.T, s semaphore) {
	var leases []*dbmutex.Lease
	for i := range s.N {
		o := b.begin(acquire, s.ID)
		o.Lease, o.Wait = fmt.Sprintf("parent %d", i), true
		lease, err := b.db.Semaphore(s.ID, s.N, dbmutex.WithHolder(o.Lease), dbmutex.WithWait(longestWait)).Acquire()
		if err != nil {
			t.Errorf("%s: after the last lease's TTL: %v", s.ID, err)
			continue
		}
		o.Mutex = s.slot(lease.Slot())
		o.Outcome, o.Token, o.Expires, o.Return = ok, lease.Token(), expires(lease), now()
		leases = append(leases, lease)
	}
	for i, lease := range leases {
		o := b.begin(release, s.slot(lease.Slot()))
		o.Lease = fmt.Sprintf("parent %d", i)
		require.NoError(t, lease.Release())
		o.Outcome, o.Return = ok, now()
	}
}
