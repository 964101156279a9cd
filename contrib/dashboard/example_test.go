package dashboard_test

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/contrib/dashboard"
)

// register is for the README.
func register(
	mux *http.ServeMux, db *dbmutex.DB, login func(http.Handler) http.Handler,
	isOperator func(*http.Request) bool, userName func(*http.Request) string,
) error {
	shown, err := dashboard.New(db, dashboard.Options{AllowRelease: isOperator, Actor: userName})
	if err != nil {
		return err // the plugin or the table is missing
	}
	mux.Handle("/ops/mutexes/", http.StripPrefix("/ops/mutexes", login(shown)))
	return nil
}

var _ = register

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
