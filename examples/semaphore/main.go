// Semaphore keeps to a limit of somebody else's: an API that takes 4 calls at once, from all processes together. Each of 5
// processes wants to make 4 calls at a time.
//
//	go run ./examples/semaphore
//	go run ./examples/semaphore -dsn mysql://user:password@localhost/database
//
// The processes are this program, started again. Without -dsn they use a temporary SQLite file.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/examples/internal/database"
)

const (
	limit     = 4
	processes = 5
	calls     = 4 // of each process
)

func main() {
	dsn := flag.String("dsn", "", database.Usage)
	flag.Parse()
	var err error
	if flag.NArg() == 2 { // as watch starts it
		err = work(&database.Database{DSN: *dsn, Prefix: flag.Arg(0)}, flag.Arg(1))
	} else {
		err = watch(*dsn)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// work is one process. It makes its calls at once, as far as the limit allows.
func work(d *database.Database, process string) error {
	gdb, err := d.Open()
	if err != nil {
		return err
	}
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil {
		return err
	}
	db := dbmutex.Wrap(gdb)
	if err := db.Migrate(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, calls)
	for i := range calls {
		wg.Go(func() {
			errs[i] = db.Semaphore("api", limit, dbmutex.WithWait(dbmutex.Forever)).Do(func(ctx context.Context) error {
				lease, _ := dbmutex.LeaseFrom(ctx)
				fmt.Printf("+ process %s makes call %d in slot %d\n", process, i+1, lease.Slot())
				defer fmt.Printf("- process %s has made call %d\n", process, i+1)
				time.Sleep(200 * time.Millisecond) // the call
				return nil
			})
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// watch starts the processes, prints what they say, and counts the calls that are made at once.
func watch(dsn string) (err error) {
	d, err := database.New(dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Remove(&dbmutex.DBMutex{}, &dbmutex.DBOnce{})) }()
	says, stdout, err := os.Pipe()
	if err != nil {
		return err
	}
	var running []*exec.Cmd
	for i := range processes {
		c := exec.Command(os.Args[0], "-dsn", d.DSN, d.Prefix, fmt.Sprint(i+1))
		c.Stdout, c.Stderr = stdout, os.Stderr
		if err := c.Start(); err != nil {
			return err
		}
		running = append(running, c)
	}
	_ = stdout.Close() // so that the lines end with the processes

	now, most, made := 0, 0, 0
	for lines := bufio.NewScanner(says); lines.Scan(); {
		change, what, _ := strings.Cut(lines.Text(), " ")
		if change == "+" {
			now++
		} else {
			now--
			made++
		}
		most = max(most, now)
		fmt.Printf("%d at once: %s\n", now, what)
	}
	for _, c := range running {
		err = errors.Join(err, c.Wait())
	}
	fmt.Printf("%d calls were made, at most %d at once.\n", made, most)
	return err
}
