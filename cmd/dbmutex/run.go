package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/gorm-dbmutex/dbmutex"
)

const runName = "run"

// runner is one dbmutex run.
type runner struct {
	*global

	wait                    string
	ttl, killAfter, minHold time.Duration
	oncePer                 time.Duration
	slots                   int
	skipHeld                bool
	heldCode, lostCode      int
	holder                  string
	processGroup            string

	id       string
	command  []string
	patience time.Duration // wait
}

const runLong = `Run runs a command while it holds the mutex ID, and lets the mutex go when the command has ended. There is
no shell in between: write  dbmutex run ID -- sh -c '...'  for one.

The exit code is the command's own, or 128+n if signal n ended it, unless:

    75        somebody else holds the mutex, also after --wait; the command did not run
    124       the lease was lost, and another run may have overlapped; also if the command exited 0
    125       dbmutex failed before the command ran: its flags, or the database
    126, 127  the command cannot be executed, or is not there; this is looked at before the mutex is acquired
    128+n     signal n came while dbmutex waited; the command did not run

The lease lasts for --ttl, and is renewed while the command runs. If renewals fail, the command gets TERM (and CONT) when
--kill-after is left of the lease, and KILL when the lease ends. If somebody has released the lease, the next renewal finds
that, a third of --ttl later at the most: the command gets TERM then, and KILL after --kill-after. Until then another run may
overlap. Both signals go to the command's whole process group if it has one of its own.

--slots N lets N commands run at a time. One whose slot was lost counts as above: another may have run in its place. All runs
should say the same N; else as many run as the greatest says.

--once-per PERIOD runs the command once per period over all machines. If it exits with 0, that is recorded in the database,
and all later runs of the period exit with 0 at once; so does one that waits meanwhile. After any other exit nothing is
recorded: another machine, or a later run, tries again. 75 says that the command runs now, and 124 that nothing is recorded.
A dbmutex that dies between the end of the command and the record makes it run again.
Periods are those around the multiples of PERIOD: for 24h from noon to noon in UTC, around midnight; for 1h from half to
half; for 168h around Monday's midnight. So it does not matter whether a machine's clock is before the full hour or after it.
Do not start the command where two periods meet: machines whose clocks differ would run it twice. There dbmutex warns. A
record is kept for two periods.

Signals go on to the command. What it leaves in the background when it ends runs on without the mutex. A dbmutex that is
stopped by ^Z renews no lease: the command is stopped, too, and is killed if its lease is over when it is continued. What has
left the command's process group (setsid) outlives a lost lease, and a kill -STOP of dbmutex alone lets the command run on
without its lease. In a terminal, a kill -INT, -QUIT or -TSTP of dbmutex alone does not go on to the command.

The command gets DBMUTEX_ID, DBMUTEX_TOKEN (the fencing token) and DBMUTEX_HOLDER in its environment, with --slots also
DBMUTEX_SLOT: from 1 to N, and no other that runs has it. DBMUTEX_ID is ID, also with --once-per, where the record's id is
ID@TIME. Tokens grow within a slot, and within a period. stdin, stdout and stderr are its own; dbmutex itself writes to
stderr.

Linux: the end of dbmutex, even by kill -9, ends the command, but not what that has started, nor a command that changes
its user (su, sudo): run dbmutex as that user. As process 1 of a container dbmutex reaps all processes.
macOS and other systems: after a kill -9 of dbmutex the command runs on, and the lease runs out.
Windows: there is no TERM. A command that has a process group of its own gets ^Break in its place; any other is ended by
force when its time is over. The command and all that it has started end with dbmutex. No code is 128+n.`

