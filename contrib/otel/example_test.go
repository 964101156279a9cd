package otelmutex_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	otelmutex "github.com/gorm-dbmutex/dbmutex/contrib/otel"
)

// openDB opens a new SQLite file; done removes it.
func openDB() (gdb *gorm.DB, done func()) {
	folder, err := os.MkdirTemp("", "dbmutex")
	if err != nil {
		log.Fatal(err)
	}
	gdb, err = gorm.Open(sqlite.Open(filepath.Join(folder, "app.db")), &gorm.Config{})
	if err != nil {
		log.Fatal(err)
	}
	return gdb, func() { _ = os.RemoveAll(folder) }
}

// register is for the README.
func register(gdb *gorm.DB) error {
	observer, err := otelmutex.New()
	if err != nil {
		return err
	}
	settings := dbmutex.DefaultSettings()
	settings.Observer = observer
	return gdb.Use(dbmutex.New(settings))
}

var _ = register

// A program has its own providers, or OpenTelemetry's global ones. This one prints the spans that ended.
func ExampleNew() {
	spans := tracetest.NewSpanRecorder()
	observer, err := otelmutex.New(
		otelmutex.WithTracerProvider(trace.NewTracerProvider(trace.WithSpanProcessor(spans))))
	if err != nil {
		log.Fatal(err)
	}
	settings := dbmutex.DefaultSettings()
	settings.Observer = observer
	gdb, done := openDB()
	defer done()
	if err := gdb.Use(dbmutex.New(settings)); err != nil {
		log.Fatal(err)
	}
	db := dbmutex.Wrap(gdb)
	if err := gdb.AutoMigrate(&dbmutex.DBMutex{}); err != nil {
		log.Fatal(err)
	}

	err = db.Mutex("nightly-report").Do(func(context.Context) error { return nil })
	if err != nil {
		log.Fatal(err)
	}
	for _, span := range spans.Ended() {
		fmt.Println(span.Name())
	}
	// Output:
	// dbmutex acquire
	// dbmutex hold
}

// Exports have an id each, but one name in the metrics.
func ExampleWithNames() {
	observer, err := otelmutex.New(otelmutex.WithNames(func(id string) string {
		name, _, _ := strings.Cut(id, "/") // export for export/123
		return name
	}))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(observer != nil)
	// Output: true
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
