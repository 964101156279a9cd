package locktable

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/schema"
)

// inspectSQL describes a table in JSON, with its number. The sequence is that of the id's default, or of its identity. It is
// named as regclass reads it. A table that the search path finds ($2) has its sequence found so, too: the path may differ
// between connections.
const inspectSQL = `SELECT pg_catalog.json_build_object(
	'kind', c.relkind, 'persistence', c.relpersistence,
	'columns', (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
			'name', a.attname, 'type', b.typname, 'words', b.oid::regtype::text,
			'length', CASE t.typtype WHEN 'd' THEN t.typtypmod ELSE a.atttypmod END - 4,
			'notNull', a.attnotnull, 'filled', a.atthasdef OR a.attidentity <> '',
			'exact', coalesce(l.collisdeterministic, true), 'sorted', (SELECT pg_catalog.json_build_object(
				'provider', CASE l.collprovider WHEN 'd' THEN j->>'datlocprovider' ELSE l.collprovider::text END,
				'as', CASE l.collprovider WHEN 'd' THEN j->>'datcollate' ELSE l.collcollate::text END,
				'in', pg_catalog.getdatabaseencoding())
				FROM (SELECT pg_catalog.to_jsonb(d) FROM pg_catalog.pg_database d
					WHERE d.datname = pg_catalog.current_database()) AS here (j))))
		FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
		JOIN pg_catalog.pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END
		LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
		WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
	'unique', (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
			'columns', (SELECT pg_catalog.json_agg(a.attname) FROM pg_catalog.pg_attribute a
				WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])),
			'plain', i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL))
		FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique),
	'sequence', (SELECT pg_catalog.json_build_object(
			'name', CASE WHEN $2 THEN s.seqrelid::regclass::text
				ELSE pg_catalog.format('%I.%I', q.relnamespace::regnamespace::text, q.relname) END,
			'cache', s.seqcache, 'increment', s.seqincrement, 'cycles', s.seqcycle,
			'plain', f.oid IS NULL OR pg_catalog.pg_get_expr(f.adbin, c.oid) ~
				'^("?pg_catalog"?[.])?"?nextval"?[(]''.*''::"?regclass"?[)]$',
			'last', pg_catalog.pg_sequence_last_value(s.seqrelid))
		FROM pg_catalog.pg_attribute a
		LEFT JOIN pg_catalog.pg_attrdef f ON f.adrelid = c.oid AND f.adnum = a.attnum
		JOIN pg_catalog.pg_depend d ON (d.classid, d.objid) = ('pg_catalog.pg_attrdef'::regclass, f.oid) AND d.deptype = 'n'
			OR (d.refclassid, d.refobjid, d.refobjsubid) = ('pg_catalog.pg_class'::regclass, c.oid, a.attnum)
				AND (d.deptype = 'i' OR d.deptype = 'a' AND a.atthasdef)
		JOIN pg_catalog.pg_sequence s ON s.seqrelid = CASE d.deptype WHEN 'n' THEN d.refobjid ELSE d.objid END
		JOIN pg_catalog.pg_class q ON q.oid = s.seqrelid
		WHERE a.attrelid = c.oid AND a.attname = 'id'
		ORDER BY d.deptype DESC LIMIT 1))::text, c.oid::bigint
FROM pg_catalog.pg_class c WHERE c.oid = $1::text::regclass`

// postgresTable is what inspectSQL says.
type postgresTable struct {
	Kind, Persistence string
	Columns           []struct {
		Name, Type, Words      string
		Length                 int // of a varchar(n); less than 0 = any
		NotNull, Filled, Exact bool
		Sorted                 struct{ Provider, As, In string } // which columns of texts alone have
	}
	Unique []struct {
		Columns []string
		Plain   bool // neither deferrable, nor of some rows or an expression
	}
	Sequence *struct {
		Name             string
		Cache, Increment int64
		Cycles, Plain    bool  // Plain: the column's default is nothing but its next number
		Last             int64 // 0 = not known
	}
}

// shapePostgres lets lock_id be sorted by bytes, whatever the database's collation is: that is quicker, what has a prefix
// is in one place, and no new version of a language's rules can spoil the unique index.
func shapePostgres(db *gorm.DB, model any) error {
	stmt := &gorm.Statement{DB: db}
	if err := stmt.Parse(model); err != nil {
		return err
	}
	field := stmt.Schema.LookUpField("LockID")
	field.DataType = schema.DataType(fmt.Sprintf(`varchar(%d) COLLATE "C"`, field.Size))
	return nil
}

