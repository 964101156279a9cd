// Leader elects a leader. Several processes campaign for a mutex. One of them leads, and renews its lease while it leads. If
// it crashes, another leads as soon as the lease has run out. If it stops, another leads at once.
//
//	go run ./examples/leader
//
// The candidates are this program, started again, on a SQLite file in a temporary folder.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/glebarez/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
)

const ttl = time.Second

func main() {
	var err error
	if len(os.Args) == 3 {
		err = campaign(os.Args[1], os.Args[2])
	} else {
		err = election("Anna", "Bert", "Cora")
	}
	if err != nil {
		log.Fatal(err)
	}
}

// campaign is a candidate, which leads whenever it can, until its stdin ends. (A service would use signal.NotifyContext.)
func campaign(file, name string) error {
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	gdb, err := gorm.Open(sqlite.Open(file), &gorm.Config{Logger: logger.Discard})
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
	leader := db.Mutex("leader", dbmutex.WithTTL(ttl), dbmutex.WithRenewal(), dbmutex.WithWait(dbmutex.Forever))
	for ctx.Err() == nil {
		err := leader.Do(func(ctx context.Context) error {
			for what := "leads"; ctx.Err() == nil; what = "still leads" {
				fmt.Println(name, what)
				select {
				case <-time.After(2 * ttl):
				case <-ctx.Done(): // the lease has ended, or the program stops
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, dbmutex.ErrTimeout) && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return nil
}

// election starts the candidates and prints what they say. It kills the first candidate that has led for longer than the
// TTL, and then stops each candidate that leads.
func election(names ...string) error {
	folder, err := os.MkdirTemp("", "dbmutex-leader-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	says, stdout, err := os.Pipe()
	if err != nil {
		return err
	}
	running, stop := map[string]*exec.Cmd{}, map[string]io.Closer{}
	for _, name := range names {
		c := exec.Command(os.Args[0], filepath.Join(folder, "leader.db"), name)
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
