//go:build linux

package torture

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/witness"
)

var (
	duration = flag.Duration("duration", 10*time.Second, "how long to torture each database")
	seed     = flag.Uint64("seed", 0, "where chance begins; 0 = anywhere")
)

const (
	workers    = 3
	clients    = 5 // of each worker
	crowd      = 8 // more of its clients, who come together, each for a mutex of its own in the process
	judgeLimit = 30 * time.Second
)

// arena is a database to run rounds on.
type arena interface {
	// begin prepares a round: the parent's own handle, what the workers get, and the faults that they are in for.
	begin(t *testing.T, r *round)
	// calm ends the faults that are under way, quiesce whatever of the workers still runs in the database.
	calm()
	quiesce(t *testing.T)
	// end checks the database after a round, and cleans up.
	end(t *testing.T, r *round)
}

// arenas are those of all databases, by their names.
var arenas = map[string]func(t *testing.T) arena{}

func TestTorture(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	for _, name := range slices.Sorted(maps.Keys(arenas)) {
		t.Run(name, func(t *testing.T) { torture(t, arenas[name](t)) })
	}
}

func torture(t *testing.T, a arena) {
	t.Logf("-seed=%d", *seed) // also if a round never ends
	total := newTally()
	for start := time.Now(); (time.Since(start) < *duration || total.get("rounds") == 0) && !t.Failed(); {
		r := newRound(total.get("rounds"), total)
		total.add("rounds", 1)
		a.begin(t, r)
		r.run(t, a)
		if t.Failed() {
			t.Logf("round %d: %s, %v, %+v, crashes %v", r.number, r.setting, r.faultNames(), r.job, r.crashes)
		}
	}
	t.Logf("-seed=%d, %d processes of %d clients\n%s", *seed, workers, clients, total)
}

// round is a few seconds with mutexes of their own.
type round struct {
	number  int
	total   *tally
	rand    *rand.Rand
	length  time.Duration
	mutexes []string

	semaphores []semaphore // each slot of theirs is a mutex
	crowd      []string    // more mutexes

	db      *dbmutex.DB // the parent's own, out of reach of the faults
	job     job         // of every worker
	dsn     func(worker int) string
	faults  []fault
	gap     time.Duration // between faults, on average
	setting string        // of the database
	async   bool          // commits do not wait for the disk
	pruned  bool          // all the time
	undone  int64         // for how long before a crash a release may have been undone

	workers []*worker
	started int // workers
	history []*operation
	parent  *observer
	crashes []interval
}

func newRound(number int, total *tally) *round {
	r := &round{number: number, total: total, rand: rand.New(rand.NewPCG(*seed, uint64(number)))}
	r.length = 3*time.Second + r.upTo(2*time.Second)
	for i := range 1 + r.rand.IntN(5) {
		r.mutexes = append(r.mutexes, fmt.Sprintf("round %d, mutex %d", number, i))
	}
	for i := range 1 + r.rand.IntN(2) {
		r.semaphores = append(r.semaphores, semaphore{fmt.Sprintf("round %d, semaphore %d", number, i), 1 + r.rand.IntN(4)})
	}
	for i := range crowd {
		r.crowd = append(r.crowd, fmt.Sprintf("round %d, crowd %d", number, i))
	}
	r.pruned = r.maybe(0.5)
	r.gap = 100*time.Millisecond + r.upTo(300*time.Millisecond)
	r.job = job{
		Mutexes: r.mutexes, Semaphores: r.semaphores, Clients: clients, Crowd: r.crowd,
		Ticks: fmt.Sprintf("round %d", number), Every: 50*time.Millisecond + r.upTo(250*time.Millisecond),
		Habits: habits{
			Cancel: r.maybe(0.5), Panic: r.maybe(0.5), Force: r.maybe(0.4), Forever: r.maybe(0.3), Rush: r.maybe(0.25),
			Loop: r.maybe(0.3),
		},
	}
	r.mutexes = slices.Concat(r.mutexes, r.crowd)
	return r
}

func (r *round) maybe(probability float64) bool { return r.rand.Float64() < probability }

func (r *round) upTo(d time.Duration) time.Duration {
	return time.Duration(r.rand.Int64N(int64(d) + 1))
}

func (r *round) faultNames() (names []string) {
	for _, f := range r.faults {
		names = append(names, f.name)
	}
	return names
}

func (r *round) run(t *testing.T, a arena) {
	rows := slices.Clone(r.mutexes)
	for _, s := range r.semaphores {
		rows = append(rows, s.slots()...)
	}
	for _, id := range rows {
		require.NoError(t, r.db.Create(&counter{LockID: id}).Error)
	}
	ahead := wall()
	r.parent = newObserver(r.db, rows)
	go r.parent.watch()
	for slot := range workers {
		r.workers = append(r.workers, r.start(t, slot))
	}
	stopPruning := r.prune()
	for end := time.Now().Add(r.length); time.Now().Before(end); {
		time.Sleep(min(r.upTo(2*r.gap), time.Until(end)))
		struck := time.Now()
		r.strike(t)
		end = end.Add(time.Since(struck)) // what a long fault leaves behind is for the clients to see
	}
	a.calm()
	for _, w := range r.workers {
		r.finish(t, w)
	}
	stopPruning()
	a.quiesce(t)
	r.parent.stop()
	r.parent.freeAll(t, r.semaphores)
	r.parent.conclude(t, r.mutexes, r.semaphores)
	visits, ticks := visitsByTick(r.history)
	r.parent.comeForAll(t, visits, ticks)
	r.history = append(r.history, r.parent.history...)
	if step := wall() - ahead; step.Abs() > time.Millisecond {
		r.total.add("rounds not judged: the clock was set", 1)
	} else {
		r.judge(t)
	}
	a.end(t, r)
}

