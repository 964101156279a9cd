package idempotency

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// MaxResponse is how many bytes the headers and the body of a response may have to be recorded: 512 KiB.
const MaxResponse = 512 << 10

// response is what is recorded, as JSON.
type response struct {
	Fingerprint string      `json:"fingerprint"` // of the request
	Status      int         `json:"status"`
	Header      http.Header `json:"header,omitempty"`
	Body        []byte      `json:"body,omitempty"`
	TooLarge    bool        `json:"too_large,omitempty"` // without the headers and the body
}

// replay answers a request that has a fingerprint.
func (r response) replay(w http.ResponseWriter, fingerprint string) {
	switch {
	case r.Fingerprint != fingerprint:
		refuse(w, http.StatusUnprocessableEntity, "The Idempotency-Key is already used",
			"It belongs to a request with another method, path, query or body.")
	case r.TooLarge:
		refuse(w, http.StatusGone, "The response is gone",
			fmt.Sprintf("The request was carried out, with status %d, but the response was too large to be recorded.", r.Status))
	default:
		w.Header().Set("Idempotent-Replayed", "true")
		(&recorder{sent: r.Header, status: r.Status, body: r.Body}).send(w)
	}
}

// recorder is an http.ResponseWriter that keeps a response.
type recorder struct {
	header http.Header
	sent   http.Header // header when the status was written: later changes do not count
	status int         // 0: it has not been written
	body   []byte
}

// Header returns the handler's own headers.
func (r *recorder) Header() http.Header { return r.header }

// WriteHeader keeps the first status. An informational one is not sent. It panics for what is no status, as that of net/http
// does, rather than let each replay panic.
func (r *recorder) WriteHeader(status int) {
	switch {
	case status < 100 || status > 999:
		panic(fmt.Sprintf("idempotency: %d is no status", status))
	case r.status == 0 && status >= http.StatusOK:
		r.status, r.sent = status, r.header.Clone()
	}
}

// Write keeps a part of the body.
func (r *recorder) Write(p []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	r.body = append(r.body, p...)
	return len(p), nil
}

func (r *recorder) code() int {
	r.WriteHeader(http.StatusOK)
	return r.status
}

// send sends the response. The client may have gone.
func (r *recorder) send(w http.ResponseWriter) {
	status := r.code()
	for name, values := range r.sent {
		if name == "Set-Cookie" || name == "Vary" { // other middlewares add to them, too
			values = slices.Concat(w.Header()[name], values)
		}
		w.Header()[name] = values
	}
	w.WriteHeader(status)
	_, _ = w.Write(r.body)
}

// response is what there is to record.
func (r *recorder) response(fingerprint string) response {
	status, size := r.code(), len(r.body)
	kept := r.sent.Clone()
	for name, values := range kept {
		if slices.Contains(notRecorded, http.CanonicalHeaderKey(name)) {
			delete(kept, name)
			continue
		}
		size += len(name) + len(strings.Join(values, ""))
	}
	if size > MaxResponse {
		return response{Fingerprint: fingerprint, Status: status, TooLarge: true}
	}
	return response{fingerprint, status, kept, r.body, false}
}

// notRecorded are headers that a replay has from its own connection, or must not have.
var notRecorded = []string{
	"Connection", "Content-Length", "Date", "Keep-Alive", "Set-Cookie", "Trailer", "Transfer-Encoding", "Upgrade",
}

// asksForAnotherTry says whether the client should send the request again, as nothing final has happened.
func asksForAnotherTry(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly,
		http.StatusTooManyRequests:
		return true
	}
	return status >= http.StatusInternalServerError
}

// tryAgain asks for the same request with the same key.
func tryAgain(w http.ResponseWriter, status int, title string) {
	w.Header().Set("Retry-After", "1")
	refuse(w, status, title, "Send it again later, with the same Idempotency-Key.")
}

// refuse answers with a problem, as RFC 9457 has it.
func refuse(w http.ResponseWriter, status int, title, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"status": status, "title": title, "detail": detail})
}

// keyOf reads the header: a string as structured headers have it, or the same without quotes. "" means that there is none.
func keyOf(values []string) (key string, err error) {
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1:
		return "", errors.New("there is more than one")
	}
	text, isQuoted := strings.CutPrefix(strings.Trim(values[0], " \t"), `"`)
	if isQuoted {
		if text, err = unquote(text); err != nil {
			return "", err
		}
	} else if strings.ContainsAny(text, ` ",;\`) {
		return "", errors.New(`one with a space or one of ",;\ in it must be in quotes`)
	}
	switch {
	case text == "" || len(text) > maxKey:
		return "", fmt.Errorf("it must have 1 to %d characters", maxKey)
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }):
		return "", errors.New("it may have characters of ASCII alone that can be printed")
	}
	return text, nil
}

// maxKey is how many characters a key may have.
const maxKey = 255

// unquote reads a string of RFC 8941 after its first quote.
func unquote(text string) (string, error) {
	var key strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"' && i == len(text)-1:
			return key.String(), nil
		case c == '"':
			return "", errors.New("there is more after the last quote")
		case c == '\\' && i+1 < len(text) && (text[i+1] == '"' || text[i+1] == '\\'):
			i++
			key.WriteByte(text[i])
		case c == '\\':
			return "", errors.New("a backslash stands before what needs none")
		default:
			key.WriteByte(c)
		}
	}
	return "", errors.New("the last quote is missing")
}
