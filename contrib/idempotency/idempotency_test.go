package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/idempotency"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
	"github.com/gorm-dbmutex/dbmutex/internal/testprocess"
)

var none idempotency.Options

// orders counts the orders that a handler has placed.
type orders struct{ atomic.Int32 }

func (o *orders) place(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	n := o.Add(1)
	w.Header().Set("Location", fmt.Sprintf("/orders/%d", n))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Add("Set-Cookie", "session=secret")
	w.Header().Add("X-Two", "one")
	w.Header().Add("X-Two", "two")
	w.WriteHeader(http.StatusCreated)
	_, _ = fmt.Fprintf(w, `{"order":%d,"of":%q,"error":%v}`, n, body, err != nil)
}

func TestARepeatedRequestGetsTheSameResponseFromEveryServer(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var orders orders
		a, b := p.serve(t, none, orders.place), p.serve(t, none, orders.place)
		first := a.must(t, http.StatusCreated, request{key: `"k-1"`, body: "two apples"})
		require.Equal(t, `{"order":1,"of":"two apples","error":false}`, first.body)
		require.Equal(t, "session=secret", first.header.Get("Set-Cookie"))
		require.False(t, first.replayed)
		for _, server := range []*server{a, b, b} {
			for _, key := range []string{`"k-1"`, `k-1`} {
				again := server.must(t, http.StatusCreated, request{key: key, body: "two apples"})
				require.True(t, again.replayed)
				require.Equal(t, first.body, again.body)
				require.Equal(t, "/orders/1", again.header.Get("Location"))
				require.Equal(t, "application/json", again.header.Get("Content-Type"))
				require.Equal(t, []string{"one", "two"}, again.header.Values("X-Two"))
				require.Empty(t, again.header.Get("Set-Cookie"), "it may be a secret that has changed")
			}
		}
		require.EqualValues(t, 1, orders.Load())
		b.must(t, http.StatusCreated, request{key: `"k-2"`, body: "two apples"})
		require.EqualValues(t, 2, orders.Load())
	})
}

// TestNobodyGetsTheResponseOfAnother though their keys are the same, or seem to be.
func TestNobodyGetsTheResponseOfAnother(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var orders orders
		s := p.serve(t, none, orders.place)
		for i, r := range []request{
			{user: "anna", key: "k"}, {user: "bert", key: "k"}, {user: "annak", key: "k"}, {user: "anna", key: "kk"},
			{user: "anna4:k", key: "k"}, {user: "Anna", key: "k"}, {user: "anna", key: "K"},
		} {
			first := s.must(t, http.StatusCreated, r)
			require.False(t, first.replayed)
			require.EqualValues(t, i+1, orders.Load())
			require.True(t, s.must(t, http.StatusCreated, r).replayed)
		}
		require.EqualValues(t, 7, orders.Load())
		s.requireRefused(t, http.StatusForbidden, "caller", request{user: "nobody", key: "k"})
		require.EqualValues(t, 7, orders.Load(), "without a caller the handler does not run")
	})
}

func TestARequestThatIsUnderWay(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		began, letGo := make(chan bool), make(chan bool)
		handler := func(w http.ResponseWriter, _ *http.Request) {
			began <- true
			<-letGo
			_, _ = io.WriteString(w, "done")
		}
		a, b := p.serve(t, none, handler), p.serve(t, none, handler)
		waits := p.serve(t, none, handler, dbmutex.WithWait(dbmutex.Forever))
		first, waited := make(chan answer, 1), make(chan answer, 1)
		go send(t, a, request{key: "k"}, first)
		<-began
		for _, server := range []*server{a, b} {
			refused := server.requireRefused(t, http.StatusConflict, "under way", request{key: "k"})
			require.Equal(t, "1", refused.header.Get("Retry-After"))
		}
		go send(t, waits, request{key: "k"}, waited)
		letGo <- true
		require.False(t, (<-first).replayed)
		require.True(t, (<-waited).replayed)
		require.Equal(t, "done", b.must(t, http.StatusOK, request{key: "k"}).body)
		require.Empty(t, a.log)
		require.Empty(t, b.log)
	})
}

