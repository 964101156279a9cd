// Package bench measures dbmutex and its peers, side by side in one run:
//
//	go test -count=1 -timeout 0 -v -run TestBench -args -full
//
// It starts a PostgreSQL server with its defaults, and a MariaDB server with a binary log, as a primary has. If redis-server
// is installed, it also starts two Redis servers: one waits for the disk after every write, the other keeps all in memory.
// They listen on loopback, and end with the run. The benchmark prints tables, and writes RESULTS.md and results.svg to this
// folder. -quick is a try-out of a minute that writes nothing, -scenarios=cycle,try runs some only. The rest of the flags
// is in bench_test.go. DBMUTEX_TEST_MYSQLBIN is the folder of another MariaDB, or of MySQL.
//
// Every scenario runs blocks of all contenders in turn, in an order that rotates, so that noise hits all alike. A ratio
// is the median of the ratios of the blocks of one round. The measure is the bare pair: an upsert and a DELETE through
// pgxpool, prepared, with durable commits; on MySQL an INSERT and a DELETE through database/sql, prepared.
//
// Most scenarios repeat an operation a number of times. A crowd, of 1 to 256 goroutines with a lock each, runs for a time
// instead, and its measure is the rate:
//
//	make bench BENCHFLAGS='-scenarios=crowd -out=/tmp/crowd'
//
// All have the same pool size, TTL and server, and a schema or a database of Redis of their own. What differs is said in
// the tables: what a crash of the server leaves of a lock, and how each waits.
//
// The parts are ordinary benchmarks, for benchstat:
//
//	go test -run '^$' -bench . -count 10
package bench
