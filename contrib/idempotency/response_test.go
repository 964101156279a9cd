package idempotency_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/idempotency"
)

// TestAResponseIsWhatItWouldBeWithoutTheMiddleware, the first time and when it is replayed.
func TestAResponseIsWhatItWouldBeWithoutTheMiddleware(t *testing.T) {
	handlers := map[string]http.HandlerFunc{
		"nothing":      func(http.ResponseWriter, *http.Request) {},
		"a body":       func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"204":          func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"304":          func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) },
		"an error":     func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusUnprocessableEntity) },
		"a redirect":   func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/done", http.StatusSeeOther) },
		"a large body": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 10_000)) },
		"no type": func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			_, _ = io.WriteString(w, "<html>")
		},
		"early hints": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusAccepted)
		},
		"headers too late": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, "{}")
			w.Header().Set("X-Late", "x")
			http.Error(w, "too late", http.StatusInternalServerError)
		},
		"one buffer": func(w http.ResponseWriter, _ *http.Request) {
			var buffer [1]byte
			for _, buffer[0] = range []byte("apples") {
				n, err := w.Write(buffer[:])
				assert.Equal(t, 1, n)
				assert.NoError(t, err)
			}
		},
	}
	each(t, func(t *testing.T, p *place) {
		for name, handler := range handlers {
			plain := &server{Server: httptest.NewServer(handler)}
			t.Cleanup(plain.Close)
			s := p.serve(t, none, handler)
			r := request{key: `"` + name + `"`}
			want, err := plain.send(t.Context(), r)
			require.NoError(t, err)
			for _, replayed := range []bool{false, true} {
				got, err := s.send(t.Context(), r)
				require.NoError(t, err)
				require.Equal(t, replayed, got.replayed, name)
				got.replayed = false
				got.header.Del("Idempotent-Replayed")
				for _, h := range []http.Header{want.header, got.header} {
					h.Del("Date")
				}
				require.Equal(t, want, got, name)
			}
		}
	})
}

// inside sends a request to a handler directly, as a program may which is no web server, and returns what it set.
func inside(t *testing.T, h http.Handler, key string) *httptest.ResponseRecorder {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/orders", strings.NewReader("apples"))
	require.NoError(t, err)
	r.Header.Set("User", "anna")
	r.Header.Set("Idempotency-Key", key)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestHeadersOfOneConnectionAreNotReplayed(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		own := []string{
			"Connection", "Content-Length", "Date", "Keep-Alive", "Set-Cookie", "Trailer", "Transfer-Encoding", "Upgrade",
			"keep-alive",
		}
		idempotent, err := idempotency.New(p.open(t), caller, none)
		require.NoError(t, err)
		h := idempotent(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for _, name := range own {
				w.Header()[name] = []string{"first"}
			}
			w.Header().Set("ETag", "v1")
		}))
		first, again := inside(t, h, "k"), inside(t, h, "k")
		for _, name := range own {
			require.Equal(t, []string{"first"}, first.Header()[name], name)
			require.NotContains(t, again.Header(), name)
		}
		require.Equal(t, http.Header{"Etag": {"v1"}, "Idempotent-Replayed": {"true"}}, again.Header())
	})
}

// TestHeadersOfOtherMiddlewares are those of their own request. Cookies and Vary are of both.
func TestHeadersOfOtherMiddlewares(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		idempotent, err := idempotency.New(p.open(t), caller, none)
		require.NoError(t, err)
		inner := idempotent(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Add("Vary", "Accept")
			w.Header().Add("Set-Cookie", "inner")
			w.Header().Set("X", "inner")
		}))
		requests := 0
		outer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			requests++
			w.Header().Add("Vary", "Origin")
			w.Header().Add("Set-Cookie", "outer")
			w.Header().Set("X", "outer")
			w.Header().Set("X-Request", fmt.Sprint(requests))
			inner.ServeHTTP(w, r)
		})
		require.Equal(t, http.Header{
			"Vary": {"Origin", "Accept"}, "Set-Cookie": {"outer", "inner"}, "X": {"inner"}, "X-Request": {"1"},
		}, inside(t, outer, "k").Header())
		require.Equal(t, http.Header{
			"Vary": {"Origin", "Accept"}, "Set-Cookie": {"outer"}, "X": {"inner"}, "X-Request": {"2"},
			"Idempotent-Replayed": {"true"},
		}, inside(t, outer, "k").Header())
	})
}