// send sends a request from a goroutine.
func send(t *testing.T, s *server, r request, answers chan<- answer) {
	a, err := s.send(context.WithoutCancel(t.Context()), r)
	assert.NoError(t, err)
	answers <- a
}

// TestManyRequestsWithOneKey run the handler once, whatever they get.
func TestManyRequestsWithOneKey(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var orders orders
		servers := []*server{p.serve(t, none, orders.place), p.serve(t, none, orders.place)}
		for round := range 5 {
			var all sync.WaitGroup
			for i := range 10 {
				all.Go(func() {
					for { // until it has the response
						a, err := servers[i%2].send(t.Context(), request{key: fmt.Sprint("k", round), body: "apples"})
						if !assert.NoError(t, err) {
							return
						}
						if a.status == http.StatusCreated {
							assert.Contains(t, a.body, fmt.Sprintf(`"order":%d,`, round+1))
							return
						}
						if !assert.Equal(t, http.StatusConflict, a.status, a.body) {
							return
						}
					}
				})
			}
			all.Wait()
			require.EqualValues(t, round+1, orders.Load())
		}
	})
}

func TestAKeyBelongsToOneRequest(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var orders orders
		s := p.serve(t, none, orders.place)
		good := request{key: "k", path: "/orders?now=1", body: "apples"}
		s.must(t, http.StatusCreated, good)
		for _, other := range []request{
			{key: "k", path: "/orders?now=1", body: "pears"}, {key: "k", path: "/orders?now=2", body: "apples"},
			{key: "k", path: "/returns?now=1", body: "apples"}, {key: "k", path: "/orders?now=1", body: "apples", method: "PATCH"},
			{key: "k", path: "/orders?now=1"},
		} {
			s.requireRefused(t, http.StatusUnprocessableEntity, "already used", other)
		}
		require.True(t, s.must(t, http.StatusCreated, good).replayed)
		require.EqualValues(t, 1, orders.Load())
	})
}

func TestRequestsWithoutAKey(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var orders orders
		open := p.serve(t, none, orders.place)
		strict := p.serve(t, idempotency.Options{Required: true, Methods: []string{"POST", "DELETE"}}, orders.place)
		for range 2 {
			require.False(t, open.must(t, http.StatusCreated, request{user: "nobody"}).replayed)
			strict.requireRefused(t, http.StatusBadRequest, "missing", request{})
			strict.requireRefused(t, http.StatusBadRequest, "missing", request{method: "DELETE"})
			for _, method := range []string{"GET", "PUT"} { // they pass, whatever their key
				require.False(t, open.must(t, http.StatusCreated, request{method: method, key: "k"}).replayed)
				require.False(t, strict.must(t, http.StatusCreated, request{method: method, key: `"`}).replayed)
			}
		}
		require.EqualValues(t, 10, orders.Load())
		require.False(t, strict.must(t, http.StatusCreated, request{method: "DELETE", key: "k"}).replayed)
		require.True(t, strict.must(t, http.StatusCreated, request{method: "DELETE", key: "k"}).replayed)
	})
}

