// Package examples is the folder of programs that show dbmutex at work, each one file:
//
//   - quickstart: what dbmutex promises, on SQLite (in pure Go) or PostgreSQL
//   - minimal: the README's first program, on SQLite (with cgo)
//   - leader: leader election with renewal, and what a crash and a stop do
//   - payments: money is moved once, though leases run out (Lease.ReleaseIn)
//   - fencing: a store outside of the database that refuses a late holder (Lease.Token)
//   - tasks: asynq's tasks of one type do not overlap (contrib/asynq)
//   - schedule: two schedulers of gocron run a job once each time (contrib/gocron)
//
// It is a module of its own, so that nothing they need is a dependency of dbmutex.
package examples
