// Package ncruces makes tests run on github.com/ncruces/go-sqlite3/gormlite, a SQLite in WebAssembly, without cgo.
package ncruces

import (
	_ "github.com/ncruces/go-sqlite3/embed" // SQLite itself
	"github.com/ncruces/go-sqlite3/gormlite"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func init() { testdb.SQLiteDialector = gormlite.Open }
