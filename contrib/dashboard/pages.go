package dashboard

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/leaseview"
)

// pageLeases is how many leases a page has.
const pageLeases = 50

//go:embed pages.html
var pages string

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"argument": argument, "link": link, "parts": parts, "visible": visible,
	"number": grouped,
}).Parse(pages))

// page is what every page has.
type page struct {
	Heading string
	Table   string  // which one it is
	Refresh float64 // seconds; 0 = never
	May     bool    // release
	Note    *note
}

// note is a message on a page.
type note struct {
	Class, Role    string
	Strong, ID, At string
	Text           string
}

// lease is a lease on a page.
type lease struct {
	dbmutex.LeaseInfo
	since time.Duration // how long ago the database told of it
}

// Held is how long.
func (l lease) Held() time.Duration { return l.HeldFor() + l.since }

// Left is until it runs out, or since then if it is negative.
func (l lease) Left() time.Duration { return l.LeaseInfo.Left - l.since }

// HeldWords are for people.
func (l lease) HeldWords() string { return words(l.Held()) }

// LeftWords are for people.
func (l lease) LeftWords() string { return words(l.Left().Abs()) }

// Seconds is a duration for the script.
func (lease) Seconds(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()) }

// Began is when it was acquired.
func (l lease) Began() string { return moment(l.CreationTime) }

// Ends is when it runs out: the time of the day, if that is today.
func (l lease) Ends() string {
	if l.ExpiresAt.Sub(l.Now).Abs() < 12*time.Hour {
		return l.ExpiresAt.UTC().Format(time.TimeOnly)
	}
	return l.ExpiresAt.UTC().Format("2006-01-02 15:04")
}

// EndsFull is when it runs out, with its date.
func (l lease) EndsFull() string { return moment(*l.ExpiresAt) }

// Clock was the database's.
func (l lease) Clock() string { return l.Now.UTC().Format("2006-01-02 15:04:05.000 UTC") }

func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// asked is what the list's address says.
type asked struct {
	State, Order, Prefix, After string
	Once                        bool
}

// ask reads the address. It asks for one more than a page has.
func ask(v url.Values) (a asked, q dbmutex.LeaseQuery, err error) {
	a = asked{v.Get("state"), v.Get("order"), v.Get("prefix"), v.Get("after"), v.Get("once") == "1"}
	if a.State == "" {
		a.State = "held"
	}
	if a.Order == "" {
		a.Order = "id"
	}
	state, known := leaseview.States[a.State]
	order, sorted := leaseview.Orders[a.Order]
	switch {
	case !known:
		err = fmt.Errorf("%w: there is no state %q", dbmutex.ErrInvalidSettings, a.State)
	case !sorted:
		err = fmt.Errorf("%w: there is no order %q", dbmutex.ErrInvalidSettings, a.Order)
	}
	q = dbmutex.LeaseQuery{
		Once: a.Once, State: state, Prefix: a.Prefix, Order: order, After: a.After, Limit: pageLeases + 1,
	}
	if slot := v.Get("after_slot"); slot != "" {
		var none error
		if q.AfterSlot, none = strconv.Atoi(slot); none != nil {
			err = fmt.Errorf("%w: there is no slot %q", dbmutex.ErrInvalidSettings, slot)
		}
	}
	return a, q, err
}

// With is the address of a list that differs in one thing. Only the state and the prefix stay for another order or page. A
// state is that of mutexes.
func (a asked) With(what, value string) string {
	v := url.Values{}
	set := func(name, value, usual string) {
		if value != usual {
			v.Set(name, value)
		}
	}
	set("prefix", a.Prefix, "")
	set("state", a.State, "held")
	if what != "after" {
		set("order", a.Order, "id")
	}
	usual := map[string]string{"state": "held", "order": "id"}[what]
	v.Del(what)
	set(what, value, usual)
	if a.Once && what != "state" || what == "once" {
		v.Set("once", "1")
	}
	return "./?" + v.Encode()
}

type listPage struct {
	page
	asked
	Stats   *stats
	Groups  []group
	last    dbmutex.LeaseInfo
	n       int // leases
	More    bool
	As      string // of when the rows are, by the database's clock; "" = nothing is known
	NoTable bool   // of Once
}

