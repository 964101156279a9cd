package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/glebarez/sqlite"
	"gorm.io/gorm"
)

const (
	sqliteScheme = "sqlite:"
	sqliteURI    = "file:"
)

// sqliteFile is a dialector whose errors say which file they are about.
type sqliteFile struct {
	gorm.Dialector
	name string
}

// Initialize opens the file.
func (f sqliteFile) Initialize(db *gorm.DB) error {
	if err := f.Dialector.Initialize(db); err != nil {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	return nil
}

func sqliteDialector(dsn string, mayMake bool) (gorm.Dialector, error) {
	uri := dsn
	if path, isPath := strings.CutPrefix(dsn, sqliteScheme); isPath {
		uri = sqliteURI + strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(path)
	}
	path, parameters, _ := strings.Cut(uri, "?")
	if path == sqliteURI {
		return nil, errNoDSN
	}
	query, err := url.ParseQuery(parameters)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dsn, err)
	}
	if mode := query.Get("mode"); mode == "" || mode == "rwc" {
		query.Set("mode", map[bool]string{true: "rwc", false: "rw"}[mayMake])
	}
	name, err := url.PathUnescape(strings.TrimPrefix(path, sqliteURI))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dsn, err)
	}
	if authority, isURL := strings.CutPrefix(name, "//"); isURL { // it is empty, or localhost
		name = authority[max(strings.Index(authority, "/"), 0):]
	}
	if name == ":memory:" || query.Get("mode") == "memory" {
		return nil, fmt.Errorf("%s: a database in memory ends with the program", dsn)
	}
	if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) && !mayMake {
		return nil, fmt.Errorf("there is no file %s: dbmutex migrate makes it", name)
	}
	return sqliteFile{sqlite.Open(path + "?" + query.Encode()), name}, nil
}