func newRun(g *global) *cobra.Command {
	r := &runner{global: g}
	command := &cobra.Command{
		Use:   runName + " [flags] ID -- command args...",
		Short: "Run a command while holding a mutex, at most N at a time, or once per period",
		Long:  runLong,
		Example: `  dbmutex run nightly-report -- /usr/local/bin/report
  dbmutex run --wait 5m --ttl 1m deploy -- sh -c 'make && make install'
  dbmutex run --once-per 24h nightly-report -- /usr/local/bin/report
  dbmutex run --slots 4 --wait forever thumbnails -- /usr/local/bin/thumbnails`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return fmt.Errorf("want an id, then --, then a command: dbmutex %s", cmd.Use)
			}
			r.id, r.command = args[0], args[1:]
			if err := r.checkFlags(cmd.Flags().Changed); err != nil {
				return err
			}
			return r.run()
		},
	}
	flags := command.Flags()
	flags.StringVarP(&r.wait, "wait", "w", "0",
		"how long to wait for a mutex that is held: a `duration` such as 5m, or forever")
	flags.DurationVar(&r.ttl, "ttl", 30*time.Second, "how long the lease lasts if it is not renewed, as after a crash")
	flags.DurationVar(&r.killAfter, "kill-after", 5*time.Second,
		"how long the command has between TERM and KILL if the lease ends; at most a third of --ttl, also by default")
	flags.BoolVar(&r.skipHeld, "skip-held", false, "exit with 0 if the mutex is held")
	flags.IntVarP(&r.heldCode, "held-exit-code", "E", exitHeld, "exit with this `code` if the mutex is held")
	flags.IntVar(&r.lostCode, "lost-exit-code", exitLost, "exit with this `code` if the lease was lost")
	flags.DurationVar(&r.minHold, "min-hold", 0, "keep the mutex this long at least, for machines whose clocks differ")
	flags.IntVar(&r.slots, "slots", 0, "run at most `many` at a time over all machines, rather than one (256 at the most)")
	flags.DurationVar(&r.oncePer, "once-per", 0,
		"run the command until it has succeeded, once per `period` over all machines; it is recorded in the database")
	flags.StringVar(&r.holder, "holder", "", "who holds the mutex, for people (default: host/pid)")
	flags.StringVar(&r.processGroup, "process-group", "auto",
		"the command's process group: own, shared with dbmutex, or `auto`: own unless stdin is a terminal")
	return command
}

// checkFlags looks at what the library does not check.
func (r *runner) checkFlags(given func(flag string) bool) error {
	var err error
	switch r.patience, err = time.ParseDuration(r.wait); {
	case r.wait == "forever":
		r.patience = dbmutex.Forever
	case err != nil, r.patience < 0:
		return fmt.Errorf("--wait %q: want a duration such as 5m, or forever", r.wait)
	}
	if !given("kill-after") {
		r.killAfter = min(r.killAfter, r.ttl/3)
	}
	switch {
	case r.killAfter < 0, r.killAfter > r.ttl/3:
		return fmt.Errorf("--kill-after %v: want a third of --ttl at most, which is %v", r.killAfter, r.ttl/3)
	case r.heldCode < 0, r.heldCode > 255:
		return fmt.Errorf("--held-exit-code %d: want 0 to 255", r.heldCode)
	case r.lostCode < 0, r.lostCode > 255:
		return fmt.Errorf("--lost-exit-code %d: want 0 to 255", r.lostCode)
	case given("once-per") && r.oncePer < time.Second:
		return fmt.Errorf("--once-per %v: want a second or more", r.oncePer)
	case given("slots") && r.slots < 1:
		return fmt.Errorf("--slots %d: want 1 or more", r.slots)
	case given("once-per") && given("slots"):
		return errors.New("--once-per and --slots exclude each other")
	case given("once-per") && given("min-hold"):
		return errors.New("--once-per and --min-hold exclude each other: a success is recorded for long enough")
	case !slices.Contains([]string{"auto", "own", "shared"}, r.processGroup):
		return fmt.Errorf("--process-group %q: want auto, own or shared", r.processGroup)
	}
	return nil
}

// run acquires, runs the command, and releases.
func (r *runner) run() error {
	path, err := executable(r.command[0])
	if err != nil {
		return err
	}
	signals := listen()
	held, end, err := r.acquire(signals)
	defer end()
	if err != nil || held == nil {
		return err
	}
	if _, over := r.left(held.Lease); over { // the program was stopped meanwhile, or its machine
		r.giveBack(held)
		return errors.New("the lease was over before the command could begin: the command did not run")
	}
	terminal := isatty.IsTerminal(os.Stdin.Fd())
	own := r.processGroup == "own" || r.processGroup == "auto" && !terminal
	listenToAll(signals, terminal && !own)
	c, err := start(path, r.command, r.environment(held.Lease), own, terminal && !own)
	if err != nil {
		r.giveBack(held)
		return notStarted(r.command[0], err)
	}
	code, stopped := r.supervise(c, held.Lease, signals)
	return r.finish(held, code, stopped)
}

