package locktable

import (
	"context"
	"errors"
	"time"

	"gorm.io/gorm"
)

// DoneID is the lease_id of a record: a row that says that work under the id has succeeded. It is nobody's.
const DoneID = "done"

// Record is what is left of a lease whose work has succeeded.
type Record struct {
	Keep   time.Duration // how long, by the database's clock
	Result []byte        // a text; nil = none
	Token  int64         // the lease's
}

// result is the text as a parameter.
func (r Record) result() any {
	if r.Result == nil {
		return nil
	}
	return string(r.Result)
}

// rowOfRecord is lister.row of a table whose records alone have their token.
const rowOfRecord = `lock_id, holder, lease_id, CASE lease_id WHEN '` + DoneID + `' THEN token ELSE 0 END AS fence`

// pruneRecords is how many rows PruneRecords removes at the most. A lease that ran out stays for an hour, as its work may be
// late.
const pruneRecords = 100

// onces is what a dialect has for a table of runs and records.
type onces interface {
	// keepRecords makes the dialect's table one that has records.
	keepRecords()

	// complete makes a lease's row its record. That is found if it was made by an earlier try. It may also tell the waiters of
	// other processes.
	complete(on executor, k Key, r Record, notify bool) (found bool, err error)
	// completeIn is complete as a part of a transaction, which it names for recording.fate.
	completeIn(tx executor, k Key, r Record) (found bool, transaction string, err error)

	// record reads a record that is to be kept still. The row is nil if there is none.
	record(on executor, lockID string) (row *Row, result []byte, err error)
	// forget removes a record that was read, by its token.
	forget(on executor, record *Row) error
	// pruneRecords removes some rows whose time is over. It passes those that others have locked, if the database can.
	pruneRecords(on executor) error
}

// NewOnce is New for a table that has records.
func NewOnce(database, name, quoted string) (Table, error) {
	t, err := New(database, name, quoted)
	if err == nil {
		t.keepRecords()
	}
	return t, err
}

// Complete makes a lease's row its record, which a crash does not undo. If the database refuses that with a notification, it
// does so without. A zero limit has little patience.
func (t Table) Complete(ctx context.Context, limit time.Time, k Key, r Record, notify bool) Outcome {
	var found bool
	try := func(on executor) (err error) {
		if notify {
			on = on.hushing(refusals)
		}
		found, err = t.complete(on, k, r, notify)
		return err
	}
	doubt, err := t.settle(ctx, limit, try)
	if notify && t.Refused(err) && !errors.As(err, new(*refusedError)) {
		notify = false
		before := doubt
		doubt, err = t.settle(ctx, limit, try)
		doubt = doubt || before
	}
	if doubt && t.Refused(err) { // an earlier try may have made it
		if row, _, unread := t.Record(ctx, k.LockID); unread == nil && row != nil && row.Token == r.Token {
			found, err = true, nil
		}
	}
	return t.outcome(found, doubt, err)
}

// FinishOnce is Finish, and leaves a record.
func (t Table) FinishOnce(ctx context.Context, tx *gorm.DB, k Key, r Record) (o Outcome, transaction string) {
	return t.finish(ctx, tx, func(on executor) (found bool, transaction string, err error) {
		return t.completeIn(on, k, r)
	})
}

// Record reads a record that is to be kept still. The row is nil if there is none.
func (t Table) Record(ctx context.Context, lockID string) (row *Row, result []byte, err error) {
	_, err = t.settle(ctx, time.Time{}, func(on executor) error {
		if err := t.look(on); err != nil {
			return err
		}
		row, result, err = t.record(on, lockID)
		return err
	})
	return row, result, err
}

// Forget removes the record that is there, and spares a later one, also if the network delivers a try late. If there is
// none, it returns the lease that is live, if there is that.
func (t Table) Forget(ctx context.Context, limit time.Time, lockID string) (live *Row, err error) {
	var forgetting *Row
	_, err = t.settle(ctx, limit, func(on executor) (err error) {
		if err := t.look(on); err != nil {
			return err
		}
		live = nil
		if forgetting == nil {
			if forgetting, _, err = t.record(on, lockID); err != nil {
				return err
			}
		}
		if forgetting != nil {
			return t.forget(on, forgetting)
		}
		row, isLive, err := t.row(on, lockID)
		if isLive && row.LeaseID != DoneID {
			live = row
		}
		return err
	})
	return live, err
}

// pruneLimit is how long PruneRecords may take.
const pruneLimit = time.Second

// PruneRecords removes some records that are not to be kept any more, and leases that ran out an hour ago. It tries once,
// and GORM logs no failure: there will be another time.
func (t Table) PruneRecords(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, pruneLimit)
	defer cancel()
	return t.tryOnce(limited, func(on executor) error { return t.pruneRecords(on.hushing(failures)) })
}
