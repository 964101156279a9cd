// Once runs each tick of a schedule once over three processes. Each tick comes to all of them. One runs it, the others wait
// for its end and find it done. A process that is killed in the middle of a tick leaves it to another one.
//
//	go run ./examples/once
//	go run ./examples/once -dsn mysql://user:password@localhost/database
//
// The processes are this program, started again. Without -dsn they use a temporary SQLite file.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/examples/internal/database"
)

const (
	every = time.Second // a tick
	ttl   = 3 * time.Second
	ticks = 5 // that the program waits for
)

func main() {
	dsn := flag.String("dsn", "", database.Usage)
	flag.Parse()
	var err error
	if flag.NArg() == 2 { // as witness starts it
		err = schedule(&database.Database{DSN: *dsn, Prefix: flag.Arg(0)}, flag.Arg(1))
	} else {
		err = witness(*dsn, "Anna", "Bert", "Cora")
	}
	if err != nil {
		log.Fatal(err)
	}
}

// schedule is a process that comes to every tick, until its stdin ends. Each line of stdin lets it do one piece of work.
func schedule(d *database.Database, name string) error {
	ctx, stop := context.WithCancel(context.Background())
	work := make(chan bool, 100)
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			work <- true
		}
		stop()
	}()
	gdb, err := d.Open()
	if err != nil {
		return err
	}
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil {
		return err
	}
	db := dbmutex.Wrap(gdb).WithContext(ctx)
	if err := db.Migrate(); err != nil {
		return err
	}

	var running sync.WaitGroup
	defer running.Wait()
	for {
		select {
		case <-time.After(time.Until(time.Now().Truncate(every).Add(every))):
		case <-ctx.Done():
			return nil
		}
		tick := dbmutex.Tick("report", time.Now(), every)
		running.Go(func() {
			ran := false
			err := db.Once(tick, time.Hour, dbmutex.WithTTL(ttl), dbmutex.WithRenewal(), dbmutex.WithWait(dbmutex.Forever)).
				Do(func(ctx context.Context) error {
					ran = true
					fmt.Println(name, "begins", tick)
					select {
					case <-work:
						return nil
					case <-ctx.Done(): // the lease has ended, or the program stops
						return context.Cause(ctx)
					}
				})
			switch {
			case err != nil && ctx.Err() == nil:
				fmt.Println(name, "fails in", tick+":", err)
			case err == nil && ran:
				fmt.Println(name, "has done", tick)
			}
		})
	}
}

// process is a process that witness has started.
type process struct {
	*exec.Cmd
	stdin io.WriteCloser
}

// witness starts the processes and prints what they say. It kills the one that begins the second tick, and counts how often
// each tick is done.
func witness(dsn string, names ...string) (err error) {
	d, err := database.New(dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Remove(&dbmutex.DBMutex{}, &dbmutex.DBOnce{})) }()
	says, stdout, err := os.Pipe()
	if err != nil {
		return err
	}
	running := map[string]*process{}
	for _, name := range names {
		p := &process{Cmd: exec.Command(os.Args[0], "-dsn", d.DSN, d.Prefix, name)}
		p.Stdout, p.Stderr = stdout, os.Stderr
		if p.stdin, err = p.StdinPipe(); err != nil {
			return err
		}
		if err := p.Start(); err != nil {
			return err
		}
		running[name] = p
	}
	_ = stdout.Close() // so that the lines end with the processes

	began := time.Now()
	tell := func(text string) { fmt.Printf("%5.2fs  %s\n", time.Since(began).Seconds(), text) }
	fmt.Printf("A tick comes every %v. A lease lasts %v unless it is renewed.\n", every, ttl)
	begun, done, crashed := map[string]bool{}, map[string]int{}, ""
	for lines := bufio.NewScanner(says); lines.Scan(); {
		tell(lines.Text())
		name, what, _ := strings.Cut(lines.Text(), " ")
		if tick, is := strings.CutPrefix(what, "has done "); is {
			done[tick]++
		}
		if tick, is := strings.CutPrefix(what, "begins "); is {
			begun[tick] = true
			if p := running[name]; len(begun) == 2 && crashed == "" {
				crashed = tick
				_ = p.Process.Kill()
				tell(fmt.Sprintf("%s crashes in the middle of that (%v)", name, p.Wait()))
				delete(running, name)
			} else if p != nil {
				_, _ = fmt.Fprintln(p.stdin, "work")
			}
		}
		if len(done) >= ticks && done[crashed] > 0 {
			for name, p := range running {
				_ = p.stdin.Close()
				if err := p.Wait(); err != nil {
					return err
				}
				delete(running, name)
			}
		}
	}
	for _, tick := range slices.Sorted(maps.Keys(done)) {
		fmt.Printf("%s has succeeded: %d\n", tick, done[tick])
	}
	return nil
}