// inspect looks at the table, and keeps the statement that needs its sequence: asking for that in every statement would cost
// 10 to 19 µs.
func (p *postgres) inspect(on executor) error {
	var text string
	var id uint32
	if _, err := on.queryOne(inspectSQL, []any{p.table, !strings.Contains(p.table, `"."`)}, &text, &id); err != nil {
		return err
	}
	var t postgresTable
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return &refusedError{err}
	}
	if problem := t.problem(p.once.has); problem != "" {
		return unusable(p.table, problem)
	}
	if err := p.catchUp(on, t.Sequence.Name, t.Sequence.Last); err != nil {
		return err
	}
	p.known.Store(&lookedUp{p.acquireSQL(t.Sequence.Name), p.acquireManySQL(t.Sequence.Name), id, t.bytewise()})
	return nil
}

const (
	// catchUpMost is how many numbers a sequence may lag behind.
	catchUpMost = 10_000_000
	// catchUpMore is how much greater than the greatest id a token may be: that of a new row is drawn after its id.
	catchUpMore = 1000
)

// catchUp is for a sequence that lags behind the table, as after a restore of the data alone: fencing tokens would fall. It
// draws the numbers, as that is all that every role may do.
func (p *postgres) catchUp(on executor, sequence string, last int64) error {
	var greatest int64
	if _, err := on.queryOne(`SELECT coalesce(pg_catalog.max(id), 0) FROM `+p.table, nil, &greatest); err != nil {
		return err
	}
	if greatest <= last {
		return nil
	}
	next := `pg_catalog.nextval('` + strings.ReplaceAll(sequence, "'", "''") + `'::regclass)`
	if _, err := on.queryOne(`SELECT `+next, nil, &last); err != nil {
		return err
	}
	if greatest-last > catchUpMost {
		return unusable(p.table, fmt.Sprintf("its sequence lags behind: SELECT setval('%s', %d)", sequence, greatest))
	}
	numbers := `pg_catalog.generate_series($1::bigint, $2::bigint)`
	_, err := on.queryOne(`SELECT coalesce(pg_catalog.max(`+next+`), 0) FROM `+numbers,
		[]any{last + 1, greatest + catchUpMore}, &last)
	return err
}

// bytewise says whether lock_id is sorted by the bytes of UTF-8. The servers' own locales, from version 17 on, all are.
func (t *postgresTable) bytewise() bool {
	for _, c := range t.Columns {
		if c.Name == "lock_id" {
			bytes := c.Sorted.Provider == "b" || c.Sorted.Provider != "i" && (c.Sorted.As == "C" || c.Sorted.As == "POSIX")
			return bytes && c.Sorted.In == "UTF8"
		}
	}
	return false
}

