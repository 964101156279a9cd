package testdb

import "strings"

// table is the statement that makes a table by hand, with some columns other than usual.
func table(columns columnSet) string {
	usual := []string{
		"id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "lock_id varchar(256) NOT NULL UNIQUE",
		"creation_time timestamptz NOT NULL", "expires_at timestamptz", "holder text NOT NULL", "lease_id varchar(64) NOT NULL",
	}
	for i, column := range usual {
		name, _, _ := strings.Cut(column, " ")
		if other, changed := columns[name]; changed {
			usual[i] = other
		}
	}
	return `CREATE TABLE db_mutexes (` + strings.Join(append(usual, columns["more"]), ", ") + `)`
}

type columnSet = map[string]string
