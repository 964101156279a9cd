package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

// global are the flags of every command.
type global struct {
	dsn, table     string
	timeout        time.Duration
	quiet, verbose bool
	logFormat      string

	log *slog.Logger
}

const rootLong = `dbmutex keeps commands from overlapping, on all the machines that use a database: PostgreSQL, MySQL,
MariaDB or SQLite.

The database is that of --dsn, or else of DBMUTEX_DSN, or else of DATABASE_URL:

    postgres://user@host/database     or libpq's pairs: host=... dbname=...
    mysql://user@host/database        also for MariaDB; ?socket=/run/mysqld/mysqld.sock
    sqlite:PATH                       or SQLite's own file:PATH?...

Passwords belong in the environment, not in --dsn: everybody on the machine can read the arguments of a program (ps).
Special characters in a URL's password are written as %2F for /.

The table of run --once-per, and of Once in programs, goes with that of --table: db_onces with db_mutexes, and app_db_onces
with app_db_mutexes.

The output has no colours, whether NO_COLOR is set or not.`

const rootExits = `
All commands but run end with 0, with 1 if the answer is no, and with 2 if they are used wrongly or fail.`

func newRoot(g *global) *cobra.Command {
	root := &cobra.Command{
		Use:               "dbmutex",
		Short:             "Run commands under a mutex in a database",
		Long:              rootLong + "\n" + rootExits,
		Version:           version(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return g.check() },
	}
	flags := root.PersistentFlags()
	flags.StringVar(&g.dsn, "dsn", "", "the `database` (default: DBMUTEX_DSN, or else DATABASE_URL)")
	flags.StringVar(&g.table, "table", "",
		"the `name` of the mutexes' table, or schema.table (default: DBMUTEX_TABLE, or else db_mutexes)")
	flags.DurationVar(&g.timeout, "timeout", 10*time.Second, "how long the database may take to answer")
	flags.BoolVarP(&g.quiet, "quiet", "q", false, "write nothing but errors to stderr")
	flags.BoolVarP(&g.verbose, "verbose", "v", false, "say more")
	flags.StringVar(&g.logFormat, "log-format", "text", "`text` or json: how dbmutex writes to stderr")
	root.AddCommand(newRun(g), newList(g), newShow(g), newWatch(g), newRelease(g), newForget(g), newPrune(g), newMigrate(g),
		newSchema(g), newDoctor(g), newServe(g), newMan(root))
	refuseOtherShells(root)
	return root
}

// refuseOtherShells makes cobra's completion fail, rather than help, if the shell is not one of its own.
func refuseOtherShells(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	completion, _, err := root.Find([]string{"completion"})
	if err == nil {
		completion.RunE = func(*cobra.Command, []string) error { return errors.New("want bash, zsh, fish or powershell") }
	}
}

// check looks at the flags, and takes from the environment what they do not say.
func (g *global) check() error {
	level := slog.LevelInfo
	switch {
	case g.quiet && g.verbose:
		return errors.New("--quiet and --verbose exclude each other")
	case g.logFormat != "text" && g.logFormat != "json":
		return fmt.Errorf("--log-format %q: want text or json", g.logFormat)
	case g.timeout <= 0:
		return fmt.Errorf("--timeout %v: want a time above 0", g.timeout)
	case g.quiet:
		level = slog.LevelError
	case g.verbose:
		level = slog.LevelDebug
	}
	g.log = newLogger(os.Stderr, g.logFormat, level)
	g.dsn = cmp.Or(g.dsn, os.Getenv("DBMUTEX_DSN"), os.Getenv("DATABASE_URL"))
	g.table = cmp.Or(g.table, os.Getenv("DBMUTEX_TABLE"), "db_mutexes")
	return nil
}

// execute runs the program and returns its exit code.
func execute(args []string) int {
	g := &global{log: newLogger(os.Stderr, "text", slog.LevelInfo)}
	root := newRoot(g)
	root.SetArgs(args)
	command, err := root.ExecuteC()
	if err == nil {
		return 0
	}
	code := exitFailure
	if command.Name() == runName || command == root && slices.Contains(args, runName) && slices.Contains(args, "--") {
		code = exitRunFailure
	}
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
	}
	if text := err.Error(); text != "" {
		g.log.Error(oneLine(text))
	}
	return code
}

func version() string {
	version := "(devel)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		version = info.Main.Version
	}
	return fmt.Sprintf("%s (%s, %s/%s)", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
