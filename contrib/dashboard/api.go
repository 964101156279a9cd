package dashboard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/gorm-dbmutex/dbmutex"
)

// maxBody is how many bytes of a request are read.
const maxBody = 1 << 16

// leasesJSON is a page for programs.
type leasesJSON struct {
	Now    time.Time   `json:"now"` // the database's clock
	Leases []leaseJSON `json:"leases"`
	Next   *string     `json:"next"` // the last id, if more follow
}

type leaseJSON struct {
	LockID       string     `json:"lock_id"`
	Holder       string     `json:"holder"`
	LeaseID      string     `json:"lease_id"`
	CreationTime time.Time  `json:"creation_time"`
	ExpiresAt    *time.Time `json:"expires_at"`
	State        string     `json:"state"`
	HeldSeconds  int64      `json:"held_seconds"`
	LeftSeconds  *int64     `json:"left_seconds"` // < 0: it ran out that long ago
}

type statsJSON struct {
	Now           time.Time  `json:"now"`
	Held          int64      `json:"held"`
	Expired       int64      `json:"expired"`
	WithoutExpiry int64      `json:"without_expiry"`
	Oldest        *leaseJSON `json:"oldest"`
}

func toJSON(info dbmutex.LeaseInfo) leaseJSON {
	l := leaseJSON{
		LockID: info.LockID, Holder: info.Holder, LeaseID: info.LeaseID, CreationTime: info.CreationTime.UTC(),
		State: "held", HeldSeconds: int64(info.HeldFor() / time.Second),
	}
	if info.Expired() {
		l.State = "expired"
	}
	if info.Expires() {
		until, left := info.ExpiresAt.UTC(), int64(info.Left/time.Second)
		l.ExpiresAt, l.LeftSeconds = &until, &left
	}
	return l
}

func (h *handler) apiLeases(w http.ResponseWriter, r *http.Request) {
	_, q, err := ask(r.URL.Query())
	if err != nil {
		h.apiFailed(w, r, err)
		return
	}
	found := h.lists.get(q)
	switch {
	case !found.wait(r.Context()):
	case found.err != nil:
		h.apiFailed(w, r, found.err)
	default:
		leases, more := cut(found)
		page := leasesJSON{Now: h.now(found), Leases: make([]leaseJSON, len(leases))}
		for i, l := range leases {
			page.Leases[i] = toJSON(l.LeaseInfo)
		}
		if more && q.Order == dbmutex.ByLockID {
			page.Next = &leases[len(leases)-1].LockID
		}
		answerJSON(w, http.StatusOK, page)
	}
}

func (h *handler) apiLease(w http.ResponseWriter, r *http.Request) {
	found := h.leases.get(r.URL.Query().Get("id"))
	switch {
	case !found.wait(r.Context()):
	case found.err == nil && found.value == nil, errors.Is(found.err, dbmutex.ErrInvalidLockID):
		answerJSON(w, http.StatusNotFound, leasesJSON{Now: h.clock(found.at), Leases: []leaseJSON{}})
	case found.err != nil:
		h.apiFailed(w, r, found.err)
	default:
		answerJSON(w, http.StatusOK, leasesJSON{Now: found.value.Now.UTC(), Leases: []leaseJSON{toJSON(*found.value)}})
	}
}

func (h *handler) apiStats(w http.ResponseWriter, r *http.Request) {
	found := h.stats.get(struct{}{})
	switch {
	case !found.wait(r.Context()):
	case found.err != nil:
		h.apiFailed(w, r, found.err)
	default:
		s := found.value
		stats := statsJSON{Now: s.Now.UTC(), Held: s.Held, Expired: s.Expired, WithoutExpiry: s.WithoutExpiry}
		if s.Oldest != nil {
			oldest := toJSON(*s.Oldest)
			stats.Oldest = &oldest
		}
		answerJSON(w, http.StatusOK, stats)
	}
}

func (h *handler) apiRelease(w http.ResponseWriter, r *http.Request) {
	if !h.mayRelease(r) {
		h.refuse(w, r, http.StatusForbidden, "You may not release mutexes here.", "Nothing was released.")
		return
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		h.refuse(w, r, http.StatusUnsupportedMediaType, "The Content-Type must be application/json.", "Nothing was released.")
		return
	}
	var lease struct {
		LockID  string `json:"lock_id"`
		LeaseID string `json:"lease_id"`
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil || json.Unmarshal(body, &lease) != nil || lease.LockID == "" || lease.LeaseID == "" {
		h.refuse(w, r, http.StatusBadRequest, "The body must have a lock_id and a lease_id.", "Nothing was released.")
		return
	}
	released, err := h.end(r, lease.LockID, lease.LeaseID)
	if err != nil {
		h.refuse(w, r, http.StatusServiceUnavailable, "The release failed.", "The lease may last. "+h.why(err))
		return
	}
	answerJSON(w, http.StatusOK, map[string]bool{"released": released})
}

// apiFailed tells a program of a question that has no answer.
func (h *handler) apiFailed(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, dbmutex.ErrInvalidSettings) {
		h.refuse(w, r, http.StatusBadRequest, "There is no such list.", err.Error())
		return
	}
	h.refuse(w, r, http.StatusServiceUnavailable, "The database does not answer.", h.why(err))
}

// answerJSON writes it so that it can be looked at in a terminal, too.
func answerJSON(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return
	}
	var line strings.Builder
	for _, r := range string(text) {
		if unicode.IsPrint(r) {
			line.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&line, `\u%04x`, unit)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, line.String()+"\n")
}
