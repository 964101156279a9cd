// Package glebarez makes tests run on github.com/glebarez/sqlite, a SQLite in pure Go (modernc.org/sqlite).
package glebarez

import (
	"github.com/glebarez/sqlite"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func init() { testdb.SQLiteDialector = sqlite.Open }