// TestARequestThatIsCutOff does not run: nobody knows what it would have asked for.
func TestARequestThatIsCutOff(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var orders orders
		s := p.serve(t, none, orders.place)
		c, err := net.Dial("tcp", s.Listener.Addr().String())
		require.NoError(t, err)
		defer func() { _ = c.Close() }()
		_, err = io.WriteString(c,
			"POST /orders HTTP/1.1\r\nHost: x\r\nUser: anna\r\nIdempotency-Key: k\r\nContent-Length: 9\r\n\r\nappl")
		require.NoError(t, err)
		require.NoError(t, c.(*net.TCPConn).CloseWrite())
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Contains(t, string(got), "400 Bad Request")
		require.Contains(t, string(got), "could not be read")
		require.Zero(t, orders.Load())
	})
}

// TestAPathIsWhatTheClientAskedFor, though a router has stripped it.
func TestAPathIsWhatTheClientAskedFor(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var orders orders
		idempotent, err := idempotency.New(p.open(t), caller, none)
		require.NoError(t, err)
		h := idempotent(http.HandlerFunc(orders.place))
		mux := http.NewServeMux()
		for _, tenant := range []string{"/a", "/b"} {
			mux.Handle(tenant+"/", http.StripPrefix(tenant, h))
		}
		s := &server{Server: httptest.NewServer(mux)}
		t.Cleanup(s.Close)
		s.must(t, http.StatusCreated, request{key: "k", path: "/a/orders"})
		s.requireRefused(t, http.StatusUnprocessableEntity, "already used", request{key: "k", path: "/b/orders"})
		require.True(t, s.must(t, http.StatusCreated, request{key: "k", path: "/a/orders"}).replayed)
	})
}

// TestWhatOptionsAreByDefault: a response is kept for a day, and a body may have a MiB. The handler knows its length.
func TestWhatOptionsAreByDefault(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		lengths := make(chan int64, 1)
		s := p.serve(t, none, func(_ http.ResponseWriter, r *http.Request) { lengths <- r.ContentLength })
		s.must(t, http.StatusOK, request{key: "k", body: strings.Repeat("b", 1<<20)})
		require.EqualValues(t, 1<<20, <-lengths)
		s.requireRefused(t, http.StatusRequestEntityTooLarge, "too large", request{key: "l", body: strings.Repeat("b", 1<<20+1)})
		var record dbmutex.DBOnce
		require.NoError(t, p.open(t).Take(&record).Error)
		require.NotNil(t, record.ExpiresAt)
		kept := record.ExpiresAt.Sub(record.CreationTime)
		require.True(t, kept >= 24*time.Hour && kept < 25*time.Hour, kept)
	})
}

// TestKeysThatNoServerLetsPass come from a program that calls the handler itself.
func TestKeysThatNoServerLetsPass(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var orders orders
		idempotent, err := idempotency.New(p.open(t), caller, none)
		require.NoError(t, err)
		h := idempotent(http.HandlerFunc(orders.place))
		for _, key := range []string{"a\x7f", "a\x1f", "\"a\n\"", "\"\t\""} {
			require.Equal(t, http.StatusBadRequest, inside(t, h, key).Code, "%q", key)
		}
		require.Zero(t, orders.Load())
		for _, key := range []string{"k", " k\t", " \"k\" "} {
			require.Equal(t, http.StatusCreated, inside(t, h, key).Code, "%q", key)
		}
		require.EqualValues(t, 1, orders.Load())
	})
}
