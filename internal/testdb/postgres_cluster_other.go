//go:build !unix

package testdb

import "errors"

// start can't start a server here.
func start(string) (string, error) {
	return "", errors.New("starting a PostgreSQL server for tests needs a Unix system: set " + envDSN)
}
