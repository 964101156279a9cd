package testdb

import "strings"

// inSQLite is a table with some columns other than usual.
func inSQLite(columns columnSet) string {
	own := columnSet{"id": "id integer PRIMARY KEY AUTOINCREMENT"}
	for name, column := range columns {
		own[name] = column
	}
	return strings.ReplaceAll(strings.ReplaceAll(table(own), ", )", ")"), "timestamptz", "datetime")
}

func init() {
	sqliteKind.Catalog = []string{
		`SELECT name FROM sqlite_master ORDER BY name`, // with sqlite_sequence if the id is AUTOINCREMENT
		`SELECT * FROM pragma_table_xinfo('db_mutexes')`,
		`SELECT name, "unique", origin, partial FROM pragma_index_list('db_mutexes') ORDER BY name`,
		`SELECT i.name AS "index", x.* FROM pragma_index_list('db_mutexes') i, pragma_index_xinfo(i.name) x ORDER BY 1, 2`,
	}
	sqliteKind.Shape = `SELECT group_concat(sql, ' ') FROM sqlite_master WHERE tbl_name = 'db_mutexes'`
	sqliteKind.HandMade = map[string][]string{
		"unique":   {inSQLite(nil)},
		"an index": {inSQLite(columnSet{"lock_id": "lock_id text"}), `CREATE UNIQUE INDEX any_name ON db_mutexes (lock_id)`},
		"text": {inSQLite(columnSet{
			"lease_id": "lease_id", "creation_time": "creation_time text NOT NULL", "expires_at": "expires_at text",
		})},
		"another order, and more columns": {
			`CREATE TABLE "db_mutexes" (note text, lease_id text, made date NOT NULL DEFAULT 0, holder text, expires_at timestamp,
			creation_time timestamp, lock_id varchar(300) UNIQUE, id integer not null primary key autoincrement)`,
		},
	}
	sqliteKind.Unusable = map[string][]string{
		"no autoincrement": {inSQLite(columnSet{"id": "id integer PRIMARY KEY"}), "AUTOINCREMENT"},
		"a mere comment":   {inSQLite(columnSet{"id": "id integer PRIMARY KEY /* no AUTOINCREMENT */"}), "AUTOINCREMENT"},
		"some unique holders": {
			inSQLite(nil) + `; CREATE UNIQUE INDEX some ON db_mutexes (holder) WHERE expires_at > ''`, `"holder" is unique`,
		},
		"no unique index": {inSQLite(columnSet{"lock_id": "lock_id text"}), "no unique index of its own"},
		"a unique pair": {
			inSQLite(columnSet{"lock_id": "lock_id text", "more": "UNIQUE (lock_id, holder)"}), "no unique index",
		},
		"ids without case":    {inSQLite(columnSet{"lock_id": "lock_id text COLLATE NOCASE UNIQUE"}), "make it BINARY"},
		"ids as numbers":      {inSQLite(columnSet{"lock_id": "lock_id numeric UNIQUE"}), "lock_id is NUMERIC"},
		"times as numbers":    {inSQLite(columnSet{"expires_at": "expires_at integer"}), "expires_at is INTEGER"},
		"an end that must be": {inSQLite(columnSet{"expires_at": "expires_at datetime NOT NULL"}), "must be NULL"},
		"a unique holder":     {inSQLite(columnSet{"holder": "holder text UNIQUE"}), `"holder" is unique`},
		"a column that is missing": {
			`CREATE TABLE db_mutexes (id integer PRIMARY KEY AUTOINCREMENT, lock_id text UNIQUE, holder text, lease_id text)`,
			"no column creation_time",
		},
		"a column that must be": {inSQLite(columnSet{"more": "note text NOT NULL"}), `"note"`},
	}
}
