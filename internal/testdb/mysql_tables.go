package testdb

import "strings"

// inMySQL is a table with some columns other than usual.
func inMySQL(columns columnSet) string {
	own := columnSet{
		"id": "id bigint AUTO_INCREMENT PRIMARY KEY", "lock_id": "lock_id varbinary(1024) NOT NULL UNIQUE",
		"creation_time": "creation_time datetime(6) NOT NULL", "expires_at": "expires_at datetime(6)",
		"holder": "holder text CHARACTER SET utf8mb4 NOT NULL", "more": "token bigint NOT NULL DEFAULT 0",
	}
	for name, column := range columns {
		if name == "more" {
			column = own["more"] + ", " + column
		}
		own[name] = column
	}
	return table(own)
}

func init() {
	mysqlKind.Catalog = []string{`SHOW CREATE TABLE db_mutexes`}
	mysqlKind.Shape = `SELECT (SELECT GROUP_CONCAT(column_name, ' ', column_type, ' ', is_nullable ORDER BY ordinal_position)
	FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = 'db_mutexes') AS shape`
	mysqlKind.HandMade = map[string][]string{
		"unique": {inMySQL(nil)},
		"an index": {
			inMySQL(columnSet{"lock_id": "lock_id varbinary(1024)"}), `CREATE UNIQUE INDEX any_name ON db_mutexes (lock_id)`,
		},
		"a small id":         {inMySQL(columnSet{"id": "id int AUTO_INCREMENT PRIMARY KEY"})},
		"an id without sign": {inMySQL(columnSet{"id": "id bigint unsigned AUTO_INCREMENT PRIMARY KEY"})},
		"a charset":          {inMySQL(nil) + ` CHARACTER SET latin1`},
		"bytes": {
			inMySQL(columnSet{"lease_id": "lease_id varbinary(64) NOT NULL", "holder": "holder varbinary(300)"}),
		},
		"another order, and more columns": {
			`CREATE TABLE db_mutexes (note text, lease_id char(40), made date NOT NULL DEFAULT '2000-01-01', holder longblob,
			token bigint NOT NULL DEFAULT 0, expires_at datetime(6), creation_time datetime(6), lock_id varbinary(2000) UNIQUE,
			id bigint NOT NULL AUTO_INCREMENT, PRIMARY KEY (id))`,
		},
	}
	mysqlKind.Unusable = map[string][]string{
		"ids without case": {inMySQL(columnSet{"lock_id": "lock_id varchar(256) UNIQUE"}), "lock_id is varchar(256)"},
		"short ids":        {inMySQL(columnSet{"lock_id": "lock_id varbinary(256) UNIQUE"}), "make it varbinary(1024)"},
		"no unique index":  {inMySQL(columnSet{"lock_id": "lock_id varbinary(1024)"}), "no unique index of its own"},
		"a unique pair": {
			inMySQL(columnSet{"lock_id": "lock_id varbinary(1024)", "more": "UNIQUE pair (lock_id, lease_id)"}), "index pair",
		},
		"a unique part": {
			inMySQL(columnSet{"lock_id": "lock_id varbinary(1024)", "more": "UNIQUE part (lock_id(100))"}), "index part",
		},
		"an index of times": {inMySQL(columnSet{"more": "INDEX by_time (expires_at)"}), "index by_time"},
		"a unique holder":   {inMySQL(columnSet{"holder": "holder varbinary(100) UNIQUE"}), "index holder"},
		"a key of text": {
			inMySQL(columnSet{
				"id": "id bigint AUTO_INCREMENT UNIQUE", "lock_id": "lock_id varbinary(1024) PRIMARY KEY",
			}), "index",
		},
		"an id without value": {inMySQL(columnSet{"id": "id bigint PRIMARY KEY DEFAULT 1"}), "AUTO_INCREMENT"},
		"an id of text":       {inMySQL(columnSet{"id": "id varchar(20) PRIMARY KEY DEFAULT ''"}), "id is varchar"},
		"milliseconds":        {inMySQL(columnSet{"expires_at": "expires_at datetime(3)"}), "expires_at is datetime(3)"},
		"times with a zone": {
			inMySQL(columnSet{"creation_time": "creation_time timestamp(6)"}), "creation_time is timestamp(6)",
		},
		"an end that must be": {inMySQL(columnSet{"expires_at": "expires_at datetime(6) NOT NULL"}), "must be NULL"},
		"some names": {
			inMySQL(columnSet{"holder": "holder text CHARACTER SET latin1"}), "cannot take every text",
		},
		"a short lease_id":         {inMySQL(columnSet{"lease_id": "lease_id varchar(26)"}), "lease_id is varchar(26)"},
		"a column that is missing": {strings.Replace(inMySQL(nil), "token", "tokens", 1), "no column token"},
		"a column that must be":    {inMySQL(columnSet{"more": "note varchar(9) NOT NULL"}), `"note"`},
		"no transactions":          {inMySQL(columnSet{"lock_id": "lock_id blob"}) + ` ENGINE=MyISAM`, "engine is MyISAM"},
		"a view":                   {`CREATE VIEW db_mutexes AS SELECT 1 AS id`, "no table"},
		"plain types": {
			strings.NewReplacer("varbinary(1024)", "varchar(256)", "datetime(6)", "datetime(3)").Replace(inMySQL(nil)),
			"Migrate does",
		},
	}
}
