package main

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// child is the command while it runs.
type child struct {
	pid  uint32
	own  bool           // it has a process group of its own, and no ^C from the console
	job  windows.Handle // of the command and all that it starts
	done chan int
}

// listen returns the signals that end the wait.
func listen() chan os.Signal {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	return signals
}

// listenToAll changes nothing: there are no more.
func listenToAll(chan os.Signal, bool) {}

var endsWaiting = []os.Signal{os.Interrupt, syscall.SIGTERM}

// start starts the command in a job that ends with the program.
func start(path string, argv, env []string, own, _ bool) (*child, error) {
	job, err := newJob()
	if err != nil {
		return nil, err
	}
	command := &exec.Cmd{Path: path, Args: argv, Env: env, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if own {
		command.SysProcAttr = &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP}
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	c := &child{uint32(command.Process.Pid), own, job, make(chan int, 1)}
	if err := c.join(); err != nil {
		_ = command.Process.Kill()
		return nil, err
	}
	go func() {
		_ = command.Wait() // the state has the code
		c.done <- command.ProcessState.ExitCode()
	}()
	return c, nil
}

func newJob() (windows.Handle, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return 0, err
	}
	var limits windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	limits.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	_, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits)))
	return job, err
}

func (c *child) join() error {
	process, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, c.pid)
	if err != nil {
		return err
	}
	defer func() { _ = windows.CloseHandle(process) }()
	return windows.AssignProcessToJobObject(c.job, process)
}

// forward passes on what the console does not tell the command itself.
func (c *child) forward(os.Signal) { c.terminate() }

// terminate asks the command to end, if that is possible.
func (c *child) terminate() {
	if c.own {
		_ = windows.GenerateConsoleCtrlEvent(windows.CTRL_BREAK_EVENT, c.pid)
	}
}

func (c *child) kill() { _ = windows.TerminateJobObject(c.job, 1) }

// gone is true: the job ends with the program.
func (c *child) gone() bool { return true }
