package rivermutex_test

import (
	"testing"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	rivermutex "github.com/gorm-dbmutex/dbmutex/contrib/river"
)

// payOnce runs the example's job once. meanwhile runs in its transaction, after the payment.
func payOnce(t *testing.T, w *world, meanwhile func(tx *gorm.DB)) (*client, *rivertype.JobRow) {
	require.NoError(t, w.db.Migrate(&payment{}))
	require.NoError(t, w.db.Create(&payment{}).Error)
	// The jobs' handle is not that of the test, which looks at what others see.
	db, pool := w.open(t, dbmutex.DefaultSettings())
	require.NoError(t, db.Callback().Update().After("gorm:update").Register("meanwhile", meanwhile))
	nonOverlapping, err := rivermutex.NonOverlapping(db)
	require.NoError(t, err)
	workers := river.NewWorkers()
	river.AddWorker(workers, &payer{db: db})
	working := *w
	working.pool = pool
	c := working.run(t, config(workers, nonOverlapping, afterWork(func(err error) {
		if row, _ := w.db.Mutex("pay").Holder(); err == nil {
			assert.Nil(t, row, "it was not released in the commit")
		}
	})))
	return c, c.insert(t, pay{})
}

func paid(t *testing.T, w *world) (n int64) {
	t.Helper()
	require.NoError(t, w.db.Model(&payment{}).Where("paid").Count(&n).Error)
	return n
}

func TestEffectCompletionAndReleaseAreOneCommit(t *testing.T) {
	w := newWorld(t)
	holders := make(chan *dbmutex.DBMutex, 1)
	c, job := payOnce(t, w, func(*gorm.DB) {
		row, err := w.db.Mutex("pay").Holder()
		assert.NoError(t, err)
		assert.Zero(t, paid(t, w))
		holders <- row
	})
	require.NotNil(t, <-holders)
	c.become(t, river.EventKindJobCompleted, job)
	require.EqualValues(t, 1, paid(t, w))
	w.requireFree(t, "pay")
	var oneTransaction bool
	require.NoError(t, w.db.Raw(`SELECT (SELECT xmin FROM payments) = (SELECT xmin FROM river_job WHERE state = 'completed')`).
		Scan(&oneTransaction).Error)
	require.True(t, oneTransaction)
}

func TestNothingIsCommittedWithoutTheLease(t *testing.T) {
	w := newWorld(t)
	successors := make(chan *dbmutex.Lease, 1)
	c, job := payOnce(t, w, func(*gorm.DB) {
		assert.NoError(t, w.db.Mutex("pay").ForceRelease())
		successor, err := w.db.Mutex("pay").Acquire()
		assert.NoError(t, err)
		successors <- successor
	})
	row := c.become(t, river.EventKindJobFailed, job)
	require.Contains(t, row.Errors[0].Error, dbmutex.ErrTimeout.Error())
	require.Equal(t, rivertype.JobStateDiscarded, row.State)
	require.Zero(t, paid(t, w))
	require.NoError(t, (<-successors).Release())
}

func TestNothingIsCommittedWhereTheWorkFails(t *testing.T) {
	w := newWorld(t)
	c, job := payOnce(t, w, func(tx *gorm.DB) { _ = tx.AddError(errOwn) })
	row := c.become(t, river.EventKindJobFailed, job)
	require.Equal(t, errOwn.Error(), row.Errors[0].Error)
	require.Zero(t, paid(t, w))
	w.requireFree(t, "pay")
}
