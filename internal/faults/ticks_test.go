//go:build unix

package faults_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
	"github.com/gorm-dbmutex/dbmutex/internal/witness"
)

// The tests of this file let 32 workers in 4 processes come for the same ticks. Their clocks differ by 3 milliseconds, a
// tenth of the work fails, some leases are too short for their work, and processes are killed and started again. They write
// down what happened in a file beside the database.

const (
	tickProcesses = 4
	tickWorkers   = 8 // of each process
	tickSkew      = 3 * time.Millisecond
	tickEvery     = time.Minute
	tickTTL       = 250 * time.Millisecond
	tickVariable  = "DBMUTEX_TEST_TICK_JOB"
)

// effect is what work leaves in the transaction of its record.
type effect struct {
	Visit string `gorm:"primaryKey"`
	Tick  string
}

// tickJob is what a process of workers does.
type tickJob struct {
	Witness      string // a file
	First, Ticks int
	Transaction  bool
	Mortal       bool // it dies soon, and perhaps in its work
}

func init() { tasks["tick"] = testprocess.WithMutexes(comeForTicks) }

func TestEachTickIsDoneOnceOverProcesses(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) { tryTicks(t, db, d, false) })
}

func TestEachTickHasOneEffectOverProcesses(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, db *dbmutex.DB, d *testdb.Database) {
		require.NoError(t, db.Migrate(&effect{}))
		tryTicks(t, db, d, true)
	})
}

func tryTicks(t *testing.T, db *dbmutex.DB, d *testdb.Database, inTransaction bool) {
	job := tickJob{Witness: filepath.Join(t.TempDir(), "witness"), Ticks: 60, Transaction: inTransaction}
	if n, err := strconv.Atoi(os.Getenv("DBMUTEX_TEST_TICKS")); err == nil {
		job.Ticks = n
	}
	began := time.Now()
	kills := runTicks(t, d, job)
	now := time.Now()
	if step := now.Sub(began) - now.Round(0).Sub(began.Round(0)); step.Abs() > time.Millisecond {
		t.Skip("the machine's clock was set meanwhile")
	}

	visits := map[string][]*witness.Visit{}
	for _, v := range readVisits(t, job.Witness) {
		visits[v.ID] = append(visits[v.ID], v)
	}
	require.Len(t, visits, job.Ticks, "clocks that differ gave other ids")
	all := map[witness.Outcome]int{}
	runs, repeated := 0, 0
	for id, of := range visits {
		var left witness.Left
		record, err := db.Once(id, time.Hour).Done()
		require.NoError(t, err)
		require.NotNil(t, record, "%s has no record", id)
		left.Token = record.Token
		if inTransaction {
			require.NoError(t, db.Model(&effect{}).Where("tick = ?", id).Pluck("visit", &left.Effects).Error)
			require.Len(t, left.Effects, 1, id)
		}
		for _, complaint := range witness.Judge(of, left, nil) {
			t.Error(complaint)
		}
		ended := 0
		for _, v := range of {
			all[v.Outcome]++
			if v.Began != 0 {
				runs++
			}
			if v.Ended != 0 && v.Outcome != witness.Failed {
				ended++
			}
		}
		if ended > 1 {
			repeated++
		}
	}
	t.Logf("%d ticks in %v: %d runs, %d ticks whose work came to its end more than once, %d processes killed, outcomes %v",
		job.Ticks, time.Since(began).Round(time.Millisecond), runs, repeated, kills, all)
}

// runTicks lets the processes run until all have come to the end of the ticks.
func runTicks(t *testing.T, d *testdb.Database, job tickJob) (kills int) {
	ended := make(chan error)
	start := func() {
		job.First = 0
		for _, v := range readVisits(t, job.Witness) {
			job.First = max(job.First, tickOf(v.ID))
		}
		job.First = max(0, job.First-2)
		job.Mortal = kills < max(20, job.Ticks/4) // so that a slow machine comes to an end
		text, err := json.Marshal(job)
		require.NoError(t, err)
		p := testprocess.Start(t, d, "tick", tickVariable+"="+string(text))
		go func() { ended <- p.Wait() }()
	}
	for range tickProcesses {
		start()
	}
	limit := time.After(4*time.Minute + time.Duration(job.Ticks)*time.Second)
	for left := tickProcesses; left > 0; {
		select {
		case err := <-ended:
			if err == nil {
				left--
				continue
			}
			require.ErrorContains(t, err, "killed")
			kills++
			start()
		case <-limit:
			visits := readVisits(t, job.Witness)
			require.Fail(t, "the ticks come to no end", "%v", visits[max(0, len(visits)-10):])
		}
	}
	return kills
}

func readVisits(t *testing.T, path string) []*witness.Visit {
	t.Helper()
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	defer func() { _ = file.Close() }()
	visits, err := witness.Read(file)
	require.NoError(t, err)
	return visits
}