// group is a mutex with its lease, or a semaphore with its leases.
type group struct {
	LockID  string
	Holders string // how many a semaphore has; "" for a mutex
	Leases  []lease
}

// Commands are those for a shell, or none if a person could not type them.
func (g group) Commands() (lines []string) {
	id := argument(g.LockID)
	if id == "" {
		return nil
	}
	lines = append(lines, "dbmutex show "+id)
	for _, l := range g.Leases {
		if lease := argument(l.LeaseID); lease != "" {
			lines = append(lines, fmt.Sprintf("dbmutex release --lease %s %s", lease, id))
		}
	}
	return lines
}

func groupsOf(infos []dbmutex.LeaseInfo, since time.Duration) (groups []group) {
	for _, infos := range leaseview.Groups(infos) {
		g := group{LockID: infos[0].LockID}
		if infos[0].Slot > 0 {
			g.Holders = leaseview.Holders(infos)
		}
		for _, info := range infos {
			g.Leases = append(g.Leases, lease{info, since})
		}
		groups = append(groups, g)
	}
	return groups
}

type stats struct {
	dbmutex.LeaseStats
	Oldest *lease
}

// list shows a page of leases, and the figures.
func (h *handler) list(w http.ResponseWriter, r *http.Request) {
	a, q, err := ask(r.URL.Query())
	if err != nil {
		h.refuse(w, r, http.StatusBadRequest, "There is no such list.", err.Error())
		return
	}
	figures, found := h.stats.get(struct{}{}), h.lists.get(q) // at the same time
	if !found.wait(r.Context()) || !figures.wait(r.Context()) {
		return
	}
	if errors.Is(found.err, dbmutex.ErrInvalidSettings) {
		h.refuse(w, r, http.StatusBadRequest, "There is no such list.", found.err.Error())
		return
	}
	p := listPage{page: h.page(r, "Mutexes"), asked: a}
	name := "list"
	if a.Once {
		name, p.Heading = "onces", "Once"
	}
	status := http.StatusOK
	if id := r.URL.Query().Get("done"); id != "" {
		p.Note = &note{Class: "ok", Role: "status", Strong: "Released", ID: id,
			Text: "Whoever had it learns of it by the next renewal, or at the end of the work."}
	}
	shown := found.good()
	if shown != nil {
		var infos []dbmutex.LeaseInfo
		infos, p.More = cut(shown)
		if p.n = len(infos); p.n > 0 {
			p.Groups, p.last = groupsOf(infos, shown.age()), infos[p.n-1]
		}
		p.As = h.now(shown).Format(time.TimeOnly)
	}
	switch {
	case found.err != nil && leaseview.MissingTable(found.err) && a.Once:
		p.NoTable = true
	case found.err != nil:
		status = http.StatusServiceUnavailable
		p.Note = h.noAnswer(found.err, p.As)
	}
	if shown := figures.good(); shown != nil {
		p.Stats = &stats{LeaseStats: shown.value}
		if oldest := shown.value.Oldest; oldest != nil {
			p.Stats.Oldest = &lease{*oldest, shown.age()}
		}
	}
	h.render(w, status, name, p)
}

// cut are the leases of a page, and whether more follow.
func cut(a *answer[[]dbmutex.LeaseInfo]) (leases []dbmutex.LeaseInfo, more bool) {
	return a.value[:min(len(a.value), pageLeases)], len(a.value) > pageLeases
}

// now is the database's clock when it gave a list.
func (h *handler) now(a *answer[[]dbmutex.LeaseInfo]) time.Time {
	if len(a.value) > 0 {
		return a.value[0].Now.UTC()
	}
	return h.clock(a.at)
}

// clock is the database's at a time of this process: for answers without leases, as these do not tell. It is this process's
// if the figures do not tell it either.
func (h *handler) clock(at time.Time) time.Time {
	figures := h.stats.get(struct{}{})
	<-figures.done
	if good := figures.good(); good != nil {
		return good.value.Now.UTC().Add(at.Sub(good.at))
	}
	return at.UTC()
}

