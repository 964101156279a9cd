package dbmutex_test

import (
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/schema"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

// The token grows whatever an administrator does to a table whose rows were removed.
func TestTokensGrowWhateverRebuildsTheTable(t *testing.T) {
	t.Parallel()
	for _, what := range []string{
		`OPTIMIZE TABLE db_mutexes`, `ALTER TABLE db_mutexes FORCE`, `ALTER TABLE db_mutexes ENGINE = InnoDB`,
		`ALTER TABLE db_mutexes MODIFY holder varchar(300) CHARACTER SET utf8mb4 NOT NULL`,
		`ALTER TABLE db_mutexes ADD more integer, ALGORITHM = COPY`, `ANALYZE TABLE db_mutexes`,
		`RENAME TABLE db_mutexes TO other, other TO db_mutexes`,
	} {
		t.Run(what, func(t *testing.T) {
			db := open(t, testdb.MySQL(t))
			for _, id := range []string{"a", "b", "c", "d"} {
				requireFree(t, db, id)
			}
			before := acquire(t, db, "job")
			require.NoError(t, before.Release())
			require.NoError(t, db.Exec(`DELETE FROM db_mutexes`).Error)
			require.NoError(t, db.Exec(what).Error)
			require.Greater(t, acquire(t, db, "job").Token(), before.Token())
		})
	}
}

func TestTokensGrowAcrossRestarts(t *testing.T) {
	t.Parallel()
	server := testdb.MySQL(t).NewServer(t)
	root := testdb.MySQLAt(server.DSN()).Open(t)
	require.NoError(t, root.Exec(`CREATE DATABASE locks`).Error)
	config, err := driver.ParseDSN(server.DSN())
	require.NoError(t, err)
	config.DBName = "locks"
	db := testdb.MySQLAt(config.FormatDSN()).Mutexes(t, dbmutex.DefaultSettings())
	for _, mode := range []string{"fast", "immediate"} {
		before := acquire(t, db, "job")
		require.NoError(t, before.Release())
		require.NoError(t, db.Exec(`DELETE FROM db_mutexes`).Error)
		server.Stop(t, mode)
		server.Start(t)
		require.Eventually(t, func() bool {
			lease, err := db.Mutex("job").Acquire()
			if err != nil {
				return false
			}
			require.Greater(t, lease.Token(), before.Token(), mode)
			return true
		}, time.Minute, 10*time.Millisecond)
		require.NoError(t, db.Exec(`DELETE FROM db_mutexes`).Error)
	}
}

func TestAnIDOfTheTableThatIsTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	for _, next := range []string{"549755813888", "1099511627776", "1099511627777"} { // 2^39, 2^40, 2^40 + 1
		t.Run(next, func(t *testing.T) {
			db := open(t, testdb.MySQL(t))
			require.NoError(t, db.Exec(`ALTER TABLE db_mutexes AUTO_INCREMENT = `+next).Error)
			var tokens []int64
			for range 3 {
				lease, err := db.Mutex("job").Acquire()
				if err != nil {
					t.Log(err)
					return
				}
				tokens = append(tokens, lease.Token())
				require.NoError(t, lease.Release())
			}
			require.IsIncreasing(t, tokens)
			require.Positive(t, tokens[0])
		})
	}
}

func TestATableInAnotherDatabase(t *testing.T) {
	t.Parallel()
	d, e := testdb.MySQL(t), testdb.MySQL(t)
	config, err := driver.ParseDSN(e.DSN)
	require.NoError(t, err)
	naming := &gorm.Config{NamingStrategy: schema.NamingStrategy{TablePrefix: config.DBName + "."}}
	db := open(t, d, naming)
	exercise(t, db)
	other := e.Registered(t, dbmutex.DefaultSettings())
	acquire(t, db, "job")
	requireHeld(t, other, "job")
	require.NoError(t, db.Migrate())
	requireHeld(t, other, "job")
}

// Tables that inspect lets pass must work.
func TestTablesThatAreLetPassWork(t *testing.T) {
	t.Parallel()
	for _, alter := range []string{
		`MODIFY lease_id binary(64) NOT NULL`, `MODIFY lease_id char(64) NOT NULL`, `MODIFY lease_id varbinary(64) NOT NULL`,
		`MODIFY holder varchar(20) CHARACTER SET utf8mb4 NOT NULL`, `MODIFY holder varbinary(10) NOT NULL`,
		`MODIFY holder tinytext CHARACTER SET utf8mb4 NOT NULL`, `MODIFY holder blob NOT NULL`,
		`MODIFY id bigint unsigned AUTO_INCREMENT`, `MODIFY id int AUTO_INCREMENT`,
		`MODIFY token bigint unsigned NOT NULL DEFAULT 0`,
		`MODIFY lock_id varbinary(3000) NOT NULL`, `MODIFY token bigint NULL`, `MODIFY lease_id varchar(64) NULL`,
		`MODIFY lease_id varchar(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL`,
	} {
		t.Run(alter, func(t *testing.T) {
			d := testdb.MySQL(t)
			require.NoError(t, open(t, d).Exec(`ALTER TABLE db_mutexes `+alter).Error)
			db := d.Registered(t, dbmutex.DefaultSettings())
			if err := db.Mutex("job").Do(nothing); err != nil {
				require.ErrorContains(t, err, "cannot be used")
				return
			}
			exercise(t, db)
			lease := acquire(t, db, "job")
			require.NoError(t, db.Gorm.Transaction(lease.ReleaseIn))
			require.NoError(t, lease.Release())
			requireFree(t, db, "job")
		})
	}
}

func TestAnInvisibleIndexIsNone(t *testing.T) {
	t.Parallel()
	d := testdb.MySQL(t)
	db := open(t, d)
	if db.Exec(`ALTER TABLE db_mutexes ALTER INDEX idx_db_mutexes_lock_id INVISIBLE`).Error != nil {
		require.NoError(t, db.Exec(`ALTER TABLE db_mutexes ALTER INDEX idx_db_mutexes_lock_id IGNORED`).Error)
	}
	require.Error(t, d.Registered(t, dbmutex.DefaultSettings()).Mutex("job").Do(nothing))
}
