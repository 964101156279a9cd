package locktable

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/schema"
)

// mysqlShapes are the types of the model's columns that differ from GORM's own. lock_id is compared byte for byte, whatever
// the server's charset and collation are.
var mysqlShapes = []struct {
	field, kind     string // the kind is GORM's if it is ""
	size, precision int
}{
	{field: "LockID", kind: "varbinary(1024)", size: 1024}, // MaxLockIDLength characters of four bytes
	{field: "CreationTime", precision: 6},
	{field: "ExpiresAt", precision: 6},
	{field: "Holder", kind: "mediumtext CHARACTER SET utf8mb4"},
	{field: "Result", kind: "mediumtext CHARACTER SET utf8mb4"},
}

// shapeMySQL changes the schema that GORM keeps of the model.
func shapeMySQL(db *gorm.DB, model any) error {
	stmt := &gorm.Statement{DB: db}
	if err := stmt.Parse(model); err != nil {
		return err
	}
	for _, shape := range mysqlShapes {
		field := stmt.Schema.LookUpField(shape.field)
		if field == nil {
			continue
		}
		if shape.kind != "" {
			field.DataType, field.Size = schema.DataType(shape.kind), shape.size
		}
		if shape.precision != 0 {
			field.Precision = shape.precision
		}
	}
	return nil
}

// mysqlColumn is a row of SHOW FULL COLUMNS.
type mysqlColumn struct {
	name, kind      string
	collation       string // "" if it has none
	notNull, filled bool
	extra           string
}

// mysqlIndex are the columns of an index. One of a part of a column's bytes, or of an expression, has "" there, and so has
// one that no statement uses.
type mysqlIndex struct {
	name    string
	unique  bool
	columns []string
}

type mysqlTable struct {
	version, mode, engine, of string
	autocommit                bool
	probe                     string // what the session makes of "ü"
	columns                   []mysqlColumn
	indexes                   []*mysqlIndex
}

func (m *mysql) inspect(on executor) error {
	var t mysqlTable
	err := m.outside(on, func() (err error) {
		t, err = m.describe(on)
		return err
	})
	if err != nil {
		return err
	}
	if problem := t.problem(m.once.has); problem != "" {
		return unusable(m.table, problem)
	}
	m.mariadb.Store(t.isMariaDB())
	return nil
}

// describe asks the server for the table.
func (m *mysql) describe(on executor) (t mysqlTable, err error) {
	err = on.queryAll(`SHOW FULL COLUMNS FROM `+m.table, nil, func(rows *sql.Rows) error {
		var c mysqlColumn
		var null string
		var collation, fallback sql.NullString
		err := rows.Scan(&c.name, &c.kind, &collation, &null, new(any), &fallback, &c.extra, new(any), new(any))
		c.collation, c.notNull = collation.String, null == "NO"
		c.filled = fallback.Valid || c.extra != ""
		t.columns = append(t.columns, c)
		return err
	})
	if err != nil {
		return t, err
	}
	database, name, qualified := strings.Cut(m.name, ".")
	if !qualified {
		database, name = "", m.name
	}
	var engine, of sql.NullString
	_, err = on.queryOne(`SELECT VERSION(), @@sql_mode, HEX(?), MAX(engine), MAX(table_type)
FROM information_schema.tables WHERE table_schema = CASE ? WHEN 0 THEN DATABASE() ELSE ? END AND table_name = ?`,
		[]any{"ü", len(database), database, name}, &t.version, &t.mode, &t.probe, &engine, &of)
	if mysqlNumber(err) == 3988 { // MySQL cannot change the probe as the session wants
		return t, nil
	}
	t.engine, t.of = engine.String, of.String
	if err == nil { // information_schema has one of its own
		_, err = on.queryOne(`SELECT @@autocommit`, nil, &t.autocommit)
	}
	if err != nil {
		return t, err
	}
	return t, on.queryAll(`SHOW INDEX FROM `+m.table, nil, func(rows *sql.Rows) error { return t.addTerm(rows) })
}

