// Package gocronmutex makes github.com/go-co-op/gocron schedulers on several machines share their jobs, by mutexes in the
// database. It has gocron's two ways:
//
//   - A Locker locks each run of a job, so that one machine runs it each time. Any machine may be the one.
//   - An Elector elects one machine, which runs all the jobs.
//
// A scheduler that has an Elector ignores its Locker, and those of its jobs. The jobs that Locker.NewJob makes hold their
// mutex nevertheless.
//
// # What is not guaranteed
//
// Neither stops work by force. A run may overlap with another if it goes on after its lease, or the leadership of its
// machine, has ended. The context of a job from Locker.NewJob ends with its lease, and the job's error says whether the
// lease was lost, so that another run may have overlapped, or only ran out. dbmutex.Lease.Guard and Lease.Token keep a late
// run from doing harm.
//
// With renewal, a job that hangs keeps its mutex for as long as its lease is renewed. A Locker accepts dbmutex.WithoutTTL,
// but a crash then blocks the job until dbmutex.Mutex.ForceRelease. Jobs' names and Electors' ids share one namespace with
// all the other mutexes of the table.
//
// gocron does not tell a Locker which tick a run belongs to. A Locker only sees when runs begin: see NewLocker and
// NewTickLocker. If the machine that has the mutex or the leadership fails during a tick, the tick is lost, as gocron does
// not run it again. It is not lost where other machines have a Locker from NewTickLocker with dbmutex.WithWait.
package gocronmutex

import (
	"slices"

	"github.com/gorm-dbmutex/dbmutex"
)

// check runs a SELECT to see that the mutex works, and returns the settings that opts come to.
func check(db *dbmutex.DB, id string, opts []dbmutex.Option) (settings dbmutex.Settings, err error) {
	_, err = db.Mutex(id, append(slices.Clone(opts), func(s *dbmutex.Settings) { settings = *s })...).Holder()
	return settings, err
}
