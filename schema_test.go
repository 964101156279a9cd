package dbmutex_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/schema"

	"github.com/gorm-dbmutex/dbmutex"
	sqltext "github.com/gorm-dbmutex/dbmutex/internal/schema"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// The tests of this file keep docs/schema.md true.

// madeBySQL opens a database whose tables the documented SQL has made, with a prefix to their names.
func madeBySQL(t *testing.T, d *testdb.Database, prefix string, opts ...gorm.Option) *dbmutex.DB {
	t.Helper()
	for table, textFor := range map[string]func(string) (string, error){
		"db_mutexes": sqltext.SQL, "db_onces": sqltext.OnceSQL,
	} {
		text, err := textFor(d.Name)
		require.NoError(t, err)
		index := "idx_" + strings.ReplaceAll(prefix, ".", "_") + table
		text = strings.NewReplacer("idx_"+table, index, table, prefix+table).Replace(text)
		require.NoError(t, d.Open(t).Exec(text).Error)
	}
	return d.Registered(t, dbmutex.DefaultSettings(), opts...)
}

// catalog is what the database says of the table: the answers to these queries.
func catalog(t *testing.T, db *dbmutex.DB, queries ...string) string {
	t.Helper()
	var answers strings.Builder
	for _, query := range queries {
		var rows []map[string]any
		require.NoError(t, db.Raw(query).Scan(&rows).Error, query)
		require.NoError(t, json.NewEncoder(&answers).Encode(rows))
	}
	return answers.String()
}

func TestTheDocumentedSQLIsTheProgramsSQL(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("docs/schema.md")
	require.NoError(t, err)
	files, err := filepath.Glob("internal/schema/*.sql")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := sqltext.SQL(strings.TrimSuffix(filepath.Base(file), ".sql"))
		require.NoError(t, err)
		require.Contains(t, string(page), "```sql\n"+text+"```\n", file)
	}
	_, err = sqltext.SQL("oracle")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestTheDocumentedSQLMakesWhatGORMMakes(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		bySQL := madeBySQL(t, d, "")
		byGORM := d.Another(t).Registered(t, dbmutex.DefaultSettings())
		require.NoError(t, byGORM.AutoMigrate(&dbmutex.DBMutex{}, &dbmutex.DBOnce{}))
		want := catalog(t, byGORM, d.Catalog...)
		for _, column := range []string{"id", "lock_id", "creation_time", "expires_at", "holder", "lease_id", "token"} {
			require.Contains(t, want, column)
		}
		require.Equal(t, want, catalog(t, bySQL, d.Catalog...))
		queries := slices.Clone(d.Catalog)
		for i, query := range queries {
			queries[i] = strings.ReplaceAll(query, "db_mutexes", "db_onces")
		}
		want = catalog(t, byGORM, queries...)
		require.Contains(t, want, "result")
		require.Equal(t, want, catalog(t, bySQL, queries...))
		if d.Options != "" {
			require.NotEqual(t, catalog(t, byGORM, d.Options), catalog(t, bySQL, d.Options), "AutoMigrate sets that, too")
			require.NoError(t, byGORM.Migrate())
			require.Equal(t, catalog(t, byGORM, d.Options), catalog(t, bySQL, d.Options))
		}
	})
}

// Its names are those that GORM gives, so that it finds nothing to add.
func TestTheTableOfTheDocumentedSQLIsLeftAlone(t *testing.T) {
	t.Parallel()
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		for _, prefix := range []string{"", "app_"} {
			t.Run("prefix "+prefix, func(t *testing.T) {
				out := &logs{}
				db := madeBySQL(t, d.Another(t), prefix, &gorm.Config{
					Logger:         out.logger(logger.Info),
					NamingStrategy: schema.NamingStrategy{TablePrefix: prefix},
				})
				require.NoError(t, db.AutoMigrate(&dbmutex.DBMutex{}, &dbmutex.DBOnce{}))
				require.NoError(t, db.Migrate())
				require.Contains(t, out.String(), "SELECT")
				require.NotRegexp(t, `(?i)\b(CREATE|ALTER|DROP|COMMENT)\s`, out.String())
				exercise(t, db)
				require.NoError(t, db.Once("job", time.Hour).Do(nothing))
			})
		}
	})
}

func TestTheDocumentedSQLMakesATableInASchema(t *testing.T) {
	t.Parallel()
	testdb.EachOf(t, testdb.Remote, func(t *testing.T, d *testdb.Database) {
		out, prefix := &logs{}, currentSchema(t, d.Registered(t, dbmutex.DefaultSettings()))+"."
		db := madeBySQL(t, d, prefix, &gorm.Config{
			Logger:         out.logger(logger.Info),
			NamingStrategy: schema.NamingStrategy{TablePrefix: prefix},
		})
		require.NoError(t, db.Migrate())
		require.NotRegexp(t, `(?i)\b(CREATE|ALTER|DROP|COMMENT)\s`, out.String())
		exercise(t, db)
		requireFree(t, d.Registered(t, dbmutex.DefaultSettings()), "job")
	})
}

// The tests of the promises run again, in a process whose tables the documented SQL makes.
func TestThePromisesAreKeptOnTheTableOfTheDocumentedSQL(t *testing.T) {
	t.Parallel()
	var tests []string
	for _, about := range []string{"promises", "mutex", "lease", "transaction", "privileges"} {
		text, err := os.ReadFile(about + "_test.go")
		require.NoError(t, err)
		for _, found := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(text, -1) {
			tests = append(tests, string(found[1]))
		}
	}
	suite := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.run=^("+strings.Join(tests, "|")+")$")
	suite.Env = append(os.Environ(), "DBMUTEX_TEST_TABLE=sql")
	out, err := suite.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, test := range tests {
		require.Contains(t, string(out), "=== RUN   "+test+"\n")
	}
	for _, d := range testdb.All(t) {
		require.Contains(t, string(out), "SQL has made the table in "+d.Name)
	}
}