func TestKeysThatAreNone(t *testing.T) {
	var orders orders
	each(t, func(t *testing.T, p *place) {
		s := p.serve(t, none, orders.place)
		for _, keys := range [][]string{
			{""}, {`""`}, {`"`}, {`"a`}, {`a"`}, {`"a"b`}, {`"a"b"`}, {`"a";b=c`}, {`a b`}, {`a, b`}, {`a,b`}, {`a;b`}, {`"a\b"`},
			{`"a\`},
			{`"a\"`}, {`a\b`}, {"kä"}, {`"kä"`}, {strings.Repeat("k", 256)}, {`"` + strings.Repeat("k", 256) + `"`},
			{"a", "b"}, {"a", "a"},
		} {
			s.requireRefused(t, http.StatusBadRequest, "not valid", request{keys: keys})
		}
		require.Zero(t, orders.Load())
	})
}

func TestKeysThatAreTheSame(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var orders orders
		s := p.serve(t, none, orders.place)
		long := strings.Repeat("k", 255)
		for _, same := range [][]string{{"a", `"a"`, ` "a" `}, {`"a b"`}, {`"a\"\\b,;"`}, {long, `"` + long + `"`}} {
			for i, key := range same {
				require.Equal(t, i > 0, s.must(t, http.StatusCreated, request{key: key}).replayed, key)
			}
		}
	})
}

// TestWhichResponsesAreRecorded: those that say that the client should try again are not.
func TestWhichResponsesAreRecorded(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		runs := map[int]int{}
		s := p.serve(t, none, func(w http.ResponseWriter, r *http.Request) {
			var status int
			_, err := fmt.Sscan(r.URL.Query().Get("status"), &status)
			assert.NoError(t, err)
			runs[status]++
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(status)
			w.WriteHeader(http.StatusTeapot)
			_, _ = fmt.Fprint(w, runs[status])
		})
		for status, recorded := range map[int]bool{
			200: true, 202: true, 299: true, 303: true, 400: true, 404: true, 410: true, 422: true, 451: true,
			401: false, 403: false, 408: false, 409: false, 425: false, 429: false, 500: false, 503: false, 599: false,
		} {
			for try := range 2 {
				a, err := s.send(t.Context(), request{key: fmt.Sprint("k", status), path: fmt.Sprint("/?status=", status)})
				require.NoError(t, err)
				require.Equal(t, status, a.status)
				require.Equal(t, recorded && try == 1, a.replayed, status)
			}
			require.Equal(t, !recorded, runs[status] == 2, status)
		}
		require.Empty(t, s.log)
	})
}

func TestAResponseWithoutABody(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		for name, handler := range map[string]http.HandlerFunc{
			"nothing": func(http.ResponseWriter, *http.Request) {},
			"204":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
		} {
			s := p.serve(t, none, handler)
			for _, replayed := range []bool{false, true} {
				a, err := s.send(t.Context(), request{key: name})
				require.NoError(t, err)
				require.Equal(t, replayed, a.replayed)
				require.Empty(t, a.body)
				require.Equal(t, name == "204", a.status == http.StatusNoContent)
			}
		}
	})
}

func TestAPanicRecordsNothingAndGoesOn(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var runs atomic.Int32
		s := p.serve(t, none, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusOK)
			if runs.Add(1) == 1 {
				panic(http.ErrAbortHandler)
			}
		})
		_, err := s.send(t.Context(), request{key: "k"})
		require.Error(t, err, "net/http ends the connection")
		require.False(t, s.must(t, http.StatusOK, request{key: "k"}).replayed)
		require.True(t, s.must(t, http.StatusOK, request{key: "k"}).replayed)
		require.EqualValues(t, 2, runs.Load())
	})
}

// TestTheWorkGoesOnWhenTheClientHasGone, and the client finds its response.
func TestTheWorkGoesOnWhenTheClientHasGone(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		type key struct{}
		began, letGo, ended := make(chan bool), make(chan bool), make(chan error, 1)
		idempotent, err := idempotency.New(p.open(t), caller, none)
		require.NoError(t, err)
		inner := idempotent(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			assert.Equal(t, "outer", r.Context().Value(key{}))
			began <- true
			<-letGo
			ended <- r.Context().Err()
			_, _ = io.WriteString(w, "done")
		}))
		gone := make(chan bool, 10)
		s := &server{Server: httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			context.AfterFunc(r.Context(), func() { gone <- true })
			inner.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), key{}, "outer")))
		}))}
		t.Cleanup(s.Close)
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() {
			_, err := s.send(ctx, request{key: "k", body: "apples"})
			failed <- err
		}()
		<-began
		cancel()
		require.ErrorIs(t, <-failed, context.Canceled)
		<-gone
		letGo <- true
		require.NoError(t, <-ended)
		require.Eventually(t, func() bool {
			a, err := s.send(t.Context(), request{key: "k", body: "apples"})
			return err == nil && a.replayed && a.body == "done"
		}, time.Minute, 10*time.Millisecond)
	})
}

