// Package schema has the SQL that makes the package's tables, for people who do not let GORM make them. docs/schema.md shows
// it.
package schema

import "embed"

//go:embed *.sql
var files embed.FS

// SQL returns the statements that make the lock's table in a database, by the name that GORM has for it: "postgres",
// "sqlite" or "mysql" (also MariaDB). The table is called db_mutexes. For any other database it is an error that matches
// fs.ErrNotExist.
func SQL(database string) (string, error) {
	text, err := files.ReadFile(database + ".sql")
	return string(text), err
}

// OnceSQL is SQL for the table of Once, db_onces.
func OnceSQL(database string) (string, error) { return SQL(database + "_once") }
