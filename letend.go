package dbmutex

import (
	"errors"
	"fmt"
	"time"

	"github.com/gorm-dbmutex/dbmutex/internal/ends"
	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

func init() {
	ends.RunOut = func(lease any) error { return lease.(*Lease).letRunOut() }
	ends.Lose = func(lease any) error { return lease.(*Lease).letLose() }
}

// letRunOut makes the lease's time be over now, for the database and for its holder.
func (l *Lease) letRunOut() error {
	if l == nil || l.mutex == nil {
		return errNoLease
	}
	l.verb.Lock()
	defer l.verb.Unlock()
	m := l.mutex
	switch {
	case !l.usable():
		return l.over()
	case m.settings.TTL == nil:
		return fmt.Errorf("%w: a lease without a TTL never runs out", ErrInvalidSettings)
	case l.expired():
		return nil
	}
	atOnce := time.Microsecond
	o, _ := m.table.Renew(l.parent, time.Now().Add(locktable.Limit), l.key, &atOnce)
	switch {
	case o.Row == locktable.RowMissing:
		return l.timeout(true, 0, errGone)
	case o.Err != nil:
		return m.failed(l.parent, "let run out", o.Err)
	}
	for {
		row, err := m.table.Live(l.parent, l.key.LockID)
		if err != nil {
			return m.failed(l.parent, "let run out", err)
		}
		if row == nil || row.LeaseID != l.key.LeaseID {
			break
		}
		time.Sleep(time.Millisecond)
	}
	_ = l.runOut(nil)
	queues.wake(m.key)
	return nil
}

// letLose takes the lease's row away. The lease then learns of it as by a renewal.
func (l *Lease) letLose() error {
	if l == nil || l.mutex == nil {
		return errNoLease
	}
	if !l.usable() {
		return l.over()
	}
	m, limit := l.mutex, time.Now().Add(locktable.Limit)
	ended, err := m.table.ForceRelease(l.parent, limit, l.key.LockID, l.key.LeaseID)
	switch {
	case err != nil:
		return m.notReleased(l.parent, limit, "take away", err)
	case ended == nil:
		return l.timeout(true, 0, errGone)
	}
	queues.wake(m.key)
	if err := l.Renew(); !errors.Is(err, ErrTimeout) {
		return err
	}
	return nil
}

var errGone = errors.New("its row had gone before")
