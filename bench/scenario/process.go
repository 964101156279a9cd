package scenario

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/gorm-dbmutex/dbmutex/bench/contender"
	"github.com/gorm-dbmutex/dbmutex/bench/stats"
)

// jobVariable is where a process of waiters finds its job.
const jobVariable = "DBMUTEX_BENCH_JOB"

// job is what a process of waiters does.
type job struct {
	Store          contender.Store
	Contender      string
	Where          contender.Where
	First, Waiters int           // numbers of its waiters
	Hold, Think    time.Duration // with the lock, and until it is wanted again
	Length         time.Duration

	Leads  string // the table whose leader it is, if it is no process of waiters
	Notify bool   // with pgnotify
}

const ready = "ready\n"

// compete runs the waiters of a hot lock, each job in a process of its own, and counts the statements from when all are
// ready.
func (e *Env) compete(
	ctx context.Context, en *entrant, jobs []job,
) (spans []stats.Span, statements int, err error) {
	ctx, cancel := context.WithTimeout(ctx, jobs[0].Length+time.Minute)
	defer cancel() // ends those that are left
	program, err := os.Executable()
	if err != nil {
		return nil, 0, err
	}
	type child struct {
		cmd    *exec.Cmd
		stdin  io.WriteCloser
		stdout *bufio.Reader
		stderr bytes.Buffer
	}
	children := make([]*child, len(jobs))
	for i, j := range jobs {
		j.Store, j.Contender = en.Store, en.Name
		text, err := json.Marshal(j)
		if err != nil {
			return nil, 0, err
		}
		c := &child{cmd: exec.CommandContext(ctx, program)}
		c.cmd.Env = append(os.Environ(), jobVariable+"="+string(text))
		c.cmd.Stderr = &c.stderr
		if c.stdin, err = c.cmd.StdinPipe(); err != nil {
			return nil, 0, err
		}
		stdout, err := c.cmd.StdoutPipe()
		if err != nil {
			return nil, 0, err
		}
		c.stdout = bufio.NewReader(stdout)
		if err := c.cmd.Start(); err != nil {
			return nil, 0, err
		}
		children[i] = c
	}
	for _, c := range children {
		if _, err := c.stdout.ReadString('\n'); err != nil {
			return nil, 0, errors.Join(err, c.cmd.Wait(), errors.New(c.stderr.String()))
		}
	}
	before, err := e.statements(ctx, en.Store)
	if err != nil {
		return nil, 0, err
	}
	for _, c := range children {
		_ = c.stdin.Close()
	}
	for _, c := range children {
		var own []stats.Span
		err := json.NewDecoder(c.stdout).Decode(&own)
		if waitErr := c.cmd.Wait(); waitErr != nil {
			return nil, 0, errors.Join(err, waitErr, errors.New(c.stderr.String()))
		}
		spans = append(spans, own...)
	}
	after, err := e.statements(ctx, en.Store)
	return spans, int(after - before), err
}

// RunJob does the job of a process of waiters, if this is one, and ends it.
func RunJob() {
	text, ok := os.LookupEnv(jobVariable)
	if !ok {
		return
	}
	if err := runJob(text); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runJob(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	if j.Leads != "" {
		return runLeader(j)
	}
	c, ok := contender.ByName(j.Store, j.Contender)
	if !ok {
		return fmt.Errorf("no contender is called %q", j.Contender)
	}
	en := &entrant{Contender: c, where: j.Where}
	var spans []stats.Span
	err := en.use(func() (err error) {
		if en.Instance, err = c.Open(context.Background(), j.Where); err != nil {
			return err
		}
		defer en.Close()
		if err := en.connect(j); err != nil {
			return err
		}
		if _, err := os.Stdout.WriteString(ready); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, os.Stdin); err != nil { // until all are ready
			return err
		}
		spans, err = en.compete(j)
		return err
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(spans)
}

// connect uses a connection for each of this process's waiters, so that none has to open one later.
func (en *entrant) connect(j job) error {
	errs := make([]error, j.Waiters)
	var wg sync.WaitGroup
	for i := range j.Waiters {
		wg.Go(func() { errs[i] = en.Cycle(context.Background(), fmt.Sprintf("of waiter %d", j.First+i)) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// compete lets this process's waiters have the lock again and again.
func (en *entrant) compete(j job) (spans []stats.Span, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), j.Length)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range j.Waiters {
		wg.Go(func() {
			for ctx.Err() == nil {
				span, failed := en.once(ctx, j)
				span.Waiter = j.First + i
				mu.Lock()
				spans = append(spans, span)
				err = errors.Join(err, failed)
				mu.Unlock()
				if failed != nil {
					return
				}
				time.Sleep(j.Think)
			}
		})
	}
	wg.Wait()
	return spans, err
}

// once waits for the lock, holds and releases it, or gives up at the context's deadline.
func (en *entrant) once(ctx context.Context, j job) (span stats.Span, err error) {
	span.Asked = time.Now().UnixNano()
	release, err := en.Acquire(ctx, "hot")
	if end, _ := ctx.Deadline(); err != nil && ctx.Err() != nil {
		span.Done = end.UnixNano()
		return span, nil
	}
	if err != nil {
		return span, err
	}
	span.Got = time.Now().UnixNano()
	time.Sleep(j.Hold)
	span.Done = time.Now().UnixNano()
	return span, release()
}
