//go:build linux

package torture

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience is how long a worker may take to end once it has been told to, the network is there again and nobody holds
// the database up.
const patience = 25*time.Second + removal

// worker is a process of clients.
type worker struct {
	slot    int
	command *exec.Cmd
	stdin   io.Closer
	stderr  bytes.Buffer
	history []*operation
	told    []*told
	ended   chan struct{} // closed when it has ended, and its history is whole
	err     error
}

// start starts the worker of a slot.
func (r *round) start(t *testing.T, slot int) *worker {
	j := r.job
	j.DSN = r.dsn(slot)
	j.First = 1 + r.started*(clients+crowd)
	j.Seed = r.rand.Uint64()
	j.Pool = 1
	if r.maybe(0.7) {
		j.Pool += 1 + r.rand.IntN(7)
	} else {
		r.total.add("workers with a pool of one", 1)
	}
	j.Prepare = r.maybe(0.2)
	j.Listen = r.maybe(0.5)
	text, err := json.Marshal(j)
	require.NoError(t, err)
	r.started++

	w := &worker{slot: slot, command: exec.Command(os.Args[0]), ended: make(chan struct{})}
	w.command.Env = append(os.Environ(), jobVariable+"="+string(text))
	w.command.Stderr = &w.stderr
	w.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // one that is stopped would stay
	w.stdin, err = w.command.StdinPipe()
	require.NoError(t, err)
	stdout, err := w.command.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, w.command.Start())
	go func() {
		defer close(w.ended)
		var torn []byte
		w.history, err = readHistory(stdout, func(line []byte) {
			if e := readTold(line); e != nil {
				w.told = append(w.told, e)
			} else {
				torn = bytes.Clone(line)
			}
		})
		w.err = w.command.Wait()
		if err == nil && w.err == nil && torn != nil {
			err = fmt.Errorf("unreadable: %s", torn)
		}
		if err != nil {
			w.err = err
		}
	}()
	return w
}

// kill ends a worker at once.
func (r *round) kill(w *worker) {
	_ = w.command.Process.Kill()
	<-w.ended
	_ = w.stdin.Close()
	r.history = append(r.history, w.history...)
}

// pause stops a worker for a while.
func (w *worker) pause(d time.Duration) {
	_ = w.command.Process.Signal(syscall.SIGSTOP)
	time.AfterFunc(d, func() { _ = w.command.Process.Signal(syscall.SIGCONT) })
}

// finish lets a worker come to its end, which must be a clean one.
func (r *round) finish(t *testing.T, w *worker) {
	_ = w.command.Process.Signal(syscall.SIGCONT)
	_ = w.stdin.Close()
	select {
	case <-w.ended:
	case <-time.After(patience):
		_ = w.command.Process.Signal(syscall.SIGQUIT)
		<-w.ended
		t.Errorf("a worker did not end within %v:\n%s", patience, &w.stderr)
	}
	if w.err != nil {
		t.Errorf("a worker ended with %v:\n%s", w.err, &w.stderr)
	}
	r.history = append(r.history, w.history...)
	for _, complaint := range judgeTold(w.history, w.told) {
		t.Error(complaint)
	}
	for _, e := range w.told {
		r.total.add("told: "+e.Event, 1)
		r.total.add("told: events that were dropped", e.Dropped)
	}
	r.total.add("workers that ended, with no goroutine and no connection left", 1)
}
