// Package idempotency lets clients of a web server repeat a request without repeating what it does. It is a middleware for
// the header Idempotency-Key, as the draft draft-ietf-httpapi-idempotency-key-header of the IETF describes it:
//
//	idempotent, err := idempotency.New(db, userOf, idempotency.Options{})
//	mux.Handle("POST /orders", login(idempotent(placeOrder)))
//
// The first request with a key runs the handler, and its response is recorded in the database. A request that repeats it, on
// whichever server, gets the recorded response, with the header Idempotent-Replayed: true. The handler does not run again.
//
// # What the client gets otherwise
//
// These responses are application/problem+json. The handler has not run, but for a 503 of a lease that was lost:
//   - 400: the key is missing although it is required, or is not valid. A key is one header of 1 to 255 characters, in
//     quotes as the draft wants it, or without them if it has no quotes, spaces, commas, semicolons or backslashes.
//   - 403: nobody knows whose request it is.
//   - 409: a request with the key is under way. It may be sent again later.
//   - 410: a request with the key was carried out, but its response was too large to be recorded.
//   - 413: the request's body is larger than Options.MaxBody.
//   - 422: the key has been used for another request: another method, path, query or body.
//   - 503: the database failed; or the lease was lost while the handler ran, and nobody knows whether another ran as well.
//     The request may be sent again.
//
// # What is recorded
//
// A response is recorded unless it says that the client should try again: with status 401, 403, 408, 409, 425, 429, or 500
// and more. After one of these a repetition runs the handler again, as it does after a panic. So a handler that fails must
// have done nothing, or have undone it: let its transaction roll back. (Stripe's API replays a 500, too.) A failure that is
// final, such as a card that was refused, is a response with status 402 or 422.
//
// The status, the headers and the body are recorded, up to MaxResponse. Not recorded are Set-Cookie, which may be a secret
// that has changed, and headers of one connection, such as Date. Headers that other middlewares have set, outside of this
// one, are sent but not recorded. Of a header that both set, the handler's is sent; of Set-Cookie and Vary, both.
//
// # What the handler gets
//
// A response is sent when it has been recorded, so the handler's http.ResponseWriter keeps it in memory. (It is also sent if
// it is not to be recorded, or if the database fails then.) The handler cannot stream, flush, hijack or send trailers:
// http.ResponseController returns http.ErrNotSupported.
//
// The request's context is the lease's. It does not end when the client has gone: the work goes on, and the client finds its
// response when it asks again. It ends when the lease does. dbmutex.LeaseFrom finds the lease.
//
// # What is not guaranteed
//
// A crash of the server between the handler's end and the record makes a repetition run the handler again, once the lease
// has run out. So does a lease that was lost, and a database that cannot record the response: the client gets it
// nevertheless, and the error is logged. An effect in the database is safe from a lease that was lost if its transaction
// calls Lease.Guard. An effect elsewhere, such as a payment by another service, needs a key of its own there.
package idempotency

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/gorm-dbmutex/dbmutex"
)

// Options change what New makes.
type Options struct {
	// Keep is how long a response is recorded. 0 means 24 hours.
	Keep time.Duration

	// Required refuses requests without a key, with status 400. Otherwise they pass, and run each time.
	Required bool

	// Methods are those of the requests that may have a key. Others pass. nil means POST and PATCH.
	Methods []string

	// MaxBody is how many bytes the body of a request with a key may have: it is held in memory. 0 means 1 MiB.
	MaxBody int64
}

