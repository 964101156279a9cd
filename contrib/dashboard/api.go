package dashboard

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/leaseview"
)

// maxBody is how many bytes of a request are read.
const maxBody = 1 << 16

type statsJSON struct {
	Now           time.Time        `json:"now"`
	Held          int64            `json:"held"`
	Expired       int64            `json:"expired"`
	WithoutExpiry int64            `json:"without_expiry"`
	Oldest        *leaseview.Lease `json:"oldest"`
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
		answerJSON(w, http.StatusOK, leaseview.NewPage(h.now(found), leases, more && q.Order == dbmutex.ByLockID))
	}
}

func (h *handler) apiLease(w http.ResponseWriter, r *http.Request) {
	found := h.leases.get(r.URL.Query().Get("id"))
	switch {
	case !found.wait(r.Context()):
	case found.err == nil && len(found.value) == 0, errors.Is(found.err, dbmutex.ErrInvalidLockID):
		answerJSON(w, http.StatusNotFound, leaseview.NewPage(h.clock(found.at), nil, false))
	case found.err != nil:
		h.apiFailed(w, r, found.err)
	default:
		answerJSON(w, http.StatusOK, leaseview.NewPage(found.value[0].Now, found.value, false))
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
			oldest := leaseview.NewLease(*s.Oldest)
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
	switch {
	case errors.Is(err, dbmutex.ErrInvalidSettings):
		h.refuse(w, r, http.StatusBadRequest, "There is no such list.", err.Error())
		return
	case leaseview.MissingTable(err) && r.URL.Query().Get("once") == "1":
		h.refuse(w, r, http.StatusNotFound, "There is no such table.", err.Error())
		return
	}
	h.refuse(w, r, http.StatusServiceUnavailable, "The database does not answer.", h.why(err))
}

// answerJSON writes it so that it can be looked at in a terminal, too.
func answerJSON(w http.ResponseWriter, status int, body any) {
	line, err := leaseview.Line(body)
	if err != nil {
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, line)
}
