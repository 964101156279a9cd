package testdb

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
)

// engine is a database server that tests find or start.
type engine struct {
	kind    *Kind
	name    string // for people
	debian  string // the Debian package
	account string // who runs it where the tests' user is root

	envDSN, envBin, envWanted string // see the package's comment

	find     func() (bin string, err error) // where the programs are, or errNoPrograms
	run      func(dsn string, statements ...string) error
	dsn      func(port string) string // of a database on a server that the tests have started
	config   string                   // the file for settings, in the folder of a server's data
	settings []string                 // of every server
	taken    string                   // what a server says whose port another process has

	// What makes a server's data in the folder data, and starts and stops a server: commands for the supervisor's shell.
	install string
	start   func(env, data, port string) string
	stop    func(data, mode string) string
	// started returns when a server that was started can be used, and has its database.
	started func(port string) error
	// move makes the lock's table anew in a folder, and another that is named filler.
	move func(dsn, folder string) error
	// folders is a setting for where a server may make tables, which it reads when it starts; "" = anywhere.
	folders string
	// apply is a statement that makes a running server heed what was added to its configuration.
	apply func(settings []string) string

	once     sync.Once
	foundDSN string
	foundErr error
}

// errNoPrograms: there is no server to use, nor programs to start one.
var errNoPrograms = errors.New("not found")

// found is the DSN of this test binary's server: found or started once.
func (e *engine) found() (string, error) {
	e.once.Do(func() {
		if e.foundDSN = os.Getenv(e.envDSN); e.foundDSN == "" {
			e.foundDSN, e.foundErr = e.throwAway()
		} else if err := e.run(e.foundDSN, "SELECT 1"); err != nil {
			e.foundErr = fmt.Errorf("the server of %s doesn't answer: %w", e.envDSN, err)
		}
		if errors.Is(e.foundErr, errNoPrograms) && !e.required() {
			fmt.Fprintf(os.Stderr, "dbmutex tests: no %s found, its tests are skipped: %s\n", e.name, e.howTo())
		}
	})
	return e.foundDSN, e.foundErr
}

// server is found for a test. If there is no server it skips the test, or fails it if the server is required.
func (e *engine) server(t testing.TB) string {
	t.Helper()
	e.skipUnwanted(t)
	dsn, err := e.found()
	if err != nil {
		e.missing(t, err)
	}
	return dsn
}

// missing ends a test that has no server.
func (e *engine) missing(t testing.TB, err error) {
	t.Helper()
	switch {
	case !errors.Is(err, errNoPrograms):
		t.Fatalf("testdb: %v", err)
	case e.required():
		t.Fatalf("testdb: no %s found, and %s=required: %s", e.name, e.envWanted, e.howTo())
	}
	t.Skipf("no %s found: %s", e.name, e.howTo())
}

// howTo ends the messages about a missing server.
func (e *engine) howTo() string {
	return "set " + e.envDSN + ", or install it (Debian: apt-get install " + e.debian + ")"
}

func (e *engine) required() bool { return os.Getenv(e.envWanted) == "required" }

// unwanted says whether tests that need the server shall be skipped though it is there.
func (e *engine) unwanted() bool { return os.Getenv(e.envWanted) == "none" }

// skipUnwanted skips a test that needs the server if nobody wants it.
func (e *engine) skipUnwanted(t testing.TB) {
	t.Helper()
	if e.unwanted() {
		t.Skipf("%s=none", e.envWanted)
	}
}

// there says whether server would not skip a test.
func (e *engine) there() bool {
	if e.unwanted() {
		return false
	}
	_, err := e.found()
	return !errors.Is(err, errNoPrograms) || e.required()
}
