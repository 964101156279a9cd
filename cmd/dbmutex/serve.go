package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/dashboard"
	prommutex "github.com/gorm-dbmutex/dbmutex/contrib/prometheus"
)

// shutdownLimit is how long requests may go on when the program is to end.
const shutdownLimit = 5 * time.Second

// server is one dbmutex serve.
type server struct {
	*global

	listen                string
	allowRelease, metrics bool
	user, password        string
	loopback              bool

	mu     sync.Mutex // held while the database is asked; guards what follows
	asked  time.Time
	health error
}

const (
	healthAge   = time.Second     // how long an answer of /healthz counts as fresh
	healthLimit = 2 * time.Second // how long the database has for it
	connections = 8               // of the pool: how many requests come is up to others
)

func newServe(g *global) *cobra.Command {
	s := &server{global: g}
	command := &cobra.Command{
		Use:   "serve",
		Short: "Show in a browser which mutexes are held",
		Long: `Serve shows in a browser who holds which mutex, and what ran out. /healthz answers 200 while the database answers,
and 503 otherwise. --metrics adds /metrics for Prometheus.

If DBMUTEX_SERVE_USER and DBMUTEX_SERVE_PASSWORD are set, it asks for them on every page but /healthz, also on /metrics.
--allow-release lets people end leases; on an address that other machines can reach it needs both. There is no TLS: put it
behind a proxy that has.

On a loopback address it refuses requests whose Host header is neither localhost nor a loopback address: a website could send
them through a browser. ^C and TERM end it with the exit code 0.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			s.user, s.password = os.Getenv("DBMUTEX_SERVE_USER"), os.Getenv("DBMUTEX_SERVE_PASSWORD")
			if (s.user == "") != (s.password == "") {
				return errors.New("want both DBMUTEX_SERVE_USER and DBMUTEX_SERVE_PASSWORD, or neither")
			}
			return s.withDB(false, s.serve)
		},
	}
	flags := command.Flags()
	flags.StringVar(&s.listen, "listen", "127.0.0.1:7070", "the `address` to listen on; port 0 chooses one")
	flags.BoolVar(&s.allowRelease, "allow-release", false, "let people end leases")
	flags.BoolVar(&s.metrics, "metrics", false, "add /metrics for Prometheus")
	return command
}

// serve serves until the context is done.
func (s *server) serve(ctx context.Context, db *dbmutex.DB) error {
	listener, err := net.Listen("tcp", s.listen)
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	address := listener.Addr().(*net.TCPAddr)
	s.loopback = address.IP.IsLoopback()
	if s.allowRelease && !s.loopback && s.user == "" {
		return errors.New("--allow-release on an address that is not a loopback one needs DBMUTEX_SERVE_USER and " +
			"DBMUTEX_SERVE_PASSWORD")
	}
	pool, err := db.DB()
	if err != nil {
		return err
	}
	pool.SetMaxOpenConns(connections)
	handler, err := s.handler(db)
	if err != nil {
		return err
	}
	web := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- web.Serve(listener) }()
	s.log.Info(fmt.Sprintf("serving http://%s/", address))
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	limited, cancel := context.WithTimeout(context.Background(), shutdownLimit)
	defer cancel()
	if web.Shutdown(limited) != nil {
		_ = web.Close() // somebody does not read
	}
	return nil
}

// handler is all that is served.
func (s *server) handler(db *dbmutex.DB) (http.Handler, error) {
	options := dashboard.Options{Logger: s.detailed(), Actor: s.actor}
	if s.allowRelease {
		options.AllowRelease = func(*http.Request) bool { return true }
	}
	pages, err := dashboard.New(db, options)
	if err != nil {
		return nil, err
	}
	private := http.NewServeMux()
	private.Handle("/", pages)
	if s.metrics {
		collector, err := prommutex.NewCollector(db, prommutex.CollectorOptions{})
		if err != nil {
			return nil, err
		}
		registry := prometheus.NewRegistry()
		if err := registry.Register(collector); err != nil {
			return nil, err
		}
		private.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	}
	all := http.NewServeMux()
	all.Handle("/", s.authenticated(private))
	all.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if s.healthy(db) != nil {
			http.Error(w, "the database does not answer", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	return secured(s.fromHere(all)), nil
}

// secured sets the headers of answers that are not the dashboard's, which has stricter ones of its own.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "same-origin")
		header.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// detailed is a logger that also says who released what, even if the program is quiet.
func (s *server) detailed() *slog.Logger {
	options := &slog.HandlerOptions{}
	if s.quiet {
		options.Level = slog.LevelWarn
	}
	if s.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}

// actor is who sent a request.
func (s *server) actor(r *http.Request) string {
	if user, _, authenticated := r.BasicAuth(); authenticated && s.user != "" {
		return user
	}
	return r.RemoteAddr
}

// healthy asks the database, once a second at the most.
func (s *server) healthy(db *dbmutex.DB) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.asked) < healthAge {
		return s.health
	}
	ctx, cancel := context.WithTimeout(context.Background(), healthLimit)
	defer cancel()
	if _, s.health = db.WithContext(ctx).Leases(dbmutex.LeaseQuery{Limit: 1}); s.health != nil {
		s.log.Warn("the database does not answer: " + oneLine(s.health.Error()))
	}
	s.asked = time.Now()
	return s.health
}

// authenticated asks for the user and the password, if there are any.
func (s *server) authenticated(next http.Handler) http.Handler {
	if s.user == "" {
		return next
	}
	want := sha256.Sum256([]byte(s.user + "\x00" + s.password))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		got := sha256.Sum256([]byte(user + "\x00" + password))
		if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="dbmutex", charset="UTF-8"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// fromHere refuses what a website sends through a browser of this machine, under a name of its own that leads here.
func (s *server) fromHere(next http.Handler) http.Handler {
	if !s.loopback {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLoopback(r.Host) {
			http.Error(w, "the Host header is not this machine's", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// isLoopback says whether a Host header, perhaps with a port, is localhost or a loopback address.
func isLoopback(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = strings.Trim(host, "[]")
	}
	return strings.EqualFold(name, "localhost") || net.ParseIP(name).IsLoopback()
}
