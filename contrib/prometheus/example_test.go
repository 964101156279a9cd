package prommutex_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	prommutex "github.com/gorm-dbmutex/dbmutex/contrib/prometheus"
)

// observe makes a handle whose mutexes Prometheus is told of, and whose table it is told of.
func observe(gdb *gorm.DB, registry prometheus.Registerer) (*dbmutex.DB, error) {
	observer, err := prommutex.NewObserver(registry, prommutex.ObserverOptions{})
	if err != nil {
		return nil, err
	}
	settings := dbmutex.DefaultSettings()
	settings.Observer = observer
	if err := gdb.Use(dbmutex.New(settings)); err != nil {
		return nil, err
	}
	db := dbmutex.Wrap(gdb)

	collector, err := prommutex.NewCollector(db, prommutex.CollectorOptions{PerMutex: 10})
	if err != nil {
		return nil, err
	}
	return db, registry.Register(collector)
}

// A program is scraped while it holds a mutex.
func Example() {
	folder, err := os.MkdirTemp("", "dbmutex")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(folder) }()
	gdb, err := gorm.Open(sqlite.Open(filepath.Join(folder, "app.db")), &gorm.Config{})
	if err != nil {
		log.Fatal(err)
	}
	registry := prometheus.NewRegistry() // or prometheus.DefaultRegisterer, and promhttp.Handler
	db, err := observe(gdb, registry)
	if err != nil {
		log.Fatal(err)
	}
	if err := db.Migrate(); err != nil {
		log.Fatal(err)
	}
	server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	defer server.Close()

	err = db.Mutex("nightly-report").Do(func(context.Context) error {
		answer, err := http.Get(server.URL)
		if err != nil {
			return err
		}
		defer func() { _ = answer.Body.Close() }()
		text, err := io.ReadAll(answer.Body)
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "dbmutex_lease_active") || strings.HasPrefix(line, "dbmutex_table_leases{") {
				fmt.Print(line)
			}
		}
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// dbmutex_lease_active{dbmutex_mutex_name="nightly-report"} 1
	// dbmutex_table_leases{state="expired"} 0
	// dbmutex_table_leases{state="held"} 1
}

// Exports have an id each, but one name in the metrics.
func ExampleObserverOptions() {
	options := prommutex.ObserverOptions{
		Names: func(id string) string {
			name, _, _ := strings.Cut(id, "/") // export for export/123
			return name
		},
	}
	fmt.Println(options.Names("export/123"))
	// Output: export
}

// Every snippet of the README is a part of this file.
func TestREADMESnippetsAreCompiled(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	compiled, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	parts := strings.Split(string(readme), "```go\n")
	require.Greater(t, len(parts), 1)
	for _, part := range parts[1:] {
		snippet, _, _ := strings.Cut(part, "```")
		require.Contains(t, string(compiled), snippet)
	}
}
