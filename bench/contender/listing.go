package contender

import (
	"context"
	"fmt"

	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
)

// Table is this package on one database, to be listed.
type Table struct {
	*dbmutex.DB
	Name  string
	Close func()
	DSN   string
	fill  string
}

// tableKinds are the databases, in the order of Tables. fill makes rows of leases, from 0 to a number.
var tableKinds = []struct {
	name, fill string
	open       func(dsn string) gorm.Dialector
}{
	{"PostgreSQL", `INSERT INTO db_mutexes (lock_id, creation_time, expires_at, holder, lease_id)
SELECT 'tenant-' || lpad((n / 1000)::text, 4, '0') || '/job-' || lpad(n::text, 7, '0'), now(), now() + interval '1 hour',
	'machine-' || n %% 50, md5(n::text) FROM generate_series(0, %d) n`, postgres.Open},
	{"MySQL or MariaDB", `INSERT INTO db_mutexes (lock_id, creation_time, expires_at, holder, lease_id)
SELECT CONCAT('tenant-', LPAD(n DIV 1000, 4, '0'), '/job-', LPAD(n, 7, '0')), UTC_TIMESTAMP(6),
	UTC_TIMESTAMP(6) + INTERVAL 1 HOUR, CONCAT('machine-', n %% 50), MD5(n)
FROM (WITH RECURSIVE d AS (SELECT 0 AS i UNION ALL SELECT i + 1 FROM d WHERE i < 99)
	SELECT a.i * 10000 + b.i * 100 + c.i AS n FROM d a, d b, d c) AS numbers WHERE n <= %d ORDER BY n`, mysql.Open},
	{"SQLite", `INSERT INTO db_mutexes (lock_id, creation_time, expires_at, holder, lease_id)
WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < %d)
SELECT printf('tenant-%%04d/job-%%07d', n / 1000, n), strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now'),
	strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now', '+1 hour'), 'machine-' || n %% 50, 'lease' || n FROM numbers`, sqlite.Open},
}

// Tables are this package on every database of a DSN that is not "".
func Tables(postgresDSN, mysqlDSN, file string) (tables []*Table, err error) {
	for i, dsn := range []string{postgresDSN, mysqlDSN, file} {
		if dsn == "" {
			continue
		}
		table, err := OpenTable(tableKinds[i].name, dsn)
		if err != nil {
			for _, opened := range tables {
				opened.Close()
			}
			return nil, err
		}
		tables = append(tables, table)
	}
	return tables, nil
}

// OpenTable opens another pool on the table of a database, by the name that Tables gives it.
func OpenTable(name, dsn string) (*Table, error) {
	for _, kind := range tableKinds {
		if kind.name != name {
			continue
		}
		o, err := openDBMutex(kind.open(dsn), gorm.Config{})
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", name, err)
		}
		return &Table{o.db, name, o.Close, dsn, kind.fill}, nil
	}
	return nil, fmt.Errorf("no table is called %q", name)
}

// Notifies says whether releases are heard of in other processes once Notify(true) was called.
func (t *Table) Notifies() bool { return t.Name == tableKinds[0].name }

// Fill makes n rows of leases that are held, a thousand for each tenant.
func (t *Table) Fill(ctx context.Context, n int) error {
	return t.WithContext(ctx).Exec(fmt.Sprintf(t.fill, n-1)).Error
}

// Expire makes leases run out, all but every nth.
func (t *Table) Expire(ctx context.Context, n int) error {
	return t.WithContext(ctx).Exec(`UPDATE db_mutexes SET expires_at = creation_time WHERE id % ? <> 0`, n).Error
}

// Analyze tells the database what is in the table, as it does by itself after a while.
func (t *Table) Analyze(ctx context.Context) error {
	statement := `ANALYZE db_mutexes`
	if t.Name == "MySQL or MariaDB" {
		statement = `ANALYZE TABLE db_mutexes`
	}
	return t.WithContext(ctx).Exec(statement).Error
}
