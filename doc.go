// Package dbmutex is a mutex for programs that run on several machines and keep their data in a database through GORM:
// a named lock in a table beside the data, on PostgreSQL (13 or newer), MySQL (8.0 or newer), MariaDB (10.6 or newer)
// or SQLite (3.36 or newer).
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
// DB.Once names work that is to succeed once for all processes, with a record of that in a table of its own (DBOnce), and
// Tick the ticks of a schedule.
//
// # What is not guaranteed
//
// A lease that runs out does not stop the work. Do's context ends; work that does not look at it goes on, perhaps beside
// the next holder's. Do then returns ErrTimeout. It says whether the lease was lost, so that another holder may have
// overlapped, or only ran out. For effects inside the database use Mutex.Transaction or Lease.Guard: they commit only while
// the lease is held. For effects outside of it let the other side refuse old fencing tokens (Lease.Token; see Martin
// Kleppmann, "How to do distributed locking", 2016).
//
// A SQLite file belongs to one machine, whose clock is the database's. With synchronous=NORMAL or OFF a power cut can undo
// the last leases, and their fencing tokens with them.
//
// The context ends by this process's monotonic clock, which stands still while the machine is suspended. The database's
// clock decides when a lease has run out: a step of that clock moves the end of every lease. An asynchronous standby that
// is promoted may have lost leases that were acknowledged. A mutex is not reentrant.
//
// Once.Do and OnceValue run work again whose success was not recorded, as after a crash. What Once.Transaction commits comes
// exactly once while its record is kept.
//
// # What is guaranteed
//
// Two leases of one mutex never overlap in the database, whatever the clocks of the application's machines say. The
// holder's context ends no later than its lease runs out. Do says that its lease ended before the work did. Fencing tokens
// grow with every lease. No connection is kept while a lease is held.
package dbmutex
