//go:build !unix

package testdb

import "fmt"

// throwAway can't start a server here.
func (e *engine) throwAway() (string, error) {
	return "", fmt.Errorf("starting %s for tests needs a Unix system: set %s", e.name, e.envDSN)
}