// noAnswer says that the database cannot be asked. as is of when the rows are that are shown, or "".
func (h *handler) noAnswer(err error, as string) *note {
	return &note{Class: "bad", Role: "alert", Strong: "The database does not answer.", Text: h.why(err), At: as}
}

// why says what is wrong with the database.
func (h *handler) why(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("It had %v.", h.pace.limit)
	}
	return visible(err.Error())
}

type mutexPage struct {
	page
	ID    string
	Lease *lease // of the mutex
	Slots *group // the semaphore of that id
	Error bool   // nothing is known
}

// mutex shows one.
func (h *handler) mutex(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("id")
	found := h.leases.get(id)
	if !found.wait(r.Context()) {
		return
	}
	p, status := mutexPage{page: h.page(r, visible(id)), ID: id}, http.StatusOK
	shown := found.good()
	switch {
	case found.err != nil && !errors.Is(found.err, dbmutex.ErrInvalidLockID):
		status = http.StatusServiceUnavailable
		p.Note, p.Error = h.noAnswer(found.err, ""), shown == nil
	case shown == nil || len(shown.value) == 0:
		status = http.StatusNotFound
	}
	if shown != nil && len(shown.value) > 0 {
		for _, g := range groupsOf(shown.value, shown.age()) {
			if g.Holders != "" {
				p.Slots = &g
			} else {
				p.Lease = &g.Leases[0]
			}
		}
		if p.Note != nil {
			p.Note.At = shown.value[0].Now.UTC().Format(time.TimeOnly)
		}
	}
	h.render(w, status, "mutex", p)
}

type confirmPage struct {
	page
	Lease lease
}

// confirm asks whether the lease is to be released.
func (h *handler) confirm(w http.ResponseWriter, r *http.Request) {
	if !h.mayRelease(r) {
		h.refuse(w, r, http.StatusForbidden, "You may not release mutexes here.", "Nothing was released.")
		return
	}
	id, leaseID := r.URL.Query().Get("id"), r.URL.Query().Get("lease")
	if id == "" || leaseID == "" {
		h.refuse(w, r, http.StatusBadRequest, "It is not said which lease is to be released.", "Nothing was released.")
		return
	}
	h.confirmLease(w, r, http.StatusOK, id, leaseID, nil)
}

func (h *handler) confirmLease(w http.ResponseWriter, r *http.Request, status int, id, leaseID string, n *note) {
	found := h.leases.get(id)
	if !found.wait(r.Context()) {
		return
	}
	p := confirmPage{page: h.page(r, "Release "+visible(id))}
	p.Refresh, p.Note = 0, n
	seen := slices.IndexFunc(found.value, func(info dbmutex.LeaseInfo) bool { return info.LeaseID == leaseID })
	switch {
	case found.err == nil && seen >= 0:
		p.Lease = lease{found.value[seen], found.age()}
		h.render(w, status, "confirm", p)
	case n != nil:
		h.refuse(w, r, status, n.Strong, n.Text)
	case found.err == nil || errors.Is(found.err, dbmutex.ErrInvalidLockID):
		h.refuse(w, r, http.StatusConflict, "That lease had ended.", "Nothing was released.")
	default:
		h.refuse(w, r, http.StatusServiceUnavailable, "The database does not answer.", h.why(found.err))
	}
}

// release releases the lease that was confirmed.
func (h *handler) release(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if !h.mayRelease(r) {
		h.refuse(w, r, http.StatusForbidden, "You may not release mutexes here.", "Nothing was released.")
		return
	}
	if err := r.ParseForm(); err != nil {
		h.refuse(w, r, http.StatusBadRequest, "The form cannot be read.", "Nothing was released.")
		return
	}
	// The address counts first: in the fields of a form browsers change line breaks.
	field := func(name string) string {
		if v := r.URL.Query().Get(name); v != "" {
			return v
		}
		return r.PostForm.Get(name)
	}
	id, leaseID, confirmed := field("id"), field("lease"), r.PostForm.Get("confirm")
	switch {
	case id == "" || leaseID == "":
		h.refuse(w, r, http.StatusBadRequest, "It is not said which lease is to be released.", "Nothing was released.")
		return
	case confirmed != id && confirmed != visible(id):
		h.confirmLease(w, r, http.StatusUnprocessableEntity, id, leaseID, &note{Class: "bad", Role: "alert",
			Strong: "That is not the mutex’s id.", Text: "Nothing was released."})
		return
	}
	switch released, err := h.end(r, id, leaseID); {
	case err != nil:
		h.refuse(w, r, http.StatusServiceUnavailable, "The release failed.", "The lease may last. "+h.why(err))
	case !released:
		h.refuse(w, r, http.StatusConflict, "That lease had ended.", "Nothing was released.")
	default:
		w.Header().Set("Location", "./?done="+url.QueryEscape(id)) // http.Redirect would take it from the root
		w.WriteHeader(http.StatusSeeOther)
	}
}

