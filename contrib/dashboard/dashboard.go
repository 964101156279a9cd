// Package dashboard shows in a browser who holds which mutex or semaphore of dbmutex, since when and until when, what ran
// out, and what is done once. It is an http.Handler for a program that has a web server:
//
//	h, err := dashboard.New(db, dashboard.Options{})
//	mux.Handle("/ops/mutexes/", http.StripPrefix("/ops/mutexes", auth(h)))
//
// It asks nobody who they are: that is for auth, the program's own middleware. It is read only unless Options.AllowRelease
// says otherwise.
//
// However many watch, each page is read once a second at the most, and the figures of the whole table once in 10 seconds. A
// statement has 2 seconds, and 4 at the most run at a time. The pages are as old as that, but for their times, which go on.
//
// The pages need no JavaScript; with it they stay fresh. Programs get the same from api/leases, api/leases?once=1,
// api/lease?id= and api/stats, as JSON.
package dashboard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/leaseview"
)

// Options change what New makes. The zero value shows everything, and is read only.
type Options struct {
	// AllowRelease says whether who sent a request may release a mutex by force. nil: nobody may.
	AllowRelease func(*http.Request) bool

	// Actor names who sent a request, for the log of releases, and for GORM's logger and the observer of the mutexes. nil or
	// "": they name the program's own holder.
	Actor func(*http.Request) string

	// Refresh is how often a page that is looked at asks for what is new. 0 means 5 seconds; < 0 means never.
	Refresh time.Duration

	// Title says on every page which table it shows. "" means the database's kind and the table's name.
	Title string

	// Logger is told of every release by force, also of one that failed. nil means slog.Default().
	Logger *slog.Logger
}

// pace is how much the database is asked.
type pace struct {
	answer, stats time.Duration // how long they count as fresh
	limit         time.Duration // of a statement
	statements    int           // at a time
}

// releaseLimit is above the 5 seconds for which a release waits for a transaction that pins the lease.
const releaseLimit = 10 * time.Second

// handler is the dashboard. It is safe for concurrent use.
type handler struct {
	db      *dbmutex.DB
	options Options
	pace    pace
	slots   chan struct{}
	routes  map[string]map[string]http.HandlerFunc // by path and method

	lists  *cache[dbmutex.LeaseQuery, []dbmutex.LeaseInfo]
	leases *cache[string, []dbmutex.LeaseInfo] // of a mutex's id: its own, and those of the semaphore
	stats  *cache[struct{}, dbmutex.LeaseStats]
}

// New makes the dashboard of the handle's table. All its links are relative: it may be mounted anywhere, under a path that
// ends in a slash.
//
// New checks the handle with one SELECT. The error is what dbmutex.DB.Leases says is wrong with the handle, such as
// dbmutex.ErrNotRegistered; or the database's, which says so if the table is missing. If the database fails later, the pages
// say so. The context of the handle ends what the dashboard reads.
func New(db *dbmutex.DB, o Options) (http.Handler, error) {
	return newDashboard(db, o, pace{time.Second, 10 * time.Second, 2 * time.Second, 4})
}