// problem says what keeps a table from being used, and how to change that. It may have to have records.
func (t *postgresTable) problem(records bool) string {
	switch {
	case t.Kind != "r" && t.Kind != "p":
		return "it is no table"
	case t.Persistence == "t":
		return "it is temporary, so that every connection has its own: make one that is not"
	case t.Persistence == "u":
		return "it is unlogged, so that a crash empties it: ALTER TABLE ... SET LOGGED"
	}
	types := map[string][]string{
		"id":      {"int8", "int4"},
		"lock_id": {"varchar", "text"}, "holder": {"text", "varchar"}, "lease_id": {"varchar", "text"},
		"creation_time": {"timestamptz"}, "expires_at": {"timestamptz"},
	}
	if records {
		types["result"], types["token"] = []string{"text"}, []string{"int8"}
	}
	for _, c := range t.Columns {
		want, ours := types[c.Name]
		delete(types, c.Name)
		switch {
		case !ours && c.NotNull && !c.Filled:
			return fmt.Sprintf("its column %q is not one that this package knows: give it a default, or let it be NULL", c.Name)
		case !ours:
		case !slices.Contains(want, c.Type):
			return fmt.Sprintf("the type of its column %s is %s: make it %s", c.Name, c.Words, want[0])
		case c.Name == "lock_id" && !c.Exact:
			return "the collation of its column lock_id takes different ids for the same: choose a deterministic one"
		case c.Name == "lease_id" && c.Length >= 0 && c.Length < LeaseIDLength:
			return fmt.Sprintf("its column lease_id is too short: make it character varying(64), for it needs %d", LeaseIDLength)
		case c.Name == "expires_at" && c.NotNull:
			return "its column expires_at must be NULL for leases that never expire: ALTER COLUMN expires_at DROP NOT NULL"
		}
	}
	for name := range types {
		return fmt.Sprintf("it has no column %s", name)
	}
	exact := false
	for _, index := range t.Unique {
		ours := func(column string) bool { return column == "lock_id" || column == "lease_id" || column == "id" }
		if !slices.ContainsFunc(index.Columns, ours) {
			return fmt.Sprintf("its columns %q are unique, so that one mutex could keep out another: drop that index", index.Columns)
		}
		exact = exact || index.Plain && slices.Equal(index.Columns, []string{"lock_id"})
	}
	switch s := t.Sequence; {
	case !exact:
		return "its column lock_id has no unique index of its own, without which two could hold a mutex: CREATE UNIQUE INDEX"
	case s == nil || !s.Plain:
		return "its column id takes no value from a sequence: make it GENERATED BY DEFAULT AS IDENTITY"
	case s.Cache != 1:
		return fmt.Sprintf("its sequence keeps %d numbers for each connection, so that fencing tokens would not grow: "+
			"ALTER SEQUENCE %s CACHE 1", s.Cache, s.Name)
	case s.Increment < 1 || s.Cycles:
		return fmt.Sprintf("its sequence falls, and fencing tokens with it: ALTER SEQUENCE %s INCREMENT BY 1 NO CYCLE", s.Name)
	}
	return ""
}

const (
	// migrationLock is the advisory lock of processes that make the table at the same time.
	migrationLock = 0x64626d75746578 // "dbmutex"

	// migrationPause is between two tries for it: a statement that waits would be logged as a slow one.
	migrationPause = 50 * time.Millisecond
)

// migrate leaves a table alone that can be used. It may have been made by hand, and AutoMigrate would stumble over names.
func (p *postgres) migrate(on executor, model any) error {
	// READ COMMITTED, so that what another process made during the wait for the lock is seen.
	return on.session().Transaction(func(tx *gorm.DB) error {
		for locked := false; !locked; {
			query := tx.Raw(`SELECT pg_catalog.pg_try_advisory_xact_lock(?::bigint)`, int64(migrationLock))
			if err := query.Scan(&locked).Error; err != nil {
				return err
			}
			if !locked {
				if err := Sleep(on.ctx, migrationPause/2+rand.N(migrationPause)); err != nil {
					return err
				}
			}
		}
		var there sql.NullString
		if err := tx.Raw(`SELECT pg_catalog.to_regclass(?)::text`, p.table).Scan(&there).Error; err != nil {
			return err
		}
		var problem error
		if there.Valid {
			if problem = p.inspect(in(on.ctx, tx)); problem == nil {
				return p.keepSize(tx)
			}
		}
		switch err := tx.AutoMigrate(model); {
		case err != nil && problem != nil:
			return notMended(problem, err)
		case err != nil:
			return err
		}
		if err := p.inspect(in(on.ctx, tx)); err != nil {
			return err
		}
		return p.keepSize(tx)
	}, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
}

// keepSize keeps VACUUM from giving the pages of dead rows back. A table that it had cut down to a page or two would be
// read from end to end rather than by its index, also when it has grown again, as plans are kept. And VACUUM locks
// everybody out to cut. A table that another role owns, or that has a setting of its own, stays as it is; so does one with
// partitions, which can have none.
func (p *postgres) keepSize(tx *gorm.DB) error {
	var may bool
	err := tx.Raw(`SELECT relkind = 'r' AND pg_catalog.pg_has_role(relowner, 'USAGE')
	AND coalesce(reloptions::text, '') NOT LIKE '%vacuum_truncate%'
FROM pg_catalog.pg_class WHERE oid = ?::regclass`, p.table).Scan(&may).Error
	if err != nil || !may {
		return err
	}
	return tx.Exec(`ALTER TABLE ` + p.table + ` SET (vacuum_truncate = off)`).Error
}
