// Package program runs examples for their tests.
package program

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// Each builds the program in this folder, runs it without -dsn and on every kind of database, and checks what it prints. The
// program must leave no table behind.
func Each(t *testing.T, check func(t *testing.T, out string)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program")
	out, err := exec.Command("go", "build", "-o", file, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Run("without -dsn", func(t *testing.T) { check(t, output(t, file)) })
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		check(t, output(t, file, "-dsn", d.DSN))
		tables, err := d.Open(t).Migrator().GetTables()
		require.NoError(t, err)
		require.NotContains(t, strings.Join(tables, " "), "example_")
	})
}

// output runs a program and returns what it prints. The program has a folder of its own for temporary files, and must leave
// nothing there.
func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	temp := t.TempDir()
	run := exec.CommandContext(ctx, program, args...)
	run.Env = append(os.Environ(), "TMPDIR="+temp, "TMP="+temp, "TEMP="+temp)
	run.Stderr = os.Stderr
	out, err := run.Output()
	require.NoError(t, err, "%s", out)
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	require.Empty(t, left)
	return string(out)
}