func TestALeaseThatIsLost(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var runs atomic.Int32
		db := p.open(t)
		s := p.serve(t, none, func(w http.ResponseWriter, r *http.Request) {
			if runs.Add(1) == 1 {
				assert.NoError(t, takeAway(db, r))
			}
			_, _ = io.WriteString(w, "done")
		})
		refused := s.requireRefused(t, http.StatusServiceUnavailable, "not known", request{key: "k"})
		require.Equal(t, "1", refused.header.Get("Retry-After"))
		require.Contains(t, <-s.log, dbmutex.ErrTimeout.Error())
		require.False(t, s.must(t, http.StatusOK, request{key: "k"}).replayed, "nothing was recorded")
		require.True(t, s.must(t, http.StatusOK, request{key: "k"}).replayed)
		require.EqualValues(t, 2, runs.Load())
		require.Empty(t, s.log)
	})
}

// TestAHandlerMayGuardItsTransaction, which then does not commit beside that of another server.
func TestAHandlerMayGuardItsTransaction(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		db, lose := p.open(t), true
		type Order struct{ ID int }
		require.NoError(t, db.Migrate(&Order{}))
		s := p.serve(t, none, func(_ http.ResponseWriter, r *http.Request) {
			lease, ok := dbmutex.LeaseFrom(r.Context())
			assert.True(t, ok)
			if lose {
				assert.NoError(t, takeAway(db, r))
			}
			err := db.Gorm.Transaction(func(tx *gorm.DB) error {
				if err := lease.Guard(tx); err != nil {
					return err
				}
				return tx.Create(&Order{}).Error
			})
			assert.Equal(t, lose, errors.Is(err, dbmutex.ErrTimeout), err)
		})
		for i, status := range []int{http.StatusServiceUnavailable, http.StatusOK, http.StatusOK} {
			s.must(t, status, request{key: "k"})
			lose = false
			var orders int64
			require.NoError(t, db.Model(&Order{}).Count(&orders).Error)
			require.EqualValues(t, min(i, 1), orders)
		}
	})
}

// TestALeaseThatOnlyRunsOut: nobody else ran, so the response counts. The handler's context ends.
func TestALeaseThatOnlyRunsOut(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var runs atomic.Int32
		s := p.serve(t, none, func(w http.ResponseWriter, r *http.Request) {
			runs.Add(1)
			<-r.Context().Done()
			_, _ = fmt.Fprint(w, errors.Is(context.Cause(r.Context()), dbmutex.ErrTimeout))
		}, dbmutex.WithTTL(2*time.Second))
		require.Equal(t, "true", s.must(t, http.StatusOK, request{key: "k"}).body)
		require.Contains(t, <-s.log, "ran out")
		require.True(t, s.must(t, http.StatusOK, request{key: "k"}).replayed)
		require.EqualValues(t, 1, runs.Load())
	})
}

func TestBodiesThatAreTooLarge(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var orders orders
		s := p.serve(t, idempotency.Options{MaxBody: 10}, orders.place)
		s.requireRefused(t, http.StatusRequestEntityTooLarge, "too large", request{key: "k", body: "12345678901"})
		require.Zero(t, orders.Load())
		require.Contains(t, s.must(t, http.StatusCreated, request{key: "k", body: "1234567890"}).body, `"1234567890"`)
		s.must(t, http.StatusCreated, request{body: "12345678901"})
	})
}

