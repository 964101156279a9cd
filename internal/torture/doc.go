// Package torture is a program that tries to make dbmutex break a promise, and a judge of what its clients saw:
//
//	go test -run TestTorture -timeout 0 -v -args -duration=10m -seed=1
//
// The duration is for each database. Without flags it runs for a few seconds, from a seed that it prints.
//
// It runs rounds. In each, several processes with several clients use a few mutexes and semaphores in every way that there
// is, and come for the ticks of a schedule by Once.Do and Once.Transaction, also for ticks of a while ago. Meanwhile workers
// are killed or stopped for a while. Contexts end and work panics. Some workers have a single connection. Besides:
//   - On a server answers, requests and connections are lost, the network freezes, and the server crashes. Some requests are
//     late: their client is told that its connection is cut, and the server gets them up to three seconds after that.
//   - On PostgreSQL sessions are terminated, or stopped for a while.
//   - On MariaDB sessions and statements are killed, and the server is stopped for a while. The rows of free mutexes grow
//     old, so that they are removed. The workers' DSNs differ, and some workers' driver is wrapped.
//   - On SQLite, under one of two drivers, others lock the file.
//   - In every second round, or so, the parent prunes all the time: it removes what has run out.
//   - In a few rounds the database is away for longer than a release is tried in the foreground: the server is stopped, the
//     network of a worker refuses, or the file is locked, for 6 to 9 seconds.
//
// Every client writes down each operation when it begins and when it has ended, on a clock that all share, and the parent
// adds what it reads in the lock's table. At the round's end nothing runs any more, so that nothing that was left open can
// still have an effect, and the parent has each mutex once more. Before that the server gets all that is late.
//
// # What is judged
//
// For each mutex there must be an order of the operations, each with its effect at one moment between its call and its
// return, that a lock with expiry allows (https://github.com/anishathalye/porcupine finds it). So nobody else may get
// the mutex while a lease is held, nor before the moment that Lease.ExpiresAt told its holder; a renewal, a guard or a
// release may succeed only for the lease that holds the mutex, and may report a loss only if there was one; nobody
// may be told of a holder that is none; and a MinHold is kept. An operation that failed, or whose process was killed,
// may or may not have had its effect, from its call on and until the end of the round: a release that failed goes on in the
// background, and a request may be late.
//
// Free stays free: once Holder has called the mutex free, a lease of before may not be renewed, and nobody may be told that
// it is the holder. A guard, a commit or a release may still find its row, if it only ran out.
//
// Each slot of a semaphore is judged as a mutex. An acquire that got a slot may have had an effect on the others before, and
// one without an answer may have one on any. By themselves, without regard to slots, the leases that a semaphore certainly
// had at once are counted, and nobody may be refused while too few leases can have been held.
//
// Of a tick one run may be recorded, and that has its token. No two runs may overlap, unless one was told that its lease was
// lost, and none may begin, nor anybody be told that another is at it, after somebody heard that it is done. A transaction's
// effect must be there if its run is recorded, and else not. In the end the parent comes for every tick. Package witness
// judges that; the tests of internal/faults do it with many more processes that die, and no faults of the database's.
//
// Work that ended after its lease's deadline must have been told so, and no other work: as run out if its row was still
// there, as lost if it was not. A transaction that committed is not late.
//
// Fencing tokens must be unique and grow. The transactions of a mutex raise a counter by what they read, without any
// lock but the mutex: those that said they had committed must be there, those that said they had not must not, and the
// counter must be their number, or two have overlapped. A worker that ends must leave no goroutine and no connection in
// use, and the last lease no row; SQLite's file must be whole. A lease without a TTL that was released may be there again,
// as a request was late, but not for longer than a minute.
//
// Every worker has an observer (dbmutex.Observer), which writes down what it is told. Of a worker that was not killed each
// acquire must have been told with its outcome and its token, each lease once when it began and, if it was released, once
// when it ended, and renewals unless they were dropped.
//
// # What is not
//
// The seed determines the choices of the program, but not how processes run, so no run can be repeated. Fairness and
// speed are not judged, nor whether a try waits for somebody's transaction. Nor is the holder whose name a waiter gets, as
// that one may have gone before the wait began. A renewal without an answer is taken for one without effect. Clocks are not
// set: a round in which the machine's was is not judged. Nor is anything on a server that loses what it said was on its
// disk. So MariaDB always flushes its log (innodb_flush_log_at_trx_commit=1): there an acquire cannot ask for that by
// itself, as it does on PostgreSQL.
package torture
