package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"time"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/schema"

	"github.com/gorm-dbmutex/dbmutex"
	_ "github.com/gorm-dbmutex/dbmutex/pgnotify" // waiters hear of releases
)

// closeLimit is how long the program waits at its end for the database to take leave.
const closeLimit = time.Second

var (
	postgresForm = regexp.MustCompile(`^postgres(ql)?://|^\w+ *=`)

	errNoDSN = errors.New("no database: set DBMUTEX_DSN, such as postgres://user@host/database, mysql://user@host/database " +
		"or sqlite:PATH")
	errUnknownDSN = errors.New("the database must begin with postgres://, mysql://, sqlite: or file:, or be libpq's " +
		"key=value pairs")
)

// dialector is GORM's for a DSN. Only if it may make a file does it make the one of SQLite that is missing.
func dialector(dsn string, mayMake bool) (gorm.Dialector, error) {
	switch {
	case dsn == "":
		return nil, errNoDSN
	case strings.HasPrefix(dsn, mysqlScheme):
		return mysqlDialector(dsn)
	case strings.HasPrefix(dsn, sqliteScheme), strings.HasPrefix(dsn, sqliteURI):
		return sqliteDialector(dsn, mayMake)
	case postgresForm.MatchString(dsn):
		return postgres.Open(dsn), nil
	}
	return nil, errUnknownDSN
}

// naming gives the two tables their names.
type naming struct {
	schema.NamingStrategy
	table string
}

// TableName is the name of a model's table.
func (n naming) TableName(model string) string {
	if model == reflect.TypeFor[dbmutex.DBOnce]().Name() {
		return onceTable(n.table)
	}
	return n.table
}

// onceTable is the table of Once that goes with one of mutexes, as GORM names them: db_onces with db_mutexes, and
// app_db_once with app_db_mutex.
func onceTable(mutexes string) string {
	if name, plural := strings.CutSuffix(mutexes, "mutexes"); plural {
		return name + "onces"
	}
	if name, singular := strings.CutSuffix(mutexes, "mutex"); singular {
		return name + "once"
	}
	return mutexes + "_onces"
}

// open connects to the database, within the timeout.
func (g *global) open(ctx context.Context, mayMake bool) (*dbmutex.DB, error) {
	d, err := dialector(g.dsn, mayMake)
	if err != nil {
		return nil, err
	}
	config := &gorm.Config{
		Logger:         logger.Discard, // what fails here is returned
		NamingStrategy: naming{schema.NamingStrategy{IdentifierMaxLength: 64}, g.table},
	}
	type opened struct {
		db  *gorm.DB
		err error
	}
	done := make(chan opened, 1)
	go func() { // GORM takes no context. Where the database hangs this ends with the program.
		db, err := gorm.Open(d, config)
		done <- opened{db, err}
	}()
	select {
	case o := <-done:
		if o.err != nil {
			return nil, fmt.Errorf("connect to the database: %w", o.err)
		}
		o.db.Logger = gormLogger{g.log}
		return dbmutex.Wrap(o.db), o.db.Use(dbmutex.New(dbmutex.DefaultSettings()))
	case <-time.After(g.timeout):
		return nil, fmt.Errorf("connect to the database: no answer within %v", g.timeout)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// closeSoon takes leave of the database, but does not wait for one that hangs.
func closeSoon(db *dbmutex.DB) {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		if pool, err := db.DB(); err == nil {
			_ = pool.Close()
		}
	}()
	select {
	case <-closed:
	case <-time.After(closeLimit):
	}
}
