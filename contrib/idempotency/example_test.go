package idempotency_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/idempotency"
)

// openExample opens a new SQLite file; done closes and removes it.
func openExample() (db *dbmutex.DB, done func()) {
	folder, err := os.MkdirTemp("", "dbmutex")
	if err != nil {
		panic(err)
	}
	gdb, err := gorm.Open(sqlite.Open(filepath.Join(folder, "app.db")), &gorm.Config{})
	if err != nil {
		panic(err)
	}
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil {
		panic(err)
	}
	db = dbmutex.Wrap(gdb)
	if err := db.Migrate(); err != nil {
		panic(err)
	}
	return db, func() {
		pool, _ := gdb.DB()
		_ = pool.Close()
		_ = os.RemoveAll(folder)
	}
}

// userOf is whose request it is, as the program's login has found out.
func userOf(r *http.Request) string {
	user, _, _ := r.BasicAuth()
	return user
}

// A client that has no answer sends the request again, with the same key. The order is placed once.
func ExampleNew() {
	db, done := openExample()
	defer done()

	idempotent, err := idempotency.New(db, userOf, idempotency.Options{Required: true},
		dbmutex.WithTTL(30*time.Second), dbmutex.WithRenewal())
	if err != nil {
		fmt.Println(err)
		return
	}
	placed := 0
	placeOrder := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		placed++
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprintf(w, "order %d", placed)
	})
	mux := http.NewServeMux()
	mux.Handle("POST /orders", idempotent(placeOrder)) // behind the login, which knows the user

	server := httptest.NewServer(mux)
	defer server.Close()
	for range 2 {
		request, err := http.NewRequest(http.MethodPost, server.URL+"/orders", nil)
		if err != nil {
			fmt.Println(err)
			return
		}
		request.SetBasicAuth("anna", "secret")
		request.Header.Set("Idempotency-Key", `"8e03978e-40d5-43e8-bc93-6894a57f9324"`)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			fmt.Println(err)
			return
		}
		body, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		fmt.Printf("%s: %s, replayed: %q\n", response.Status, body, response.Header.Get("Idempotent-Replayed"))
	}
	// Output:
	// 201 Created: order 1, replayed: ""
	// 201 Created: order 1, replayed: "true"
}