// executable finds a command as a shell does.
func executable(name string) (path string, err error) {
	path, err = exec.LookPath(name)
	switch {
	case err == nil:
		return path, nil
	case isOnPath(name):
		return "", &exitError{exitNotExecutable, fmt.Errorf("%s: %w", name, os.ErrPermission)}
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return "", &exitError{exitNotFound, err}
	}
	return "", &exitError{exitNotExecutable, err}
}

// isOnPath says whether there is a file of that name, which then cannot be executed.
func isOnPath(name string) bool {
	if name == "" || filepath.Base(name) != name {
		return false
	}
	return slices.ContainsFunc(filepath.SplitList(os.Getenv("PATH")), func(folder string) bool {
		info, err := os.Stat(filepath.Join(folder, name))
		return err == nil && !info.IsDir()
	})
}

// notStarted is the error of a command that was there.
func notStarted(name string, err error) error {
	code := exitNotExecutable
	switch {
	case errors.Is(err, os.ErrNotExist): // or the interpreter of a script
		code = exitNotFound
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM):
		code = exitRunFailure
	}
	return &exitError{code, fmt.Errorf("%s: %w", name, err)}
}

// acquire returns what the command runs under, or nil if it is to be skipped. A signal ends it. end is for the end of the
// program.
func (r *runner) acquire(signals <-chan os.Signal) (held *holding, end func(), err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	end = func() { cancel(nil) }
	signalled := untilSignal(signals, cancel)
	defer func() {
		if sig := signalled(); sig != nil {
			if held != nil {
				r.giveBack(held)
			}
			held, err = nil, &exitError{exitSignal + int(sig.(syscall.Signal)), fmt.Errorf("%v: the command did not run", sig)}
		}
	}()
	db, err := r.open(ctx, false)
	if err != nil {
		return nil, end, err
	}
	end = func() {
		closeSoon(db)
		cancel(nil)
	}
	if r.patience != dbmutex.Forever {
		limit := time.AfterFunc(r.patience+r.timeout, func() {
			cancel(fmt.Errorf("the database did not answer within %v", r.timeout))
		})
		defer limit.Stop()
	}
	started := time.Now()
	r.log.Debug("waiting for "+strconv.Quote(r.id), "lock_id", r.id)
	held, err = r.hold(db.WithContext(ctx))
	switch {
	case err == nil && held == nil: // it is done
		return nil, end, nil
	case err == nil:
		r.log.Debug(fmt.Sprintf("acquired %q after %v, with token %d", r.id, time.Since(started).Round(time.Millisecond),
			held.Token()), "lock_id", r.id, "token", held.Token())
		return held, end, nil
	case errors.Is(err, dbmutex.ErrNotAcquired) && r.skipHeld:
		r.log.Info("skipped: "+oneLine(err.Error()), "lock_id", r.id)
		return nil, end, nil
	case errors.Is(err, dbmutex.ErrNotAcquired):
		r.log.Info(oneLine(err.Error()), "lock_id", r.id)
		return nil, end, &exitError{code: r.heldCode}
	case ctx.Err() != nil:
		return nil, end, fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return nil, end, err
}

// whoAmI is the holder of the lease.
func (r *runner) whoAmI() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return cmp.Or(r.holder, host+"/"+strconv.Itoa(os.Getpid()))
}

// environment is the command's.
func (r *runner) environment(lease *dbmutex.Lease) []string {
	inherited := slices.DeleteFunc(os.Environ(), func(variable string) bool { // getenv takes the first of two
		name, _, _ := strings.Cut(variable, "=")
		return slices.Contains([]string{"DBMUTEX_ID", "DBMUTEX_TOKEN", "DBMUTEX_HOLDER", "DBMUTEX_SLOT"}, name)
	})
	own := append(inherited, "DBMUTEX_ID="+r.id, "DBMUTEX_TOKEN="+strconv.FormatInt(lease.Token(), 10),
		"DBMUTEX_HOLDER="+r.whoAmI())
	if lease.Slot() > 0 {
		own = append(own, "DBMUTEX_SLOT="+strconv.Itoa(lease.Slot()))
	}
	return own
}
