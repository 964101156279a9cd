package dbmutex_test

import (
	"database/sql"
	"strings"
	"testing"

	driver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/mysql"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// one limits a handle's pool to one connection.
func one(t testing.TB, db *dbmutex.DB) *sql.DB {
	t.Helper()
	pool, err := db.DB()
	require.NoError(t, err)
	pool.SetMaxOpenConns(1)
	pool.SetMaxIdleConns(1)
	return pool
}

// A procedure that begins a transaction and fails answers with an error alone, which has no status.
func TestATransactionThatAFailedProcedureLeftOpenIsSeen(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	other := open(t, d)
	require.NoError(t, other.Exec(`CREATE PROCEDURE breaks() BEGIN START TRANSACTION; SIGNAL SQLSTATE '45000'; END`).Error)
	db := d.Registered(t, dbmutex.DefaultSettings())
	one(t, db)
	for _, verb := range []string{"acquire", "take over", "renew", "release"} {
		t.Run(verb, func(t *testing.T) {
			id := strings.ReplaceAll(verb, " ", "-")
			lease := acquire(t, db, id)
			switch verb {
			case "acquire":
				require.NoError(t, lease.Release())
			case "take over":
				testdb.Expire(t, other, id)
			}
			before := row(t, other, id)
			require.Error(t, db.Exec(`CALL breaks()`).Error)
			switch verb {
			case "renew":
				require.NoError(t, lease.Renew())
				require.True(t, row(t, other, id).ExpiresAt.After(*before.ExpiresAt), "the renewal is not committed")
			case "release":
				require.NoError(t, lease.Release())
				require.Nil(t, row(t, other, id), "the release is not committed")
			default:
				_, err := db.Mutex(id).Acquire()
				require.NoError(t, err)
				_, err = db.Mutex("another").Holder() // the same connection
				require.NoError(t, err)
				requireHeld(t, other, id)
			}
		})
	}
}

// completion_type makes every ROLLBACK and COMMIT begin another transaction.
func TestAChainedTransactionIsSeen(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	other := open(t, d)
	db := d.With("completion_type", "1").Registered(t, dbmutex.DefaultSettings())
	one(t, db)
	require.NoError(t, db.Exec(`CREATE TABLE made (id integer)`).Error)
	require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error { return tx.Exec(`INSERT INTO made VALUES (1)`).Error }))
	acquire(t, db, "job")
	_, err := db.Mutex("another").Holder() // on the same connection
	require.NoError(t, err)
	requireHeld(t, other, "job")
}

// init_connect runs after the server's answer to the log-in, for users who are not administrators.
func TestASessionThatTheServerTookOutOfAutocommitHoldsNothingBack(t *testing.T) {
	t.Parallel()
	server := testdb.MySQL(t).NewServer(t, "init_connect = 'SET autocommit = 0'")
	config, err := driver.ParseDSN(server.DSN())
	require.NoError(t, err)
	root := testdb.MySQLAt(server.DSN()).Open(t)
	for _, statement := range []string{
		`CREATE DATABASE locks`, `CREATE USER app@'%' IDENTIFIED BY 'app'`, `GRANT ALL ON locks.* TO app@'%'`,
	} {
		require.NoError(t, root.Exec(statement).Error)
	}
	config.DBName = "locks"
	other := testdb.MySQLAt(config.FormatDSN()).Mutexes(t, dbmutex.DefaultSettings())
	config.User, config.Passwd, config.AllowNativePasswords = "app", "app", true
	db := testdb.MySQLAt(config.FormatDSN()).Registered(t, dbmutex.DefaultSettings())
	pool, err := db.DB()
	require.NoError(t, err)
	fresh := func() { // the next connection is a new one
		pool.SetMaxIdleConns(0)
		pool.SetMaxIdleConns(1)
	}
	fresh()
	lease := acquire(t, db, "job")
	pool.SetMaxOpenConns(1)
	_, err = db.Mutex("another").Holder() // on the same connection
	require.NoError(t, err)
	requireHeld(t, other, "job")
	fresh()
	require.NoError(t, lease.Release())
	require.Nil(t, row(t, other, "job"))
}