func TestResponsesThatAreTooLarge(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var runs atomic.Int32
		s := p.serve(t, none, func(w http.ResponseWriter, r *http.Request) {
			runs.Add(1)
			w.Header().Set("X", "12345") // 6 bytes
			size := idempotency.MaxResponse - 6
			if r.URL.Path == "/large" {
				size++
			}
			w.Header().Set("Content-Length", fmt.Sprint(size)) // not recorded
			w.WriteHeader(http.StatusCreated)
			_, _ = w.Write(make([]byte, size))
		})
		first := s.must(t, http.StatusCreated, request{key: "small", path: "/small"})
		again := s.must(t, http.StatusCreated, request{key: "small", path: "/small"})
		require.True(t, again.replayed)
		require.True(t, first.body == again.body)
		require.Len(t, s.must(t, http.StatusCreated, request{key: "large", path: "/large"}).body, idempotency.MaxResponse-5)
		require.Contains(t, s.requireRefused(t, http.StatusGone, "gone", request{key: "large", path: "/large"}).body, "status 201")
		s.requireRefused(t, http.StatusUnprocessableEntity, "already used", request{key: "large", path: "/small"})
		require.EqualValues(t, 2, runs.Load())
		require.Empty(t, s.log)
	})
}

// TestADatabaseThatFails when the handler has run keeps nobody from getting the response: another try would repeat what is
// done.
func TestADatabaseThatFails(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		db, errDB := p.open(t), errors.New("the database's")
		var fails atomic.Bool
		fail := func(tx *gorm.DB) {
			if fails.Load() {
				_ = tx.AddError(errDB)
			}
		}
		require.NoError(t, db.Callback().Row().Before("gorm:row").Register("fail", fail))
		require.NoError(t, db.Callback().Raw().Before("gorm:raw").Register("fail", fail))
		s := serveOn(t, db, none, func(w http.ResponseWriter, _ *http.Request) {
			assert.False(t, fails.Load(), "it ran though the key could not be looked for")
			fails.Store(true)
			_, _ = io.WriteString(w, "done")
		})
		require.Equal(t, "done", s.must(t, http.StatusOK, request{key: "k"}).body)
		require.Contains(t, <-s.log, errDB.Error())
		s.requireRefused(t, http.StatusServiceUnavailable, "not carried out", request{key: "k"})
		require.Contains(t, <-s.log, errDB.Error())

		other := p.open(t)
		require.NoError(t, other.Migrator().DropTable(&dbmutex.DBOnce{}))
		_, err := idempotency.New(other, caller, none)
		require.ErrorContains(t, err, "DBOnce")
	})
}

func TestARecordIsForgottenInTime(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var orders orders
		s := p.serve(t, idempotency.Options{Keep: time.Second}, orders.place)
		s.must(t, http.StatusCreated, request{key: "k"})
		require.Eventually(t, func() bool {
			a, err := s.send(t.Context(), request{key: "k"})
			return err == nil && !a.replayed
		}, time.Minute, 100*time.Millisecond)
		require.EqualValues(t, 2, orders.Load())
	})
}

func TestBadWiring(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		db := p.open(t)
		tx := db.Begin()
		defer tx.Rollback()
		refused := func(want error, db *dbmutex.DB, caller func(*http.Request) string, o idempotency.Options,
			opts ...dbmutex.Option) {
			m, err := idempotency.New(db, caller, o, opts...)
			require.ErrorIs(t, err, want)
			require.Nil(t, m)
		}
		refused(dbmutex.ErrInvalidSettings, db, nil, none)
		refused(dbmutex.ErrInvalidSettings, db, caller, idempotency.Options{Keep: -1})
		refused(dbmutex.ErrInvalidSettings, db, caller, idempotency.Options{MaxBody: -1})
		refused(dbmutex.ErrInvalidSettings, db, caller, none, dbmutex.WithMinHold(time.Second))
		refused(dbmutex.ErrNotRegistered, nil, caller, none)
		refused(dbmutex.ErrInTransaction, dbmutex.Wrap(tx), caller, none)
	})
}