// addTerm reads a row of SHOW INDEX, whose columns differ between the servers.
func (t *mysqlTable) addTerm(rows *sql.Rows) error {
	names, err := rows.Columns()
	if err != nil {
		return err
	}
	values, dest := make([]sql.NullString, len(names)), make([]any, len(names))
	for i := range values {
		dest[i] = &values[i]
	}
	if err := rows.Scan(dest...); err != nil {
		return err
	}
	term := map[string]sql.NullString{}
	for i, name := range names {
		term[strings.ToLower(name)] = values[i]
	}
	name, column := term["key_name"].String, term["column_name"].String
	if term["sub_part"].Valid || term["visible"].String == "NO" || term["ignored"].String == "YES" {
		column = ""
	}
	for _, index := range t.indexes {
		if index.name == name {
			index.columns = append(index.columns, column)
			return nil
		}
	}
	t.indexes = append(t.indexes, &mysqlIndex{name, term["non_unique"].String == "0", []string{column}})
	return nil
}

func (t *mysqlTable) isMariaDB() bool { return strings.Contains(t.version, "MariaDB") }

// tooOld says whether the server has no SKIP LOCKED.
func (t *mysqlTable) tooOld() bool {
	numbers := regexp.MustCompile(`^(\d+)\.(\d+)`).FindStringSubmatch(t.version)
	if numbers == nil {
		return false
	}
	major, _ := strconv.Atoi(numbers[1])
	minor, _ := strconv.Atoi(numbers[2])
	if t.isMariaDB() {
		return major < 10 || major == 10 && minor < 6
	}
	return major < 8
}

// mysqlTypes are patterns for the types of the columns, and what is proposed instead.
var mysqlTypes = map[string][2]string{
	"id":            {`^(big)?int\b`, "bigint AUTO_INCREMENT"},
	"lock_id":       {`^varbinary\((102[4-9]|10[3-9]\d|1[1-9]\d\d|[2-9]\d\d\d)\)`, "varbinary(1024)"},
	"creation_time": {`^datetime\(6\)`, "datetime(6)"},
	"expires_at":    {`^datetime\(6\)`, "datetime(6)"},
	"holder":        {`text|blob|^var(char|binary)\((2[6-9]|[3-9]\d|\d{3,})\)`, "mediumtext CHARACTER SET utf8mb4"},
	"lease_id":      {`^(char|varchar|varbinary)\((2[7-9]|[3-9]\d|\d{3,})\)`, "varchar(64)"},
	"token":         {`^bigint\b`, "bigint NOT NULL DEFAULT 0"},
	"result":        {`^(medium|long)text`, "mediumtext CHARACTER SET utf8mb4"},
}

// problem says what keeps the table from being used, and how to change that. It may have to have records.
func (t *mysqlTable) problem(records bool) string {
	switch {
	case t.tooOld():
		return "the server is " + t.version + ": dbmutex needs SKIP LOCKED, which MySQL has from 8.0 on and MariaDB from 10.6 on"
	case strings.Contains(t.mode, "EMPTY_STRING_IS_NULL"):
		return "the session's sql_mode has EMPTY_STRING_IS_NULL, under which no row can be free: leave that out"
	case t.probe != "C3BC":
		return "the session changes texts on their way, as its character_set_client and character_set_connection are not the same"
	case !t.autocommit: // or clean had set it
		return "the session has autocommit=0, and the pool hides its connections: use an *sql.DB, or leave that out"
	case t.of == "":
		return "it is temporary, so that every connection has its own: make one that is not"
	case !strings.Contains(t.of, "BASE TABLE"):
		return "it is no table"
	case !strings.EqualFold(t.engine, "InnoDB"):
		return fmt.Sprintf("its engine is %s, which has no transactions: ALTER TABLE ... ENGINE = InnoDB", t.engine)
	}
	const mends = " (AutoMigrate does so if the plugin was registered before, and Migrate does)"
	missing := []string{"id", "lock_id", "creation_time", "expires_at", "holder", "lease_id", "token"}
	if records {
		missing = append(missing, "result")
	}
	for _, c := range t.columns {
		i := slices.Index(missing, c.name)
		switch want := mysqlTypes[c.name]; {
		case i < 0 && c.notNull && !c.filled:
			return fmt.Sprintf("its column %q is not one that this package knows: give it a default, or let it be NULL", c.name)
		case i < 0:
			continue
		case !regexp.MustCompile(want[0]).MatchString(c.kind):
			return fmt.Sprintf("the type of its column %s is %s: make it %s"+mends, c.name, c.kind, want[1])
		case c.name == "id" && !strings.Contains(c.extra, "auto_increment"):
			return "its column id takes no number by itself: make it AUTO_INCREMENT"
		case c.name == "expires_at" && c.notNull:
			return "its column expires_at must be NULL for leases that never expire"
		case (c.name == "holder" || c.name == "result") && c.collation != "" && !strings.HasPrefix(c.collation, "utf8mb4"):
			return fmt.Sprintf("its column %s, of %s, cannot take every text: make it %s"+mends, c.name, c.collation, want[1])
		}
		missing = slices.Delete(missing, i, i+1)
	}
	if len(missing) > 0 {
		return fmt.Sprintf("it has no column %s", missing[0])
	}
	return t.problemOfIndexes(records)
}