// What a failed procedure wrote without autocommit is rolled back as other transactions are, not committed.
func TestWhatAFailedProcedureWroteWithoutAutocommitIsNotCommitted(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	other := open(t, d)
	require.NoError(t, other.Exec(`CREATE TABLE made (id integer)`).Error)
	const breaks = `CREATE PROCEDURE breaks() BEGIN INSERT INTO made VALUES (1); SIGNAL SQLSTATE '45000'; END`
	require.NoError(t, other.Exec(breaks).Error)
	db := d.With("autocommit", "0").Registered(t, dbmutex.DefaultSettings())
	one(t, db)
	require.NoError(t, db.Exec(`ROLLBACK`).Error)
	require.Error(t, db.Exec(`CALL breaks()`).Error)
	acquire(t, db, "job")
	var n int
	require.NoError(t, other.Raw(`SELECT count(*) FROM made`).Scan(&n).Error)
	require.Zero(t, n)
}

// Sessions with settings that people have.
func TestSessionsWithSettingsThatPeopleHave(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"sql_safe_updates":         "1",
		"sql_mode":                 "'ANSI,NO_AUTO_VALUE_ON_ZERO,NO_BACKSLASH_ESCAPES,HIGH_NOT_PRECEDENCE'",
		"sql_mode ":                "''",
		"sql_mode  ":               "'PAD_CHAR_TO_FULL_LENGTH'",
		"time_zone":                "'-11:30'",
		"div_precision_increment":  "0",
		"group_concat_max_len":     "4",
		"foreign_key_checks":       "0",
		"unique_checks":            "0",
		"sql_auto_is_null":         "1",
		"insert_id":                "1",
		"last_insert_id":           "77",
		"character_set_results":    "latin1",
		"innodb_lock_wait_timeout": "1",
		"lock_wait_timeout":        "1",
		"max_sort_length":          "8",
		"sql_notes":                "0",
		"low_priority_updates":     "1",
	} {
		t.Run(strings.TrimSpace(name)+"="+value, func(t *testing.T) {
			d := testdb.MySQL(t)
			open(t, d)
			with := d.With(strings.TrimSpace(name), value)
			for _, more := range []string{"", "&interpolateParams=true&clientFoundRows=true"} {
				requireTextsAsTheyAre(t, d, testdb.MySQLAt(with.DSN+more))
			}
		})
	}
}

func TestCharsetsOfTheDSN(t *testing.T) {
	t.Parallel()
	for _, charset := range []string{"utf8", "latin1", "ascii", "binary", "gbk", "sjis", "big5", "cp1251"} {
		t.Run(charset, func(t *testing.T) {
			d := testdb.MySQL(t)
			open(t, d)
			requireTextsAsTheyAre(t, d, testdb.MySQLAt(d.DSN+"&interpolateParams=false&charset="+charset))
		})
	}
}

// requireTextsAsTheyAre: ids and holders are the same in sessions of both kinds.
func requireTextsAsTheyAre(t testing.TB, plain, unusual *testdb.Database) {
	t.Helper()
	theirs := plain.Registered(t, dbmutex.DefaultSettings())
	db := unusual.Registered(t, dbmutex.DefaultSettings())
	exercise(t, db)
	for _, id := range []string{"job", "Straße", "日本語 🔒", "a\\'\"`b%_?", "ソ能\\"} {
		lease := acquire(t, db, id, dbmutex.WithHolder("Zoë 🔒 ソ能"))
		requireHeld(t, theirs, id)
		for _, reader := range []*dbmutex.DB{theirs, db} {
			holder, err := reader.Mutex(id).Holder()
			require.NoError(t, err)
			require.Equal(t, id, holder.LockID)
			require.Equal(t, "Zoë 🔒 ソ能", holder.Holder)
		}
		require.NoError(t, lease.Release())
	}
}

func TestAHiddenPoolWithoutAutocommitIsRefused(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	open(t, d)
	pool := one(t, d.With("autocommit", "0").Registered(t, dbmutex.DefaultSettings()))
	gdb, err := gorm.Open(mysql.New(mysql.Config{Conn: poolOfOnesOwn{pool}}))
	require.NoError(t, err)
	db := testdb.Register(t, gdb, dbmutex.DefaultSettings())
	require.ErrorContains(t, db.Mutex("job").Do(nothing), "hides its connections")
}

// Then an id would not be stored as it is.
func TestASessionThatChangesTextsIsRefused(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	open(t, d)
	for name, value := range map[string]string{"character_set_client": "latin1", "collation_connection": "ascii_bin"} {
		db := d.With(name, value).Registered(t, dbmutex.DefaultSettings())
		require.ErrorContains(t, db.Mutex("job").Do(nothing), "changes texts on their way")
	}
}
