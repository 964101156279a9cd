package testdb_test

import (
	"bytes"
	"context"
	"log"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

type row struct{ ID int }

func TestDatabasesAreSeparate(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		a, b := d.Open(t), d.Another(t).Open(t)

		require.NoError(t, a.AutoMigrate(&row{}))
		require.NoError(t, a.Create(&row{ID: 1}).Error)

		assert.Equal(t, d.Name, a.Name())
		assert.True(t, a.Migrator().HasTable(&row{}))
		assert.False(t, b.Migrator().HasTable(&row{}))
	})
}

func TestAtIsTheSameDatabase(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		require.NoError(t, d.Open(t).AutoMigrate(&row{}))

		same := testdb.At(d.Name, d.DSN)

		assert.Equal(t, d, same)
		assert.True(t, same.Open(t).Migrator().HasTable(&row{}))
	})
}

func TestDatabaseEndsWithItsTest(t *testing.T) {
	var dsn string
	t.Run("made", func(t *testing.T) {
		d := testdb.Postgres(t)
		dsn = d.DSN
		require.NoError(t, d.Open(t).AutoMigrate(&row{}))
	})
	if dsn == "" {
		t.Skip("no PostgreSQL")
	}
	var schemas []string
	db := testdb.PostgresAt(dsn).Open(t)
	require.NoError(t, db.Raw("SELECT unnest(current_schemas(false))").Scan(&schemas).Error)
	assert.Empty(t, schemas)
}

func TestSQLiteIsInWALMode(t *testing.T) {
	var mode string
	require.NoError(t, testdb.SQLite(t).Open(t).Raw("PRAGMA journal_mode").Scan(&mode).Error)
	assert.Equal(t, "wal", mode)
}

func TestOpenLogsOnlyToAGivenLogger(t *testing.T) {
	d := testdb.SQLite(t)
	assert.Equal(t, logger.Discard, d.Open(t).Logger)
	assert.Equal(t, logger.Discard, d.Open(t, &gorm.Config{PrepareStmt: true}).Logger)

	var out bytes.Buffer
	own := logger.New(log.New(&out, "", 0), logger.Config{LogLevel: logger.Info, SlowThreshold: time.Hour})
	db := d.Open(t, &gorm.Config{Logger: own})
	db.Logger.Info(context.Background(), "hello")
	assert.Contains(t, out.String(), "hello")
}

func TestOpenClosesItsPool(t *testing.T) {
	testdb.Each(t, func(t *testing.T, d *testdb.Database) {
		var db *gorm.DB
		t.Run("opened", func(t *testing.T) { db = d.Open(t) })
		assert.ErrorContains(t, db.Exec("SELECT 1").Error, "database is closed")
	})
}

func TestSQLiteDialectorCanBeReplaced(t *testing.T) {
	original := testdb.SQLiteDialector
	defer func() { testdb.SQLiteDialector = original }()
	var asked []string
	testdb.SQLiteDialector = func(dsn string) gorm.Dialector {
		asked = append(asked, dsn)
		return original(dsn)
	}
	d := testdb.SQLite(t)
	d.Open(t)
	assert.Equal(t, []string{d.DSN, d.DSN}, asked)
}