// prune removes what has run out, again and again, if the round is for that.
func (r *round) prune() (stop func()) {
	if !r.pruned {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var pruner sync.WaitGroup
	pruner.Go(func() {
		for ctx.Err() == nil {
			removed, err := r.db.WithContext(ctx).Prune() // the database may be down
			if err == nil {
				r.total.add("rows pruned", int(removed))
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	return func() { cancel(); pruner.Wait() }
}

func (r *round) judge(t *testing.T) {
	byMutex := map[string][]*operation{}
	for _, o := range r.history {
		byMutex[o.Mutex] = append(byMutex[o.Mutex], o)
	}
	ids := slices.Clone(r.mutexes)
	for _, s := range r.semaphores {
		for _, complaint := range append(s.judgePermits(r.history), s.judgeRefusals(r.history)...) {
			t.Errorf("%s: %s", s.ID, complaint)
		}
		for _, o := range byMutex[s.ID] {
			r.total.add("semaphore: "+name(o)+" "+ending(o), 1)
		}
		maps.Copy(byMutex, s.histories(r.history))
		ids = append(ids, s.slots()...)
	}
	for _, id := range ids {
		history := byMutex[id]
		record := newRecord(history, r.crashes, r.undone)
		record.pruned = r.pruned
		result, why := record.judgeOrder(judgeLimit)
		r.total.add("histories "+string(result), 1)
		switch {
		case result == porcupine.Unknown:
			t.Errorf("%s: the judge found no verdict on %d operations within %v", id, len(history), judgeLimit)
		case why != nil:
			folder, err := os.MkdirTemp("", "dbmutex-torture-")
			require.NoError(t, err)
			path := filepath.Join(folder, "history.html")
			require.NoError(t, porcupine.VisualizePath(why.model, why.info, path))
			require.NoError(t, os.WriteFile(filepath.Join(folder, "history.txt"), []byte(why.String()), 0o600))
			t.Errorf("%s: no order of the operations explains what was seen (%s):\n%s", id, path, why.excerpt())
		}
		c := counted{runs: map[string]bool{}}
		require.NoError(t, r.db.Raw(`SELECT n FROM counters WHERE lock_id = ?`, id).Scan(&c.n).Error)
		var attempts []string
		require.NoError(t, r.db.Raw(`SELECT attempt FROM runs WHERE lock_id = ?`, id).Scan(&attempts).Error)
		for _, attempt := range attempts {
			c.runs[attempt] = true
		}
		for _, complaint := range slices.Concat(judgeTokens(history), judgeEnds(history), judgeCounter(c, history, r.undoable)) {
			t.Errorf("%s: %s", id, complaint)
		}
		r.total.record(id, record, c)
	}
	r.judgeTicks(t)
	if t.Failed() {
		folder, err := os.MkdirTemp("", "dbmutex-torture-")
		require.NoError(t, err)
		path, whole := filepath.Join(folder, "round.txt"), &impossible{history: r.history}
		require.NoError(t, os.WriteFile(path, []byte(whole.String()), 0o600))
		t.Logf("the whole round: %s", path)
	}
}

// judgeTicks looks at what was to be done once.
func (r *round) judgeTicks(t *testing.T) {
	visits, ticks := visitsByTick(r.history)
	undoable := func(v *witness.Visit) bool { // with what the transaction of the record did
		return (v.Effect || v.Outcome == witness.Done) && r.undoneBetween(v.Called, v.Returned)
	}
	for _, id := range ticks {
		var left witness.Left
		record, err := r.db.Once(id, keep).Done()
		require.NoError(t, err)
		if record != nil {
			left.Token = record.Token
		}
		require.NoError(t, r.db.Raw(`SELECT attempt FROM runs WHERE lock_id = ?`, id).Scan(&left.Effects).Error)
		for _, complaint := range witness.Judge(visits[id], left, undoable) {
			t.Errorf("%s: %s", id, complaint)
		}
		r.total.ticks(visits[id])
	}
	var rows []dbmutex.DBOnce
	require.NoError(t, r.db.Model(&dbmutex.DBOnce{}).Where("lease_id NOT IN ('', 'done')").Find(&rows).Error)
	require.Empty(t, rows, "runs that have no end")
}

// undoable says whether a crash may have lost a commit.
func (r *round) undoable(o *operation) bool { return r.undoneBetween(o.Call, o.Return) }

// undoneBetween says whether a crash may have lost what was committed between two moments.
func (r *round) undoneBetween(from, to int64) bool {
	for _, crash := range r.crashes {
		if r.async && from <= crash.to && to >= crash.from-undoWindow {
			return true
		}
	}
	return false
}

// migrate makes the tables.
func migrate(t *testing.T, db *gorm.DB) *dbmutex.DB {
	require.NoError(t, db.Use(dbmutex.New(dbmutex.DefaultSettings())))
	wrapped := dbmutex.Wrap(db)
	require.NoError(t, wrapped.Migrate(&counter{}, &run{}))
	return wrapped
}