func newDashboard(db *dbmutex.DB, o Options, p pace) (http.Handler, error) {
	if _, err := db.Leases(dbmutex.LeaseQuery{State: dbmutex.LeasesAll, Limit: 1}); err != nil {
		return nil, err
	}
	if o.Title == "" {
		table := gorm.Statement{DB: db.Gorm}
		if err := table.Parse(&dbmutex.DBMutex{}); err != nil {
			return nil, err
		}
		o.Title = db.Name() + " · " + table.Schema.Table
	}
	o.Refresh = cmp.Or(o.Refresh, 5*time.Second)
	o.Logger = cmp.Or(o.Logger, slog.Default())
	h := &handler{db: db, options: o, pace: p, slots: make(chan struct{}, p.statements)}
	h.lists = newCache(p.answer, func(q dbmutex.LeaseQuery) (found []dbmutex.LeaseInfo, err error) {
		return found, h.ask(func(db *dbmutex.DB) error { found, err = db.Leases(q); return err })
	})
	h.leases = newCache(p.answer, func(id string) (found []dbmutex.LeaseInfo, err error) {
		return found, h.ask(func(db *dbmutex.DB) error { found, err = leaseview.Find(db, id); return err })
	})
	h.stats = newCache(p.stats, func(struct{}) (stats dbmutex.LeaseStats, err error) {
		return stats, h.ask(func(db *dbmutex.DB) error { stats, err = db.LeaseStats(); return err })
	})
	h.routes = map[string]map[string]http.HandlerFunc{
		"":            {http.MethodGet: h.list},
		"mutex":       {http.MethodGet: h.mutex},
		"release":     {http.MethodGet: h.confirm, http.MethodPost: h.release},
		"api/leases":  {http.MethodGet: h.apiLeases},
		"api/lease":   {http.MethodGet: h.apiLease},
		"api/stats":   {http.MethodGet: h.apiStats},
		"api/release": {http.MethodPost: h.apiRelease},
	}
	for name := range files {
		h.routes["static/"+name] = map[string]http.HandlerFunc{http.MethodGet: static}
	}
	sameOrigin := http.NewCrossOriginProtection()
	sameOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.refuse(w, r, http.StatusForbidden, "This came from another site.", "Nothing was released.")
	}))
	return secured(sameOrigin.Handler(http.HandlerFunc(h.route))), nil
}

const contentPolicy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// secured sets the headers that every answer has.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", contentPolicy)
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "same-origin")
		header.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// route finds the page. It is no http.ServeMux: that would redirect to paths without the prefix of the mount.
func (h *handler) route(w http.ResponseWriter, r *http.Request) {
	asked, _, _ := strings.Cut(r.RequestURI, "?")
	if r.URL.Path == "" && asked != "" && !strings.HasSuffix(asked, "/") { // the links would lead elsewhere
		w.Header().Set("Location", "./"+path.Base(asked)+"/")
		w.WriteHeader(http.StatusPermanentRedirect)
		return
	}
	methods, found := h.routes[place(r)]
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	switch serve := methods[method]; {
	case serve != nil:
		serve(w, r)
	case found:
		allowed := []string{}
		for method := range methods {
			allowed = append(allowed, method)
		}
		slices.Sort(allowed)
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	default:
		http.NotFound(w, r)
	}
}

// place is a request's path in the dashboard.
func place(r *http.Request) string { return strings.TrimPrefix(r.URL.Path, "/") }

// ask lets the database be asked, within the limits. A panic of a driver or a callback becomes an error: it is on a
// goroutine that net/http does not guard.
func (h *handler) ask(question func(db *dbmutex.DB) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	ctx := h.db.Statement.Context
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, h.pace.limit)
	defer cancel()
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return question(h.db.WithContext(ctx))
}

// mayRelease says whether who sent the request may release.
func (h *handler) mayRelease(r *http.Request) bool {
	return h.options.AllowRelease != nil && h.options.AllowRelease(r)
}

// end releases a lease by force, and says whether it did. It goes on if the browser does not wait for it.
func (h *handler) end(r *http.Request, id, leaseID string) (released bool, err error) {
	actor := ""
	if h.options.Actor != nil {
		actor = visible(h.options.Actor(r))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), releaseLimit)
	defer cancel()
	by := func(s *dbmutex.Settings) { s.Holder = cmp.Or(actor, s.Holder) }
	released, err = leaseview.Release(h.db.WithContext(ctx), id, leaseID, by)
	h.lists.forget()
	h.leases.forget()
	h.stats.forget()
	log := h.options.Logger.With("mutex", id, "lease_id", leaseID, "actor", actor, "remote_addr", r.RemoteAddr)
	switch {
	case errors.Is(err, dbmutex.ErrInvalidLockID): // there is no such mutex, and no such lease
		return false, nil
	case err != nil:
		log.ErrorContext(ctx, "dbmutex: a release from the dashboard failed", "error", err)
	case released:
		log.WarnContext(ctx, "dbmutex: the dashboard released a lease by force")
	default:
		log.InfoContext(ctx, "dbmutex: a lease that the dashboard was to release had ended")
	}
	return released, err
}
