// Package dbmutex is a mutex for programs that run on several machines and keep their data in a database through GORM:
// a named lock in a table beside the data, on PostgreSQL (13 or newer) or SQLite (3.35 or newer).
//
//	gdb, err := gorm.Open(sqlite.Open("app.db"), &gorm.Config{})
//	err = gdb.Use(dbmutex.New(dbmutex.DefaultSettings()))
//	err = gdb.AutoMigrate(&dbmutex.DBMutex{})
//	db := dbmutex.Wrap(gdb)
//
//	err = db.Mutex("nightly-report").Do(func(ctx context.Context) error {
//		return buildReport(ctx)
//	})
//
// # What is not guaranteed
//
// A lease that runs out does not stop the work: Do's context ends, and work that does not look at it goes on, perhaps beside
// the next holder's. Do then returns ErrTimeout, and says whether the lease was lost, so that another holder may have
// overlapped, or only ran out. For effects inside the database use Mutex.Transaction or Lease.Guard, which commit only while
// the lease is held. For effects outside of it have the other side refuse stale fencing tokens (Lease.Token; see Martin
// Kleppmann, "How to do distributed locking", 2016).
//
// A SQLite file belongs to one machine, whose clock is the database's. With synchronous=NORMAL or OFF a power cut can undo
// the last leases, and fencing tokens with them.
//
// The context ends by this process's monotonic clock, which stands still while the machine is suspended. Expiry is
// decided by the database's clock: a step of it moves the end of every lease. An asynchronous standby that is promoted
// may have lost leases that were acknowledged. A mutex is not reentrant.
//
// # What is guaranteed
//
// Two leases of one mutex never overlap in the database, whatever the clocks of the application's machines say. The
// holder's context ends no later than its lease runs out. Do says when its lease ended before the work did. Fencing tokens
// grow with every lease. No connection is kept while a lease is held.
package dbmutex

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"gorm.io/gorm"
)

// PluginName is the name under which GORM knows the plugin.
const PluginName = "dbmutex"

// Plugin carries an application's settings to its mutexes. Register it with gorm.DB.Use.
type Plugin struct {
	settings Settings

	mu       sync.RWMutex // guards what follows
	dialects map[tableKey]dialect
}

// tableKey is a table in a database; the same plugin may serve several.
type tableKey struct {
	pool any
	name string // not quoted
}

// New makes the plugin. Settings that cannot be make gorm.DB.Use return ErrInvalidSettings.
func New(s Settings) *Plugin {
	s = s.clone()
	s.Holder = cmp.Or(s.Holder, thisProcess) // options may add to it
	return &Plugin{settings: s}
}

// Name returns PluginName.
func (p *Plugin) Name() string { return PluginName }

// Initialize checks the settings. It runs no SQL and keeps no handle, as GORM's resolvers call it for every replica.
func (p *Plugin) Initialize(*gorm.DB) error { return p.settings.validate() }

// lookUps are statements for Plugin.table, which every call to DB.Mutex needs one of. They have a Table so that
// gorm.Statement.Parse need not take apart the schema's.
var lookUps = sync.Pool{New: func() any { return &gorm.Statement{Table: "any"} }}

// table finds the lock's table, as the handle names it, and its dialect.
func (p *Plugin) table(pool any, db *gorm.DB) (name string, d dialect, err error) {
	stmt := lookUps.Get().(*gorm.Statement)
	defer func() {
		stmt.DB = nil
		lookUps.Put(stmt)
	}()
	stmt.DB = db
	if err := stmt.Parse(lockModel); err != nil {
		return "", nil, fmt.Errorf("dbmutex: %w", err)
	}
	key := tableKey{pool, stmt.Schema.Table}
	p.mu.RLock()
	d, known := p.dialects[key]
	p.mu.RUnlock()
	if known {
		return key.name, d, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if d, known = p.dialects[key]; !known {
		if d, err = newDialect(db.Name(), stmt.Quote(key.name)); err != nil {
			return "", nil, err
		}
		if p.dialects == nil {
			p.dialects = map[tableKey]dialect{}
		}
		p.dialects[key] = d
	}
	return key.name, d, nil
}

var lockModel = &DBMutex{}

// Gorm is gorm.DB under the name of DB's embedded field, so that the method DB() stays visible.
type Gorm = gorm.DB

// DB is a GORM handle that has mutexes: everything of *gorm.DB, and Mutex and Migrate.
type DB struct{ *Gorm }

// Wrap gives a GORM handle the methods of DB. It may be called for any handle, at any time, at no cost.
func Wrap(db *gorm.DB) *DB { return &DB{db} }

// WithContext is gorm.DB.WithContext. The context is that of the mutexes made from the handle: when it is done, waiting
// for a mutex ends, and the work's context with it; releases run all the same (see Mutex.Acquire for how soon).
func (db *DB) WithContext(ctx context.Context) *DB { return Wrap(db.Gorm.WithContext(ctx)) }

// Session is gorm.DB.Session.
func (db *DB) Session(config *gorm.Session) *DB { return Wrap(db.Gorm.Session(config)) }

// Debug is gorm.DB.Debug; it shows the statements of mutexes, too.
func (db *DB) Debug() *DB { return Wrap(db.Gorm.Debug()) }

// migrationID is the mutex that Migrate holds.
const migrationID = "dbmutex.Migrate"

// Migrate runs AutoMigrate of DBMutex and then of models, and may do so from every replica of a program at once, where
// GORM's AutoMigrate fails in some of them (https://github.com/go-gorm/gorm/issues/6618). It migrates the models under a
// mutex of its own, with renewal and outside of any transaction, and waits its turn until the handle's context is done.
// That mutex is "dbmutex.Migrate", should an operator have to force its release. It puts the lock's table where mutexes
// look for it, in the main pool, which AutoMigrate under dbresolver does not. On PostgreSQL it also sets vacuum_truncate=off
// for that table, unless it is set: a mutex that is taken a thousand times a second stays as quick as it was.
//
// It returns what Mutex.Do returns: AutoMigrate's error, ErrTimeout where the lease ended meanwhile, the context's
// or the database's error. A failure leaves what was migrated before it.
func (db *DB) Migrate(models ...any) error {
	m := db.Mutex(migrationID, func(s *Settings) {
		*s = Settings{Holder: s.Holder}
		WithTTL(5 * time.Minute)(s) // a replica that crashed keeps the others waiting for so long
		s.Wait, s.Renew = Forever, true
	})
	if m.err != nil {
		return m.err
	}
	if err := m.tryOnce(m.ctx, m.dialect.migrate); err != nil {
		return m.failed(m.ctx, "migrate", err)
	}
	if len(models) == 0 {
		return nil
	}
	return m.Do(func(ctx context.Context) error {
		// dbresolver would ask a replica, which may be behind, what tables there are.
		return db.Gorm.WithContext(ctx).Set("gorm:db_resolver:write", true).AutoMigrate(models...)
	})
}
