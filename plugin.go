package dbmutex

import (
	"cmp"
	"database/sql"
	"fmt"
	"runtime"
	"sync"
	"weak"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex/internal/locktable"
)

// PluginName is the name under which GORM knows the plugin.
const PluginName = "dbmutex"

// Plugin carries an application's settings to its mutexes. Register it with gorm.DB.Use.
type Plugin struct {
	settings Settings

	mu     sync.RWMutex // guards what follows
	tables map[tableKey]locktable.Table
}

// tableKey is a table in a database. The same plugin may serve several, and outlive them.
type tableKey struct {
	pool weak.Pointer[sql.DB]
	name string // not quoted
	once bool
}

// New makes the plugin. gorm.DB.Use then returns ErrInvalidSettings if a setting is not allowed.
func New(s Settings) *Plugin {
	s = s.clone()
	s.Holder = cmp.Or(s.Holder, thisProcess) // options may add to it
	return &Plugin{settings: s}
}

// Name returns PluginName.
func (p *Plugin) Name() string { return PluginName }

// Initialize checks the settings. It runs no SQL and keeps no handle, as GORM's resolvers call it for every replica. It also
// tells GORM the types of the columns of DBMutex and DBOnce that the database needs.
func (p *Plugin) Initialize(db *gorm.DB) error {
	if err := p.settings.validate(); err != nil {
		return err
	}
	if err := locktable.Shape(db, lockModel); err != nil {
		return err
	}
	return locktable.Shape(db, onceModel)
}

var (
	lockModel = &DBMutex{}
	onceModel = &DBOnce{}
)

// parses are statements for Plugin.table, which every call to DB.Mutex needs one of. They have a Table so that
// gorm.Statement.Parse need not take apart the schema's.
var parses = sync.Pool{New: func() any { return &gorm.Statement{Table: "any"} }}

// table finds the lock's table, or that of runs and records, under the name that it has for the handle. For a pool that
// hides its database, which a program may make anew for every request, it remembers nothing.
func (p *Plugin) table(pool any, db *gorm.DB, once bool) (name string, t locktable.Table, err error) {
	stmt := parses.Get().(*gorm.Statement)
	defer func() {
		stmt.DB = nil
		parses.Put(stmt)
	}()
	stmt.DB = db
	if err := stmt.Parse(lockModel); err != nil {
		return "", t, fmt.Errorf("dbmutex: %w", err)
	}
	name = stmt.Schema.Table
	if once {
		if err := stmt.Parse(onceModel); err != nil {
			return "", t, fmt.Errorf("dbmutex: %w", err)
		}
		if stmt.Schema.Table == name {
			return "", t, fmt.Errorf("%w: the NamingStrategy has one table, %q, for DBMutex and DBOnce", ErrInvalidSettings, name)
		}
		name = stmt.Schema.Table
	}
	known, _ := pool.(*sql.DB)
	key := tableKey{weak.Make(known), name, once}
	p.mu.RLock()
	t, found := p.tables[key]
	p.mu.RUnlock()
	if found {
		return name, t, nil
	}
	newTable := locktable.New
	if once {
		newTable = locktable.NewOnce
	}
	if t, err = newTable(db.Name(), name, stmt.Quote(name)); err != nil {
		return "", t, fmt.Errorf("%w: %w", ErrInvalidSettings, err)
	}
	if known == nil {
		return name, t, nil
	}
	return name, p.remember(known, key, t), nil
}

// remember keeps a table for as long as its pool. It returns the one that is kept.
func (p *Plugin) remember(pool *sql.DB, key tableKey, t locktable.Table) locktable.Table {
	p.mu.Lock()
	defer p.mu.Unlock()
	if other, found := p.tables[key]; found {
		return other
	}
	if p.tables == nil {
		p.tables = map[tableKey]locktable.Table{}
	}
	p.tables[key] = t
	runtime.AddCleanup(pool, p.forget, key)
	return t
}

func (p *Plugin) forget(key tableKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.tables, key)
}
