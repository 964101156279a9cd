// Package schema has the SQL that makes the lock's table, for people who do not let GORM make it. docs/schema.md shows it.
package schema

import "embed"

//go:embed *.sql
var files embed.FS

// SQL returns the statements for a database, by the name that GORM has for it: "postgres", "sqlite" or "mysql" (also
// MariaDB). The table is called db_mutexes. For any other database it is an error that matches fs.ErrNotExist.
func SQL(database string) (string, error) {
	text, err := files.ReadFile(database + ".sql")
	return string(text), err
}