var firstTick = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// tickOf is the number of the tick of an id.
func tickOf(id string) int {
	_, at, _ := strings.Cut(id, "@")
	moment, _ := time.Parse(time.RFC3339Nano, at)
	return int(moment.Sub(firstTick) / tickEvery)
}

// comeForTicks is a process of workers. If it is mortal it kills itself after a while.
func comeForTicks(db *dbmutex.DB, _ io.Reader) error {
	var job tickJob
	if err := json.Unmarshal([]byte(os.Getenv(tickVariable)), &job); err != nil {
		return err
	}
	file, err := os.OpenFile(job.Witness, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if job.Mortal {
		time.AfterFunc(200*time.Millisecond+rand.N(1600*time.Millisecond), die)
	}
	errs := make([]error, tickWorkers)
	var workers sync.WaitGroup
	for i := range tickWorkers {
		w := &tickWorker{tickJob: job, db: db, file: file, name: fmt.Sprintf("%d.%d", os.Getpid(), i)}
		workers.Go(func() { errs[i] = w.run() })
	}
	workers.Wait()
	return errors.Join(errs...)
}

// die ends the process as a crash does.
func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// tickWorker is one of those who come for every tick.
type tickWorker struct {
	tickJob
	db   *dbmutex.DB
	file *os.File
	name string
	n    int // its visits so far
}

var errFailing = errors.New("the work failed")

func (w *tickWorker) run() error {
	for k := w.First; k < w.Ticks; k++ {
		skewed := firstTick.Add(time.Duration(k) * tickEvery).Add(rand.N(2*tickSkew) - tickSkew)
		id := dbmutex.Tick("report", skewed, tickEvery)
		time.Sleep(rand.N(tickSkew))
		for {
			done, err := w.visit(id)
			if err != nil {
				return err
			}
			if done {
				break
			}
			time.Sleep(rand.N(2 * time.Millisecond))
		}
	}
	return nil
}

// visit comes for a tick once. The error is that of the witness.
func (w *tickWorker) visit(id string) (done bool, err error) {
	w.n++
	v := &witness.Visit{ID: id, Name: fmt.Sprintf("%s.%d", w.name, w.n), Effect: w.Transaction, Called: time.Now().UnixNano()}
	opts := []dbmutex.Option{dbmutex.WithHolder(v.Name), dbmutex.WithTTL(tickTTL)}
	if rand.IntN(2) == 0 {
		opts = append(opts, dbmutex.WithWait(time.Second))
	}
	if rand.IntN(4) == 0 {
		opts = append(opts, dbmutex.WithRenewal())
	}
	once := w.db.Once(id, time.Hour, opts...)
	var workErr error
	var told error
	if w.Transaction {
		told = once.Transaction(func(tx *gorm.DB) error {
			workErr = w.work(v, tx.Statement.Context, func() error {
				return tx.Create(&effect{Visit: v.Name, Tick: id}).Error
			})
			return workErr
		})
	} else {
		told = once.Do(func(ctx context.Context) error {
			workErr = w.work(v, ctx, func() error { return nil })
			return workErr
		})
	}
	v.Returned, v.Outcome = time.Now().UnixNano(), witness.OutcomeOf(v, told, workErr)
	if told != nil {
		v.Text = told.Error()
	}
	return v.Told(), witness.Write(w.file, v)
}

// work is that of a visit. It fails, takes longer than its lease, and crashes, now and then.
func (w *tickWorker) work(v *witness.Visit, ctx context.Context, leave func() error) error {
	lease, has := dbmutex.LeaseFrom(ctx)
	if !has {
		return errors.New("the work's context has no lease")
	}
	v.Token, v.Began = lease.Token(), time.Now().UnixNano()
	w.expires(v, lease)
	if err := witness.Write(w.file, v); err != nil {
		return err
	}
	if w.Mortal && rand.IntN(200) == 0 {
		die()
	}
	err := leave()
	switch {
	case rand.IntN(20) == 0:
		time.Sleep(tickTTL + rand.N(tickTTL))
	default:
		time.Sleep(rand.N(2 * time.Millisecond))
	}
	if err == nil && rand.IntN(10) == 0 {
		err = errFailing
	}
	v.Ended = time.Now().UnixNano()
	w.expires(v, lease)
	if w.Mortal && rand.IntN(200) == 0 {
		die()
	}
	return errors.Join(err, witness.Write(w.file, v))
}

// expires asks for the deadline of a visit's lease.
func (w *tickWorker) expires(v *witness.Visit, lease *dbmutex.Lease) {
	moment := time.Now()
	deadline, _ := lease.ExpiresAt()
	v.Expires = max(v.Expires, moment.UnixNano()+int64(deadline.Sub(moment)))
}
