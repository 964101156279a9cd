package dbmutex_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/schema"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/proxy"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// Ids of four bytes a character are kept apart whatever the connection's charset is.
func TestIDsAreKeptApartInEveryCharset(t *testing.T) {
	t.Parallel()
	for _, charset := range []string{"utf8", "latin1", "ascii", "binary", "gbk", "sjis", "big5", "cp1251"} {
		for _, more := range []string{"", "&interpolateParams=true"} {
			if strings.ContainsAny(charset, "g5j") {
				if more != "" {
					continue // the driver's README forbids these
				}
				more = "&interpolateParams=false"
			}
			t.Run(charset+more, func(t *testing.T) {
				d := testdb.MySQL(t)
				plain := open(t, d)
				db := testdb.MySQLAt(d.DSN+"&charset="+charset+more).Registered(t, dbmutex.DefaultSettings())
				ids := []string{"🔒", "🔑", "a🔒", "a", "?", "\\", "é", "É", "e", "ソ", "能", "能\\"}
				for _, id := range ids {
					acquire(t, db, id)
					requireHeld(t, plain, id)
				}
			})
		}
	}
}

// A network that freezes between a verb's answer and the SET autocommit = 0 after it must not keep the verb for ever.
func TestAVerbEndsThoughItsSessionCannotBeRestored(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	open(t, d)
	p := proxy.New(t, d)
	db := p.Database.With("autocommit", "0").Registered(t, dbmutex.DefaultSettings())
	lease := acquire(t, db, "job")
	thaw := make(chan struct{})
	var once sync.Once
	defer once.Do(func() { close(thaw) })
	p.Choose(func(statement string) *proxy.Fault {
		if statement == `SET autocommit = 0` {
			<-thaw // nothing passes any more
		}
		return nil
	})
	done := make(chan error, 1)
	go func() { done <- lease.Release() }()
	select {
	case err := <-done:
		t.Log(err)
	case <-time.After(20 * time.Second): // a release has 5 seconds
		t.Error("the release has not returned")
	}
	once.Do(func() { close(thaw) })
	p.Choose(nil)
}

// innodb_rollback_on_timeout makes 1205 roll the whole transaction back.
func TestATransactionThatATimeoutRolledBackIsNoSuccess(t *testing.T) {
	t.Parallel()
	server := testdb.MySQL(t).NewServer(t, "innodb_rollback_on_timeout = ON", "innodb_lock_wait_timeout = 1")
	db := open(t, server.Database())
	require.NoError(t, db.Exec(`CREATE TABLE made (id integer PRIMARY KEY)`).Error)
	require.NoError(t, db.Exec(`INSERT INTO made VALUES (1)`).Error)
	other := db.Gorm.Begin()
	require.NoError(t, other.Exec(`UPDATE made SET id = 1 WHERE id = 1`).Error)
	require.NoError(t, other.Exec(`SELECT * FROM made WHERE id = 1 FOR UPDATE`).Error)
	err := db.Mutex("job").Transaction(func(tx *gorm.DB) error {
		require.NoError(t, tx.Exec(`INSERT INTO made VALUES (2)`).Error)
		require.ErrorContains(t, tx.Exec(`DELETE FROM made WHERE id = 1`).Error, "1205")
		return nil
	})
	require.NoError(t, other.Rollback().Error)
	require.ErrorIs(t, err, gorm.ErrInvalidTransaction)
	requireFree(t, db, "job")
}

// Servers with settings that people have.
func TestServersWithSettingsThatPeopleHave(t *testing.T) {
	t.Parallel()
	for _, setting := range []string{
		"binlog_format = STATEMENT\nlog_bin = on\nserver_id = 1",
		"sql_mode = ANSI", "character_set_server = utf8mb3", "transaction_isolation = READ-COMMITTED",
		"autocommit = 0", "completion_type = 1", "innodb_autoinc_lock_mode = 0",
	} {
		t.Run(setting, func(t *testing.T) {
			server := testdb.MySQL(t).NewServer(t, strings.Split(setting, "\n")...)
			db := open(t, server.Database())
			exercise(t, db)
			require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error { return tx.Exec(`SELECT 1`).Error }))
			exercise(t, db)
		})
	}
}

// A session that is left in XA is given up.
func TestAnXATransactionThatWasLeftOpenIsNoEnd(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	db := open(t, d)
	one(t, db)
	require.NoError(t, db.Exec(`XA START 'x'`).Error)
	requireFree(t, db, "job")
}

// A nested transaction that rolls back takes ReleaseIn back.
func TestAReleaseInANestedTransactionThatRollsBackIsNone(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	db := open(t, d)
	require.NoError(t, db.Mutex("job").Do(func(ctx context.Context) error {
		lease, _ := dbmutex.LeaseFrom(ctx)
		require.NoError(t, db.Gorm.Transaction(func(tx *gorm.DB) error {
			require.ErrorIs(t, tx.Transaction(func(tx *gorm.DB) error {
				require.NoError(t, lease.ReleaseIn(tx))
				return errWork
			}), errWork)
			return nil
		}))
		requireHeld(t, db, "job")
		require.NoError(t, lease.Renew())
		return nil
	}))
	requireFree(t, db, "job")
}

func TestATablePrefixWithCapitalLetters(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	db := open(t, d, &gorm.Config{NamingStrategy: schema.NamingStrategy{TablePrefix: "My App`s "}, Logger: logger.Discard})
	exercise(t, db)
}