// TestTheHandlerCannotStream, and learns of it.
func TestTheHandlerCannotStream(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		s := p.serve(t, none, func(w http.ResponseWriter, _ *http.Request) {
			control := http.NewResponseController(w)
			assert.ErrorIs(t, control.Flush(), http.ErrNotSupported)
			_, _, err := control.Hijack()
			assert.ErrorIs(t, err, http.ErrNotSupported)
			for _, status := range []int{99, 1000} {
				assert.PanicsWithValue(t, fmt.Sprintf("idempotency: %d is no status", status), func() { w.WriteHeader(status) })
			}
		})
		s.must(t, http.StatusOK, request{key: "k"})
	})
}

// serve is a process with a web server, until stdin ends. It prints its URL, and "runs" for each request, which lasts until
// stdin ends unless it is for /quick.
func serve(d *testdb.Database, stdin io.Reader) error {
	db, err := d.Connect()
	if err != nil {
		return err
	}
	idempotent, err := idempotency.New(db, caller, none, dbmutex.WithTTL(10*time.Second), dbmutex.WithRenewal())
	if err != nil {
		return err
	}
	ended := make(chan bool)
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		close(ended)
	}()
	s := httptest.NewServer(idempotent(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Println("runs")
		<-ended
		_, _ = io.WriteString(w, "by the child")
	})))
	fmt.Println(s.URL)
	<-ended
	s.Close() // waits for the requests
	pool, _ := db.DB()
	return pool.Close()
}

// at is a server of another process.
func at(t *testing.T, p *testprocess.Process) *server {
	t.Helper()
	s := &server{Server: &httptest.Server{URL: p.Line(t)}}
	_, err := url.Parse(s.URL)
	require.NoError(t, err)
	return s
}

// TestAServerIsKilledInTheMiddleOfARequest: another runs it when the lease has run out, and nobody after that.
func TestAServerIsKilledInTheMiddleOfARequest(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var orders orders
		killed, other := testprocess.Start(t, p.database, "serve"), p.serve(t, none, orders.place)
		first, failed := at(t, killed), make(chan error, 1)
		go func() {
			_, err := first.send(context.WithoutCancel(t.Context()), request{key: "k"})
			failed <- err
		}()
		require.Equal(t, "runs", killed.Line(t))
		other.requireRefused(t, http.StatusConflict, "under way", request{key: "k"})
		killed.Kill(t)
		require.Error(t, <-failed)
		require.Eventually(t, func() bool {
			a, err := other.send(t.Context(), request{key: "k"})
			return err == nil && a.status == http.StatusCreated
		}, time.Minute, 100*time.Millisecond)
		third := testprocess.Start(t, p.database, "serve")
		require.True(t, at(t, third).must(t, http.StatusCreated, request{key: "k"}).replayed)
		third.End(t)
		require.EqualValues(t, 1, orders.Load())
	})
}

// TestAServerEndsWhileARequestIsUnderWay: what it answers is what others replay.
func TestAServerEndsWhileARequestIsUnderWay(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		var orders orders
		ends, other := testprocess.Start(t, p.database, "serve"), p.serve(t, none, orders.place)
		s, answers := at(t, ends), make(chan answer, 1)
		go send(t, s, request{key: "k"}, answers)
		require.Equal(t, "runs", ends.Line(t))
		ends.End(t)
		require.Equal(t, "by the child", (<-answers).body)
		a := other.must(t, http.StatusOK, request{key: "k"})
		require.True(t, a.replayed)
		require.Equal(t, "by the child", a.body)
		require.Zero(t, orders.Load())
	})
}
