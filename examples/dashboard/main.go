// Dashboard is a program with busy mutexes, and a web server that shows them behind a login. Stop it with ^C.
//
//	go run ./examples/dashboard
//	go run ./examples/dashboard -dsn postgres://user@localhost/database -listen 127.0.0.1:9000
//
// Without -dsn it uses a temporary SQLite file. It prints the address and the password.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"flag"
	"fmt"
	"log"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/dashboard"
	"github.com/gorm-dbmutex/dbmutex/examples/internal/database"
)

const user = "admin"

func main() {
	dsn := flag.String("dsn", "", database.Usage)
	listen := flag.String("listen", "127.0.0.1:8080", "the `address` of the web server")
	password := flag.String("password", "", "the `password` of "+user+" (default: a new one)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *dsn, *listen, cmp.Or(*password, rand.Text())); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, dsn, listen, password string) (err error) {
	d, err := database.New(dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Remove(&dbmutex.DBMutex{}, &dbmutex.DBOnce{})) }()
	gdb, err := d.Open()
	if err != nil {
		return err
	}
	pool, err := gdb.DB()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil {
		return err
	}
	db := dbmutex.Wrap(gdb)
	if err := db.Migrate(); err != nil {
		return err
	}

	// The dashboard. Whoever can log in may also release; who it was is logged.
	shown, err := dashboard.New(db, dashboard.Options{
		AllowRelease: func(*http.Request) bool { return true },
		Actor:        func(*http.Request) string { return user },
		Title:        "the example's mutexes",
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/ops/mutexes/", http.StripPrefix("/ops/mutexes", login(password, shown)))
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Printf("http://%s/ops/mutexes/  user %s, password %s\n", listener.Addr(), user, password)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	var busy sync.WaitGroup
	busy.Go(func() { work(db.WithContext(ctx)) })
	select {
	case err = <-served:
	case <-ctx.Done():
		err = server.Close()
	}
	busy.Wait()
	return err
}

// login asks for the password. A program has its own way: a session, or a proxy before it.
func login(password string, next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(user + ":" + password))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, password, _ := r.BasicAuth()
		got := sha256.Sum256([]byte(name + ":" + password))
		if subtle.ConstantTimeCompare(got[:], want[:]) == 0 {
			w.Header().Set("WWW-Authenticate", `Basic realm="mutexes", charset="UTF-8"`)
			http.Error(w, "log in", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// work keeps mutexes busy until the context ends.
func work(db *dbmutex.DB) {
	ctx := db.Statement.Context
	var workers sync.WaitGroup
	defer workers.Wait()
	for _, name := range []string{"scheduler-0", "scheduler-1"} { // one leads, the other waits
		leader := db.Mutex("leader/scheduler", dbmutex.WithHolder(name), dbmutex.WithTTL(30*time.Second), dbmutex.WithRenewal(),
			dbmutex.WithWait(dbmutex.Forever))
		workers.Go(func() { again(leader, time.Hour) })
	}
	for customer := range 6 { // two workers for each
		for worker := range 2 {
			id, name := fmt.Sprintf("export/customer/%d", 80131+customer), fmt.Sprintf("worker-%d", worker)
			export := db.Mutex(id, dbmutex.WithHolder(name), dbmutex.WithTTL(20*time.Second), dbmutex.WithRenewal(),
				dbmutex.WithWait(time.Minute))
			workers.Go(func() { again(export, 8*time.Second) })
		}
	}
	report := db.Mutex("nightly-report", dbmutex.WithHolder("worker-2"), dbmutex.WithoutTTL())
	workers.Go(func() { again(report, time.Hour) })

	// A holder that has crashed: nobody releases this, and it runs out.
	crashed := db.Mutex("import/catalogue", dbmutex.WithHolder("worker-3"), dbmutex.WithTTL(time.Second))
	if _, err := crashed.Acquire(); err != nil {
		log.Print(err)
	}
	<-ctx.Done()
}

// again holds a mutex again and again, for some time that is not longer than this.
func again(m *dbmutex.Mutex, atMost time.Duration) {
	var err error
	for !errors.Is(err, context.Canceled) {
		err = m.Do(func(ctx context.Context) error {
			select {
			case <-time.After(mathrand.N(atMost)):
				return nil
			case <-ctx.Done(): // the program stops, or somebody released the lease by force
				return ctx.Err()
			}
		})
		if errors.Is(err, dbmutex.ErrTimeout) {
			log.Print(err)
			err = nil
		}
	}
}
