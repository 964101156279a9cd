package locktable

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"gorm.io/gorm"
)

// sqliteTable is what SQLite says of a table.
type sqliteTable struct {
	statement string // that made it
	columns   []sqliteColumn
	unique    map[string][]sqliteTerm // the columns of its unique indexes, by the index's name
}

type sqliteColumn struct {
	name, kind      string
	notNull, filled bool
}

type sqliteTerm struct {
	column, collation string
	partial           bool // of an index of some rows alone
}

// inspect looks at the table once for every process and pool.
func (s *sqlite) inspect(on executor) error {
	return s.connect(on, func(c *sqliteConn) error {
		return c.patiently(Limit, func(on executor) error {
			t, err := s.describe(on)
			if err != nil {
				return err
			}
			if t.columns == nil { // the error is SQLite's own
				_, err := on.queryOne(`SELECT 1 FROM `+s.table+` LIMIT 0`, nil, new(int))
				return err
			}
			if problem := t.problem(s.once.has); problem != "" {
				return unusable(s.table, problem)
			}
			return nil
		})
	})
}

// describe asks SQLite for the table. https://www.sqlite.org/pragma.html#pragfunc
func (s *sqlite) describe(on executor) (t sqliteTable, err error) {
	schema, name, attached := strings.Cut(s.name, ".")
	master := `"` + strings.ReplaceAll(schema, `"`, `""`) + `".sqlite_master`
	if !attached {
		schema, name, master = "main", s.name, "sqlite_master"
	}
	err = on.queryAll(`SELECT name, upper(type), "notnull", dflt_value IS NOT NULL OR pk > 0 FROM pragma_table_info(?, ?)`,
		[]any{name, schema}, func(rows *sql.Rows) error {
			var c sqliteColumn
			err := rows.Scan(&c.name, &c.kind, &c.notNull, &c.filled)
			t.columns = append(t.columns, c)
			return err
		})
	if err != nil {
		return t, err
	}
	if _, err := on.queryOne(`SELECT sql FROM `+master+` WHERE lower(name) = lower(?)`, []any{name}, &t.statement); err != nil {
		return t, err
	}
	t.unique = map[string][]sqliteTerm{}
	return t, on.queryAll(`SELECT i.name, coalesce(x.name, ''), x.coll, i.partial
FROM pragma_index_list(?, ?) i, pragma_index_xinfo(i.name, ?) x WHERE i."unique" AND x.key`,
		[]any{name, schema, schema}, func(rows *sql.Rows) error {
			var index string
			var term sqliteTerm
			err := rows.Scan(&index, &term.column, &term.collation, &term.partial)
			t.unique[index] = append(t.unique[index], term)
			return err
		})
}

var (
	autoincrement = regexp.MustCompile(`(?i)\bAUTOINCREMENT\b`)
	noKeyword     = regexp.MustCompile("(?s)--[^\n]*|/\\*.*?\\*/|'[^']*'|\"[^\"]*\"|`[^`]*`|\\[[^]]*\\]")
)

// autoincrements looks for the keyword, beside comments and quoted names.
func (t *sqliteTable) autoincrements() bool {
	return autoincrement.MatchString(noKeyword.ReplaceAllString(t.statement, " "))
}

// problem says what keeps the table from being used, and how to change that. It may have to have records.
func (t *sqliteTable) problem(records bool) string {
	if !t.autoincrements() {
		return "its id is not AUTOINCREMENT, so that fencing tokens would not grow: make it anew with " +
			"id integer PRIMARY KEY AUTOINCREMENT, or let Migrate do so"
	}
	missing := []string{"id", "lock_id", "creation_time", "expires_at", "holder", "lease_id"}
	if records {
		missing = append(missing, "result", "token")
	}
	for _, c := range t.columns {
		i := slices.Index(missing, c.name)
		text, number := c.holds("CHAR", "CLOB", "TEXT", "BLOB") || c.kind == "", c.holds("INT", "REAL", "FLOA", "DOUB")
		switch {
		case i < 0 && c.notNull && !c.filled:
			return fmt.Sprintf("its column %q is not one that this package knows: give it a default, or let it be NULL", c.name)
		case i < 0 || c.name == "id" || c.name == "token":
		case c.name == "expires_at" && c.notNull:
			return "its column expires_at must be NULL for leases that never expire: make it anew without NOT NULL"
		case strings.HasSuffix(c.name, "_id") && (number || !text):
			return fmt.Sprintf("the type of its column %s is %s, which changes what is stored: make it text", c.name, c.kind)
		case number:
			return fmt.Sprintf("the type of its column %s is %s: make it datetime, or text", c.name, c.kind)
		}
		if i >= 0 {
			missing = slices.Delete(missing, i, i+1)
		}
	}
	if len(missing) > 0 {
		return fmt.Sprintf("it has no column %s", missing[0])
	}
	exact := false
	for _, terms := range t.unique {
		ours := func(t sqliteTerm) bool { return t.column == "lock_id" || t.column == "lease_id" || t.column == "id" }
		switch {
		case len(terms) == 1 && terms[0] == sqliteTerm{"lock_id", "BINARY", false}:
			exact = true
		case len(terms) == 1 && terms[0].column == "lock_id" && !terms[0].partial:
			return "the collation of its column lock_id takes different ids for the same: make it BINARY"
		case !slices.ContainsFunc(terms, ours):
			return fmt.Sprintf("its column %q is unique, so that one mutex could push another out: drop that index", terms[0].column)
		}
	}
	if !exact {
		return "its column lock_id has no unique index of its own, without which two could hold a mutex: CREATE UNIQUE INDEX"
	}
	return ""
}

func (c sqliteColumn) holds(kinds ...string) bool {
	return slices.ContainsFunc(kinds, func(kind string) bool { return strings.Contains(c.kind, kind) })
}

// migrate leaves a table alone that can be used. It tries again if another process wrote, or made the same table or index,
// at the same time. It is in a transaction, as dbresolver would look for the table in a replica.
func (s *sqlite) migrate(on executor, model any) error {
	giveUp := time.Now().Add(Limit)
	return s.connect(on.hushing(refusals), func(c *sqliteConn) error {
		for {
			err := c.patiently(forever, func(on executor) error {
				return s.transaction(on, func(tx *gorm.DB) error { return s.makeTable(on.ctx, tx, model) })
			})
			if err == nil || !strings.Contains(err.Error(), "already exists") || time.Now().After(giveUp) {
				return err
			}
			if err := Sleep(c.ctx, 10*time.Millisecond); err != nil {
				return err
			}
		}
	})
}

func (s *sqlite) makeTable(ctx context.Context, tx *gorm.DB, model any) error {
	t, err := s.describe(in(ctx, tx))
	if err != nil {
		return err
	}
	problem := ""
	if t.columns != nil {
		if problem = t.problem(s.once.has); problem == "" {
			return nil
		}
	}
	if problem != "" && !t.autoincrements() {
		err = tx.Migrator().AlterColumn(model, "ID") // it copies the table
	}
	if err == nil {
		err = tx.AutoMigrate(model)
	}
	switch {
	case err != nil && problem != "" && !isBusy(err):
		return notMended(unusable(s.table, problem), err)
	case err != nil:
		return err
	}
	if t, err = s.describe(in(ctx, tx)); err == nil && t.problem(s.once.has) != "" {
		err = unusable(s.table, t.problem(s.once.has))
	}
	return err
}