// page is what every page has.
func (h *handler) page(r *http.Request, heading string) page {
	return page{
		Heading: heading, Table: h.options.Title,
		Refresh: max(h.options.Refresh, 0).Seconds(), May: h.mayRelease(r),
	}
}

// refuse says why nothing was done, in a page, or to a program.
func (h *handler) refuse(w http.ResponseWriter, r *http.Request, status int, what, why string) {
	if strings.HasPrefix(place(r), "api/") {
		answerJSON(w, status, map[string]string{"error": what + " " + why})
		return
	}
	p := h.page(r, what)
	p.Refresh = 0
	h.render(w, status, "refusal", struct {
		page
		Why string
	}{p, visible(why)})
}

// render writes a page, or nothing of it.
func (h *handler) render(w http.ResponseWriter, status int, name string, data any) {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		h.options.Logger.Error("dbmutex: a page of the dashboard cannot be made", "error", err)
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

// column is a heading of the list.
type column struct{ Name, Class, Link, Sorted, Arrow string }

// Columns are those of the list. Each sorts in one way.
func (p listPage) Columns() []column {
	columns := []column{
		{Name: "Mutex", Class: "c-id", Link: "id", Sorted: "ascending", Arrow: "↑"},
		{Name: "Holder", Class: "c-holder"},
		{Name: "Held for", Class: "c-since", Link: "oldest", Sorted: "descending", Arrow: "↓"},
		{Name: "Ends in", Class: "c-left", Link: "ending", Sorted: "ascending", Arrow: "↑"},
	}
	if p.Once {
		columns[0].Name, columns[2].Name, columns[3].Name = "Once", "Begun", "State"
	}
	for i := range columns {
		c := &columns[i]
		if c.Link != p.Order {
			c.Sorted, c.Arrow = "", ""
		}
		if c.Link != "" {
			c.Link = p.With("order", c.Link)
		}
	}
	return columns
}

// What says which mutexes these are.
func (p listPage) What() string {
	text := map[string]string{"held": "Mutexes that are held", "expired": "Mutexes that ran out", "all": "All mutexes"}[p.State]
	if p.Once {
		text = "Work of Once, which is done or runs"
	}
	if p.Prefix != "" {
		text += ", and whose id begins with " + visible(p.Prefix)
	}
	return text
}

// Next is the address of the page that follows.
func (p listPage) Next() string {
	next := p.With("after", p.last.LockID)
	if p.last.Slot > 0 {
		next += fmt.Sprintf("&after_slot=%d", p.last.Slot)
	}
	return next
}

// Count says how many there are.
func (p listPage) Count() string {
	n := p.n
	total := int64(n)
	if p.Stats != nil && !p.Once {
		total = map[string]int64{"held": p.Stats.Held, "expired": p.Stats.Expired, "all": p.Stats.Held + p.Stats.Expired}[p.State]
	}
	switch {
	case p.More && p.Order != "id":
		return fmt.Sprintf("The first %d. In the order of their ids you can see all.", n)
	case p.More && p.Prefix == "" && p.After == "" && total > int64(n):
		return fmt.Sprintf("%d of %s", n, grouped(total))
	case p.More:
		return fmt.Sprintf("%d, more follow", n)
	case p.After != "":
		return fmt.Sprintf("the last %d", n)
	}
	return fmt.Sprintf("%d of %d", n, n)
}
