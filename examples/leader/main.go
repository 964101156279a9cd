// Leader elects a leader. Several processes campaign for a mutex. One of them leads, and renews its lease while it leads. If
// it crashes, another leads as soon as the lease has run out. If it stops, another leads at once.
//
//	go run ./examples/leader
//	go run ./examples/leader -dsn mysql://user:password@localhost/database
//
// The candidates are this program, started again. Without -dsn they use a temporary SQLite file.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/examples/internal/database"
)

const ttl = time.Second

func main() {
	dsn := flag.String("dsn", "", database.Usage)
	flag.Parse()
	var err error
	if flag.NArg() == 2 { // as election starts it
		err = campaign(&database.Database{DSN: *dsn, Prefix: flag.Arg(0)}, flag.Arg(1))
	} else {
		err = election(*dsn, "Anna", "Bert", "Cora")
	}
	if err != nil {
		log.Fatal(err)
	}
}

// campaign is a candidate, which leads whenever it can, until its stdin ends. (A service would use signal.NotifyContext.)
func campaign(d *database.Database, name string) error {
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
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
	return db.Mutex("leader", dbmutex.WithTTL(ttl)).Lead(func(ctx context.Context) error {
		for what := "leads"; ctx.Err() == nil; what = "still leads" {
			fmt.Println(name, what)
			select {
			case <-time.After(2 * ttl):
			case <-ctx.Done(): // the lease has ended, or the program stops
			}
		}
		return nil
	})
}

// election starts the candidates and prints what they say. It kills the first candidate that has led for longer than the
// TTL, and then stops each candidate that leads.
func election(dsn string, names ...string) (err error) {
	d, err := database.New(dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Remove(&dbmutex.DBMutex{}, &dbmutex.DBOnce{})) }()
	says, stdout, err := os.Pipe()
	if err != nil {
		return err
	}
	running, stop := map[string]*exec.Cmd{}, map[string]io.Closer{}
	for _, name := range names {
		c := exec.Command(os.Args[0], "-dsn", d.DSN, d.Prefix, name)
		c.Stdout, c.Stderr = stdout, os.Stderr
		if stop[name], err = c.StdinPipe(); err != nil {
			return err
		}
		if err := c.Start(); err != nil {
			return err
		}
		running[name] = c
	}
	_ = stdout.Close() // so that the lines end with the candidates

	began := time.Now()
	tell := func(name, what string) { fmt.Printf("%5.2fs  %s %s\n", time.Since(began).Seconds(), name, what) }
	fmt.Printf("A lease lasts %v unless it is renewed.\n", ttl)
	for lines := bufio.NewScanner(says); len(running) > 0; {
		if !lines.Scan() {
			return errors.New("the candidates have failed")
		}
		name, what, _ := strings.Cut(lines.Text(), " ")
		c := running[name]
		if c == nil { // it has ended since it said this
			continue
		}
		tell(name, what)
		switch {
		case len(running) < len(names):
			tell(name, "stops, and releases the mutex")
			_ = stop[name].Close()
			if err := c.Wait(); err != nil {
				return err
			}
			delete(running, name)
		case what == "still leads":
			_ = c.Process.Kill()
			tell(name, fmt.Sprintf("crashes (%v), and its lease runs out", c.Wait()))
			delete(running, name)
		}
	}
	return nil
}