// problemOfIndexes: InnoDB locks what it finds on its way to a row. So there is one way, by lock_id, and one by the id. No
// statement that locks uses the index of records on expires_at.
func (t *mysqlTable) problemOfIndexes(records bool) string {
	byID, exact := false, false
	for _, index := range t.indexes {
		switch {
		case index.name == "PRIMARY" && slices.Equal(index.columns, []string{"id"}):
			byID = true
		case index.unique && slices.Equal(index.columns, []string{"lock_id"}):
			exact = true
		case records && !index.unique && slices.Equal(index.columns, []string{"expires_at"}):
		default:
			return fmt.Sprintf("its index %s makes statements lock rows of other mutexes: drop it", index.name)
		}
	}
	switch {
	case !byID:
		return "its column id is not its primary key: make it PRIMARY KEY"
	case !exact:
		return "its column lock_id has no unique index of its own, without which two could hold a mutex: CREATE UNIQUE INDEX"
	}
	return ""
}

// migrate leaves a table alone that can be used. It tries again if another process made the same table, column or index at
// the same time. There is no transaction around it, as every statement of it commits.
func (m *mysql) migrate(on executor, model any) error {
	made := []uint64{1050, 1060, 1061, 1213, 1412, 1684}
	on = on.hushing(failures) // they are mended, or returned
	db := on.mainSession().Set("gorm:table_options", "ENGINE=InnoDB")
	for giveUp := time.Now().Add(Limit); ; {
		problem := m.inspect(on.hushing(failures)) // the table may be missing
		if problem == nil {
			return nil
		}
		change := db.AutoMigrate
		if m.classify(problem) == noTable { // AutoMigrate looks for a table of another database in the current one
			change = db.Migrator().CreateTable
		}
		err := change(model)
		switch {
		case err == nil:
			return m.inspect(on)
		case slices.Contains(made, mysqlNumber(err)) && time.Now().Before(giveUp):
			if err := Sleep(on.ctx, 10*time.Millisecond); err != nil {
				return err
			}
		case m.classify(problem) != noTable:
			return notMended(problem, err)
		default:
			return err
		}
	}
}

const (
	// One of sweepEvery new rows has sweepRows others looked at, from anywhere on. So the table does not grow for ever.
	sweepEvery = 8
	sweepRows  = 64
)

// mysqlOld is the condition of a row that sweep removes.
const mysqlOld = `lease_id = '' AND expires_at < UTC_TIMESTAMP(6) - INTERVAL 1 HOUR AND token >> 24 <= id`

// sweep removes rows that have been free for an hour, now that there is a new one. It waits for nobody.
func (m *mysql) sweep(on executor, newest int64) {
	if rand.IntN(sweepEvery) != 0 {
		return
	}
	on = on.hushing(failures)
	var old []string
	err := on.queryAll(m.oldSQL, []any{rand.Int64N(newest+sweepRows) - sweepRows}, func(row *sql.Rows) error {
		var id string
		var isOld bool
		err := row.Scan(&id, &isOld)
		if isOld {
			old = append(old, id)
		}
		return err
	})
	if err == nil && len(old) > 0 {
		_, _ = on.exec(m.removeSQL(old, mysqlOld), nil)
	}
}

// removeSQL removes those of some rows that meet a condition, and that nobody has locked. Any other way to write it may read
// the table from end to end, and wait for what is locked.
func (m *mysql) removeSQL(ids []string, condition string) string {
	return fmt.Sprintf(`DELETE m FROM (SELECT id FROM %s WHERE id IN (%s) AND %s
	LIMIT %d FOR UPDATE SKIP LOCKED) AS old STRAIGHT_JOIN %s AS m ON m.id = old.id`,
		m.table, strings.Join(ids, ","), condition, len(ids), m.table)
}
