//go:build linux

package torture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/wake"
	_ "github.com/gorm-dbmutex/dbmutex/pgnotify"
)

// jobVariable is the environment variable that makes this program a worker.
const jobVariable = "DBMUTEX_TORTURE_JOB"

// job is what a worker is to do, until its standard input ends.
type job struct {
	Driver, DSN string // of drivers
	Notifies    bool   // releases can be heard of in other processes
	Isolates    bool   // transactions may have an isolation level of their own
	Seed        uint64
	Mutexes     []string
	Semaphores  []semaphore
	Ticks       string        // the schedule that clients come for
	Every       time.Duration // between its ticks
	First       int           // the number of its first client
	Clients     int
	Crowd       []string // the mutexes of clients who come together, one for each
	Pool        int      // how many connections it may have
	Prepare     bool
	Listen      bool // for the releases of other processes
	Habits      habits
}

// habits are what clients do besides the usual.
type habits struct{ Cancel, Panic, Force, Forever, Rush, Loop bool }

func TestMain(m *testing.M) {
	if text := os.Getenv(jobVariable); text != "" {
		if err := work(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// work is a worker's life. Its error is about what it leaves behind.
func work(text string) error {
	stop, stopped := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stopped()
	}()
	before := goleak.IgnoreCurrent()
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	if !j.Listen {
		wake.Listen = nil
	}
	out := json.NewEncoder(&lines{})
	db, err := j.open(out)
	if err != nil {
		return err
	}
	pool, err := db.DB()
	if err != nil {
		return err
	}
	verbs, end := context.WithCancel(context.Background())
	defer end()
	context.AfterFunc(stop, func() { time.AfterFunc(time.Second, end) })
	var clients []*client
	var running sync.WaitGroup
	for i := range j.Clients {
		c := &client{
			job: &j, db: db, stop: stop, verbs: verbs, out: out, number: j.First + i,
			rand: rand.New(rand.NewPCG(j.Seed, uint64(i))),
		}
		clients = append(clients, c)
		running.Go(c.run)
	}
	bell := newBell()
	for i, id := range j.Crowd {
		own := j
		own.Mutexes = []string{id}
		c := &client{
			job: &own, db: db, stop: stop, verbs: verbs, out: out, number: j.First + j.Clients + i, bell: bell,
			rand: rand.New(rand.NewPCG(j.Seed, uint64(j.Clients+i))),
		}
		clients = append(clients, c)
		running.Go(c.run)
	}
	running.Go(func() { bell.ring(stop) })
	running.Wait()
	for _, c := range clients {
		if err := awaitRemoval(db, c.lasting); err != nil {
			return err
		}
	}
	for wait := time.Now().Add(time.Minute); pool.Stats().InUse > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(wait) {
			stacks := make([]byte, 1<<20)
			stacks = stacks[:runtime.Stack(stacks, true)]
			return fmt.Errorf("%d connections are in use after the last lease\n%s", pool.Stats().InUse, stacks)
		}
	}
	_ = pool.Close() // a connection may have been cut
	return goleak.Find(
		before, // but for pgx, which goes on for a while with a connection that is gone, and for GORM's PrepareStmt
		goleak.IgnoreAnyFunction("github.com/jackc/pgx/v5/pgconn.(*PgConn).asyncClose.func1"),
		goleak.IgnoreAnyFunction("gorm.io/gorm/internal/lru.NewLRU[...].func1"),
	)
}

// removal is for how long after its release a lease without a TTL may be there again, as a request of its acquire was late:
// its process removes it once more after 1, 2, 4, 8, 16 and 32 seconds.
const removal = 70 * time.Second

// awaitRemoval waits until the rows of leases without a TTL, which have been released, are gone.
func awaitRemoval(db *dbmutex.DB, holders []string) error {
	for wait := time.Now().Add(removal); len(holders) > 0; time.Sleep(50 * time.Millisecond) {
		var left []string
		err := db.Gorm.Transaction(func(tx *gorm.DB) error { // the session may begin one itself, and not end it
			return tx.Model(&dbmutex.DBMutex{}).Where("expires_at IS NULL AND holder IN ?", holders).Pluck("holder", &left).Error
		})
		if err == nil && len(left) == 0 {
			return nil
		}
		if time.Now().After(wait) {
			return errors.Join(fmt.Errorf("leases without a TTL are there %v after their release: %v", removal, left), err)
		}
	}
	return nil
}

// drivers are those of all databases, by their names.
var drivers = map[string]func(dsn string) (gorm.Dialector, error){}

func (j *job) open(out *json.Encoder) (*dbmutex.DB, error) {
	dialector, err := drivers[j.Driver](j.DSN)
	if err != nil {
		return nil, err
	}
	gdb, err := gorm.Open(dialector, &gorm.Config{
		Logger: &log{Interface: logger.Discard}, PrepareStmt: j.Prepare, DisableAutomaticPing: true,
	})
	if err != nil {
		return nil, err
	}
	pool, err := gdb.DB()
	if err != nil {
		return nil, err
	}
	pool.SetMaxOpenConns(j.Pool)
	settings := dbmutex.DefaultSettings()
	settings.Observer = reporter{out}
	return dbmutex.Wrap(gdb), gdb.Use(dbmutex.New(settings))
}

// lines writes each line at once, so that a process that is killed has written what it began.
type lines struct{ mu sync.Mutex }

func (l *lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return os.Stdout.Write(line)
}

// note is what happens below the library during one verb, found through its context.
type note struct {
	lost   atomic.Int32 // statements without an answer
	logged atomic.Pointer[error]

	owner string               // the goroutine of the client
	asks  []func() (lost bool) // of answers to it that may break off yet
}

// goroutine names the one that runs.
func goroutine() string {
	text := make([]byte, 64)
	name, _, _ := strings.Cut(string(text[:runtime.Stack(text, false)]), " [")
	return name
}

// unanswered counts the statements without an answer so far.
func (n *note) unanswered() int {
	n.asks = slices.DeleteFunc(n.asks, func(lost func() bool) bool {
		if !lost() {
			return false
		}
		n.lost.Add(1)
		return true
	})
	return int(n.lost.Load())
}

type noteKey struct{}

func noteOf(ctx context.Context) *note {
	if n, known := ctx.Value(noteKey{}).(*note); known {
		return n
	}
	return &note{}
}

// log keeps the error that the library logs if it cannot return it.
type log struct{ logger.Interface }

func (l *log) LogMode(logger.LogLevel) logger.Interface { return l }

func (l *log) Error(ctx context.Context, _ string, data ...any) {
	for _, value := range data {
		if err, is := value.(error); is {
			noteOf(ctx).logged.Store(&err)
		}
	}
}
