package dbmutex

import "time"

// MaxLockIDLength is how many characters (not bytes) a lock id may have. A longer one is refused, never cut.
const MaxLockIDLength = 256

// DBMutex is the table of the leases that are held: one row a mutex, and none once it is released. Make it with
// DB.Migrate, or with GORM's AutoMigrate once the plugin is registered (on PostgreSQL and MySQL it chooses types of
// columns). To see what is held, use DB.Leases; write it only through this package. The table's name follows the handle's
// NamingStrategy ("db_mutexes" by default), the columns' names do not.
//
// On MySQL and MariaDB the row of a mutex that is free may stay, without a LeaseID. DB.Prune removes it, and so do acquires
// of new ids after an hour. The table has times in UTC there. DB.Leases reads them right, whatever the DSN says; a query of
// your own does so only with loc=UTC, the driver's default.
//
// A row that has run out, of a holder that crashed or of a MinHold, stays until the mutex is used next, or until DB.Prune.
// To delete rows by a clock other than the database's is not safe, nor to compare their times with one.
//
// With pgnotify a row may also keep the mutex for a waiter of another process, for a moment: Holder names the waiter, and
// LeaseID is that of no lease.
//
// Ids are compared byte for byte: "job", "JOB" and "job " are three mutexes.
type DBMutex struct {
	// ID comes from the table's sequence. It may change with every take-over and is not the fencing token.
	ID int64 `gorm:"column:id;primaryKey;autoIncrement"`
	// LockID names the mutex. The row of a semaphore's slot has the semaphore's id, the character U+001F and the slot's number;
	// a LeaseInfo has them apart.
	LockID string `gorm:"column:lock_id;size:256;not null;uniqueIndex"`
	// CreationTime is when this lease was acquired, by the database's clock.
	CreationTime time.Time `gorm:"column:creation_time;not null"`
	// ExpiresAt is when the lease ends unless it is renewed, by the database's clock; nil = never.
	ExpiresAt *time.Time `gorm:"column:expires_at"`
	// Holder is for people: host/pid, or what Settings.Holder says.
	Holder string `gorm:"column:holder;not null"`
	// LeaseID is random, one per acquisition: the proof of ownership in every statement.
	LeaseID string `gorm:"column:lease_id;size:64;not null"`
	// Token is where MySQL and MariaDB keep the fencing token, which is ID<<24 for the first lease of a row, while Token is 0.
	// The others draw the token from the id's sequence, and Token is always 0.
	Token int64 `gorm:"column:token;not null;default:0"`
}

// DBOnce is the table of Once: one row an id, which is that of a run, as in DBMutex, or the record of a success. Make it
// with DB.Migrate, or with AutoMigrate(&dbmutex.DBMutex{}, &dbmutex.DBOnce{}) once the plugin is registered. Who uses no
// Once needs none. To see what is done, use Once.Done and DB.Leases with LeaseQuery.Once; write it only through this
// package. The table's name follows the handle's NamingStrategy ("db_onces" by default), the columns' names do not.
//
// Records that are not to be kept any more are removed now and then, up to 100 after one of 32 successes, and so are runs
// that ran out an hour ago, whose processes have crashed. DB.Prune removes all of them.
//
// What DBMutex says of free rows, of times, and of ids goes for it, too.
type DBOnce struct {
	// ID comes from the table's sequence. It may change with every take-over and with the success.
	ID int64 `gorm:"column:id;primaryKey;autoIncrement"`
	// LockID is the id of the Once.
	LockID string `gorm:"column:lock_id;size:256;not null;uniqueIndex"`
	// CreationTime is when the run began, by the database's clock.
	CreationTime time.Time `gorm:"column:creation_time;not null"`
	// ExpiresAt is until when the record is kept, or when the run's lease ends unless it is renewed, by the database's clock.
	ExpiresAt *time.Time `gorm:"column:expires_at;index"`
	// Holder is who has run, or runs, the work.
	Holder string `gorm:"column:holder;not null"`
	// LeaseID is "done" for a record, and as in DBMutex for a run.
	LeaseID string `gorm:"column:lease_id;size:64;not null"`
	// Token is the fencing token of the run that is recorded. For a run it is as in DBMutex.
	Token int64 `gorm:"column:token;not null;default:0"`
	// Result is what OnceValue has recorded, as JSON; nil if it was Once.Do or Once.Transaction. Of a run it means nothing: it
	// may be that of a record before.
	Result []byte `gorm:"column:result;type:text"`
}
