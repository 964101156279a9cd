package main

import (
	"fmt"
	"net/url"
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
	dsn     string
	mayMake bool
}

// Initialize opens the file.
func (f sqliteFile) Initialize(db *gorm.DB) error {
	err := f.Dialector.Initialize(db)
	switch {
	case err == nil:
		return nil
	case f.mayMake:
		return fmt.Errorf("%s: %w", f.dsn, err)
	}
	return fmt.Errorf("%s: %w (is it there? Only dbmutex migrate makes the file)", f.dsn, err)
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
	return sqliteFile{sqlite.Open(path + "?" + query.Encode()), dsn, mayMake}, nil
}