// New makes the middleware. Its records are dbmutex.Once, with the plugin's settings as opts change them, and so they need
// the table of dbmutex.DBOnce. dbmutex.WithTTL(30*time.Second) and dbmutex.WithRenewal() suit most handlers: after a crash
// of a server the key gives 409 until the TTL is over, which is 30 minutes by default. With dbmutex.WithWait a request that
// repeats one under way waits for its response, also if its client has gone, before it gets 409. SkipHeld has no effect.
//
// caller says who sent a request: the user, the account or the API key, as the program's login has found out. Keys belong to
// their callers: nobody gets the response of another, even with the same key. So put the middleware behind the login. A
// request with a key for which caller returns "" gets 403. If an API has no callers, return a constant; everybody who knows
// a key then gets its response. The host of a request does not count: if it says whose data is meant, let caller return it,
// too.
//
// No middleware before may read the request's body. The key and the caller are recorded as a hash of both.
//
// New runs one SELECT. The error is dbmutex.ErrInvalidSettings if caller is nil, an option is negative, or for settings that
// are not allowed, such as a MinHold; what DB.Once says is wrong with the handle; or the database's, which says so if the
// table is missing. The context of db counts for this SELECT alone.
func New(db *dbmutex.DB, caller func(*http.Request) string, o Options, opts ...dbmutex.Option,
) (func(http.Handler) http.Handler, error) {
	o.Keep = cmp.Or(o.Keep, 24*time.Hour)
	o.MaxBody = cmp.Or(o.MaxBody, 1<<20)
	if o.Methods == nil {
		o.Methods = []string{http.MethodPost, http.MethodPatch}
	}
	switch {
	case caller == nil:
		return nil, fmt.Errorf("%w: nobody says who the caller is", dbmutex.ErrInvalidSettings)
	case o.MaxBody < 0:
		return nil, fmt.Errorf("%w: a MaxBody of %d", dbmutex.ErrInvalidSettings, o.MaxBody)
	}
	opts = append(slices.Clone(opts), func(s *dbmutex.Settings) { s.SkipHeld = false })
	if _, err := db.Once("idempotency", o.Keep, opts...).Done(); err != nil {
		return nil, err
	}
	m := &middleware{db, caller, o, opts}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serve(w, r, next) })
	}, nil
}

type middleware struct {
	db      *dbmutex.DB
	caller  func(*http.Request) string
	options Options
	opts    []dbmutex.Option
}

// errNotRecorded is of a response that is not to be recorded.
var errNotRecorded = errors.New("the response asks for another try")

func (m *middleware) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if !slices.Contains(m.options.Methods, r.Method) {
		next.ServeHTTP(w, r)
		return
	}
	key, err := keyOf(r.Header.Values("Idempotency-Key"))
	switch {
	case err != nil:
		refuse(w, http.StatusBadRequest, "The Idempotency-Key is not valid", err.Error())
		return
	case key == "" && m.options.Required:
		refuse(w, http.StatusBadRequest, "The Idempotency-Key is missing", "This request needs a key of its own.")
		return
	case key == "":
		next.ServeHTTP(w, r)
		return
	}
	caller := m.caller(r)
	if caller == "" {
		refuse(w, http.StatusForbidden, "The caller is not known",
			"Log in, and send the request again with the same Idempotency-Key.")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, m.options.MaxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		refuse(w, http.StatusRequestEntityTooLarge, "The body is too large",
			fmt.Sprintf("With an Idempotency-Key it may have %d bytes.", tooLarge.Limit))
		return
	} else if err != nil {
		refuse(w, http.StatusBadRequest, "The body could not be read", "Send the request again.")
		return
	}

	ctx := context.WithoutCancel(r.Context())
	once := m.db.WithContext(ctx).Once("idempotency/"+digest(caller, key), m.options.Keep, m.opts...)
	fingerprint := digest(r.Method, cmp.Or(r.RequestURI, r.URL.RequestURI()), string(body))
	var own *recorder
	recorded, err := dbmutex.OnceValue(once, func(ctx context.Context) (response, error) {
		again := r.WithContext(ctx)
		again.Body, again.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		own = &recorder{header: http.Header{}}
		next.ServeHTTP(own, again)
		if asksForAnotherTry(own.code()) {
			return response{}, errNotRecorded
		}
		return own.response(fingerprint), nil
	})
	var timeout *dbmutex.TimeoutError
	switch {
	case own == nil && err == nil:
		recorded.replay(w, fingerprint)
	case own == nil && errors.Is(err, dbmutex.ErrNotAcquired):
		tryAgain(w, http.StatusConflict, "A request with this Idempotency-Key is under way")
	case own == nil:
		m.db.Logger.Error(ctx, "idempotency: the request was not carried out: %v", err)
		tryAgain(w, http.StatusServiceUnavailable, "The request was not carried out")
	case errors.As(err, &timeout) && timeout.Lost: // another request with the key may have been carried out meanwhile
		m.db.Logger.Error(ctx, "idempotency: the response is not sent: %v", err)
		tryAgain(w, http.StatusServiceUnavailable, "The outcome of the request is not known")
	default: // to refuse would make the client repeat what is done
		if err != nil && !errors.Is(err, errNotRecorded) {
			m.db.Logger.Error(ctx, "idempotency: the response is sent: %v", err)
		}
		own.send(w)
	}
}

// digest is a hash of texts, none of which can pass for a part of another.
func digest(texts ...string) string {
	hash := sha256.New()
	for _, text := range texts {
		_, _ = fmt.Fprintf(hash, "%d:%s", len(text), text)
	}
	return hex.EncodeToString(hash.Sum(nil))
}
