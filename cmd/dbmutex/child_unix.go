//go:build unix

package main

import (
	"os"
	"os/signal"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// stopLimit is how long a command that is told to stop may take to.
const stopLimit = 10 * time.Second

// child is the command while it runs.
type child struct {
	pid      int
	own      bool // it has a process group of its own
	terminal bool // it has the terminal's signals from the kernel
	done     chan int

	stopped    atomic.Bool
	toldToStop atomic.Int64 // when, in nanoseconds, by the program, which was told so itself
}

var (
	// endsWaiting are the signals that end a program by default, but for those of a mistake.
	endsWaiting = []os.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM,
	}
	// fromTerminal are those that a terminal sends to its foreground process group.
	fromTerminal = []os.Signal{
		syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGWINCH,
	}
	// stops are those of them that stop a program.
	stops = []os.Signal{syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU}
	// ends are those that programs are ended with. One that is stopped hears of them when it goes on.
	ends = []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM}
	// notForTheCommand are about dbmutex itself.
	notForTheCommand = []os.Signal{syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPIPE}
)

// listen returns the signals that end the wait. One that is ignored, as under nohup, stays so, also for the command.
func listen() chan os.Signal {
	signals := make(chan os.Signal, 64)
	for _, sig := range append(endsWaiting, syscall.SIGPIPE) { // without SIGPIPE, a stderr that is closed would end the program
		notify(signals, sig)
	}
	return signals
}

// listenToAll is listen for all signals, for the time of the command.
func listenToAll(signals chan os.Signal, terminal bool) {
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		// On these the kernel stops dbmutex, as it does the command.
		if !terminal || sig != syscall.SIGTTIN && sig != syscall.SIGTTOU {
			notify(signals, sig)
		}
	}
}

func notify(signals chan os.Signal, sig os.Signal) {
	if !signal.Ignored(sig) {
		signal.Notify(signals, sig)
	}
}

// start starts the command, on the thread of its caller.
func start(path string, argv, env []string, own, terminal bool) (*child, error) {
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{0, 1, 2},
		Sys:   attributes(own),
	})
	if err != nil {
		return nil, err
	}
	c := &child{pid: pid, own: own, terminal: terminal, done: make(chan int, 1)}
	go c.reap()
	return c, nil
}

// reap waits for the command, and for all that the program inherits as process 1 of a container. The program stops with its
// command, but not if somebody has stopped the command alone: nobody might let the program go on, and it renews the lease.
func (c *child) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WUNTRACED|syscall.WCONTINUED, nil)
		switch {
		case err == syscall.EINTR: //nolint:errorlint // a system call wraps nothing
		case err != nil: // there is no process
			return
		case pid != c.pid:
		case status.Continued():
			c.stopped.Store(false)
		case status.Stopped():
			c.stopped.Store(true)
			told := time.Since(time.Unix(0, c.toldToStop.Swap(0))) < stopLimit
			if told || c.terminal && slices.Contains(stops, os.Signal(status.StopSignal())) {
				stop()
			}
		case status.Signaled():
			c.done <- exitSignal + int(status.Signal())
		default:
			c.done <- status.ExitStatus()
		}
	}
}

// stop stops the program, so that a shell gets its terminal back.
func stop() { _ = syscall.Kill(os.Getpid(), syscall.SIGSTOP) }

// forward passes a signal on.
func (c *child) forward(sig os.Signal) {
	if slices.Contains(notForTheCommand, sig) || c.terminal && slices.Contains(fromTerminal, sig) {
		return
	}
	if slices.Contains(stops, sig) {
		if c.stopped.Load() {
			stop()
			return
		}
		c.toldToStop.Store(time.Now().UnixNano())
	}
	c.signal(sig.(syscall.Signal))
	if slices.Contains(ends, sig) {
		c.signal(syscall.SIGCONT)
	}
}

// terminate asks the command to end.
func (c *child) terminate() {
	c.signal(syscall.SIGTERM)
	c.signal(syscall.SIGCONT)
}

func (c *child) kill() { c.signal(syscall.SIGKILL) }

func (c *child) signal(sig syscall.Signal) {
	to := c.pid
	if c.own {
		to = -c.pid
	}
	_ = syscall.Kill(to, sig)
}

// gone says that nothing is left of the command's process group, once the command has ended.
func (c *child) gone() bool { return !c.own || syscall.Kill(-c.pid, 0) != nil }
