package dbmutex

import (
	"context"

	"gorm.io/gorm"
)

// Gorm is gorm.DB under the name of DB's embedded field, so that the method DB() stays visible.
type Gorm = gorm.DB

// DB is a GORM handle that has mutexes: everything of *gorm.DB, and Mutex, Once, Migrate and others.
type DB struct{ *Gorm }

// Wrap gives a GORM handle the methods of DB. It may be called for any handle, at any time. It runs nothing.
func Wrap(db *gorm.DB) *DB { return &DB{db} }

// WithContext is gorm.DB.WithContext. The context is that of the mutexes made from the handle: when it is done, waiting
// for a mutex ends, and the work's context ends with it. Releases run nevertheless (see Mutex.Acquire for how soon).
func (db *DB) WithContext(ctx context.Context) *DB { return Wrap(db.Gorm.WithContext(ctx)) }

// Session is gorm.DB.Session.
func (db *DB) Session(config *gorm.Session) *DB { return Wrap(db.Gorm.Session(config)) }

// Debug is gorm.DB.Debug. It shows the statements of mutexes, too.
func (db *DB) Debug() *DB { return Wrap(db.Gorm.Debug()) }
