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
	Contender      string
	Where          contender.Where
	First, Waiters int // numbers of its waiters
	Length         time.Duration
}

const ready = "ready\n"

// compete runs the waiters of a hot lock in processes of their own, and counts the statements from when all are ready.
func (e *Env) compete(ctx context.Context, en *entrant, processes int) (spans []stats.Span, statements int, err error) {
	ctx, cancel := context.WithTimeout(ctx, e.Size.HandOff+time.Minute)
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
	children := make([]*child, processes)
	for i := range children {
		text, err := json.Marshal(job{
			Contender: en.Name, Where: en.where, Length: e.Size.HandOff,
			First: i * hotWaiters / processes, Waiters: hotWaiters / processes,
		})
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
	c, ok := contender.ByName(j.Contender)
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

// compete lets this process's waiters have the lock again and again.
func (en *entrant) compete(j job) (spans []stats.Span, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), j.Length)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range j.Waiters {
		wg.Go(func() {
			for ctx.Err() == nil {
				release, failed := en.Acquire(ctx, "hot")
				if failed != nil {
					if ctx.Err() == nil {
						mu.Lock()
						err = errors.Join(err, failed)
						mu.Unlock()
					}
					return
				}
				got := time.Now().UnixNano()
				time.Sleep(hotHold)
				done := time.Now().UnixNano()
				failed = release()
				mu.Lock()
				spans = append(spans, stats.Span{Waiter: j.First + i, Got: got, Done: done})
				err = errors.Join(err, failed)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return spans, err
}
