// Package examples is the folder of programs that show dbmutex at work, each one file:
//
//   - quickstart: what dbmutex promises
//   - minimal: the README's first program, on SQLite (with cgo)
//   - leader: leader election with renewal, and what a crash and a stop do
//   - semaphore: 5 processes make 20 calls, at most 4 at once
//   - once: each tick runs once over three processes, one of which is killed (Once)
//   - payments: money is moved once, though leases run out (Lease.ReleaseIn)
//   - fencing: a store outside of the database that refuses a late holder (Lease.Token)
//   - tasks: asynq's tasks of one type do not overlap (contrib/asynq)
//   - schedule: of two gocron schedulers, one runs the job at each tick (contrib/gocron)
//   - dashboard: who holds what, in a browser, behind a login (contrib/dashboard)
//
// Each but minimal takes a -dsn: postgres://user@localhost/database, mysql://user:password@localhost/database (MySQL or
// MariaDB), or the path of a SQLite file. Without it they use a temporary SQLite file, in pure Go.
//
// The folder is a module of its own, so that dbmutex does not depend on what the programs need.
package examples
