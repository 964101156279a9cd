// Quickstart shows what dbmutex does, on a real database. Several processes compete for one job. One lease only runs out,
// one is lost, and one never expires. A transaction is rolled back because its lease was lost.
//
//	go run ./examples/quickstart
//	go run ./examples/quickstart -dsn postgres://user@localhost/database
//	go run ./examples/quickstart -dsn mysql://user:password@localhost/database
//
// Without -dsn it runs on a SQLite file in a temporary folder and needs nothing but Go. Everything that it prints comes
// from the database and from the package's answers. It exits with status 1 if any of that is wrong. It removes what it
// made. Its tables have a prefix of their own.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/examples/internal/database"
)

// Payment is the data that must stay right.
type Payment struct {
	ID     int64
	Text   string
	Amount int64
}

// open is all that a program needs before it can use db.Mutex; Migrate makes the tables.
func open(ctx context.Context, d *database.Database) (*dbmutex.DB, error) {
	gdb, err := d.Open() // as gorm.Open
	if err != nil {
		return nil, err
	}
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil {
		return nil, err
	}
	return dbmutex.Wrap(gdb).WithContext(ctx), nil
}

func main() {
	dsn := flag.String("dsn", "", database.Usage)
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // so that nothing hangs
	defer cancel()
	var err error
	switch {
	case flag.NArg() == 0:
		err = story(ctx, *dsn)
	case flag.NArg() == 1 && flag.Arg(0) == "worker":
		err = worker(ctx)
	default:
		flag.Usage()
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart failed:", err)
		os.Exit(1)
	}
}

// story runs the parts on a database of their own.
func story(ctx context.Context, dsn string) (err error) {
	d, err := database.New(dsn)
	if err != nil {
		return err
	}
	db, err := open(ctx, d)
	if err != nil {
		return err
	}
	pool, err := db.DB()
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, pool.Close(), d.Remove(&Payment{}, &dbmutex.DBMutex{}, &dbmutex.DBOnce{}))
	}()

	fmt.Printf("This runs on %s.\n", db.Name())
	parts := []struct {
		title string
		run   func() error
	}{
		{"Several processes, one job", func() error { return competition(ctx, db, d) }},
		{"Leases that end before the work does", func() error { return tooShort(db) }},
		{"A lease that never expires", func() error { return neverExpires(db) }},
		{"A transaction that is rolled back because its lease was lost", func() error { return rolledBack(db) }},
	}
	for i, part := range parts {
		fmt.Printf("\n%d. %s\n", i+1, part.title)
		if err := part.run(); err != nil {
			return fmt.Errorf("part %d: %w", i+1, err)
		}
	}
	fmt.Println("\nAll of this was checked.")
	return nil
}

// check is an error unless the claim holds.
func check(holds bool, claim string) error {
	if holds {
		return nil
	}
	return fmt.Errorf("this should be so and is not: %s", claim)
}

// process is this program, started once more as a worker. The two send each other JSON values.
type process struct {
	*exec.Cmd
	stdin io.WriteCloser
	in    *json.Encoder
	out   *json.Decoder
}

// start starts a worker on the database; it ends with the context.
func start(ctx context.Context, d *database.Database) (*process, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{Cmd: exec.CommandContext(ctx, program, "worker")}
	p.Stderr = os.Stderr
	if p.stdin, err = p.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.in, p.out = json.NewEncoder(p.stdin), json.NewDecoder(stdout)
	if err := p.Start(); err != nil {
		return nil, err
	}
	return p, p.in.Encode(d)
}

// stop lets the process end, and returns what it has to say about that.
func (p *process) stop() error {
	_ = p.stdin.Close()
	return p.Wait()
}

// answer is what became of a worker's try.
type answer struct {
	Ran    bool
	Holder string    // who holds the mutex, if it is someone else
	Since  time.Time // and since when
}

// competition lets the processes go for one mutex. The process that gets it works until all others have answered. So they
// compete, however slow the machine is.
func competition(ctx context.Context, db *dbmutex.DB, d *database.Database) error {
	workers := make([]*process, 4)
	for i := range workers {
		p, err := start(ctx, d)
		if p != nil {
			defer func() { _ = p.stop() }()
		}
		if err != nil {
			return err
		}
		workers[i] = p
	}
	for _, w := range workers {
		if err := w.out.Decode(new(answer)); err != nil {
			return fmt.Errorf("process %d did not get ready: %w", w.Process.Pid, err)
		}
	}
	fmt.Printf("%d processes have made the tables, all at once, and are ready. Go.\n", len(workers))
	for _, w := range workers {
		if err := w.in.Encode("go"); err != nil {
			return err
		}
	}
	var ran, winner int
	var others []answer
	for _, w := range workers {
		var a answer
		if err := w.out.Decode(&a); err != nil {
			return fmt.Errorf("process %d did not answer: %w", w.Process.Pid, err)
		}
		if a.Ran {
			ran, winner = ran+1, w.Process.Pid
			fmt.Printf("Process %d runs nightly-report.\n", w.Process.Pid)
		} else {
			others = append(others, a)
			fmt.Printf("Process %d does not: %s holds it since %s.\n", w.Process.Pid, a.Holder, clock(a.Since))
		}
	}
	holder, err := db.Mutex("nightly-report").Holder() // the holder is at work until it is stopped
	if err != nil {
		return err
	}
	for _, w := range workers {
		if err := w.stop(); err != nil {
			return fmt.Errorf("process %d: %w", w.Process.Pid, err)
		}
	}
	free, err := db.Mutex("nightly-report").Holder()
	if err != nil {
		return err
	}
	fmt.Printf("%d of %d ran it. The work is done, and the mutex is free: %t.\n", ran, len(workers), free == nil)

	agree := holder != nil && strings.HasSuffix(holder.Holder, "/"+strconv.Itoa(winner))
	for _, a := range others {
		agree = agree && a.Holder == holder.Holder && a.Since.Equal(holder.CreationTime)
	}
	return errors.Join(
		check(ran == 1, "exactly one process runs the job"),
		check(agree, "the others, and the table, name the process that runs it"),
		check(free == nil, "the mutex is free when the work is done"))
}

// worker is what a child process does.
func worker(ctx context.Context) error {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	d := &database.Database{}
	if err := in.Decode(d); err != nil {
		return err
	}
	db, err := open(ctx, d)
	if err != nil {
		return err
	}
	if err := db.Migrate(&Payment{}); err != nil {
		return err
	}
	if err := errors.Join(out.Encode(answer{}), in.Decode(new(string))); err != nil { // ready, until told to go
		return err
	}
	err = db.Mutex("nightly-report").Do(func(context.Context) error {
		if err := out.Encode(answer{Ran: true}); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, os.Stdin) // the report is done when the parent closes stdin
		return err
	})
	var held *dbmutex.HeldError // it matches dbmutex.ErrNotAcquired
	if errors.As(err, &held) {
		return out.Encode(answer{Holder: held.Holder, Since: held.Since})
	}
	return err
}

// tooShort works for longer than two leases last. The first lease only runs out, as nobody else comes. The second is lost,
// as somebody else takes the mutex over.
func tooShort(db *dbmutex.DB) error {
	const ttl = 300 * time.Millisecond
	mutex := db.Mutex("import", dbmutex.WithTTL(ttl))
	var cause error
	var ended time.Duration
	began := time.Now()
	err := mutex.Do(func(ctx context.Context) error {
		<-ctx.Done() // work should stop here; this work goes on, which a lock cannot prevent
		cause, ended = context.Cause(ctx), time.Since(began)
		time.Sleep(200 * time.Millisecond)
		return nil
	})
	var ranOut *dbmutex.TimeoutError // it matches dbmutex.ErrTimeout
	if !errors.As(err, &ranOut) {
		return errors.Join(errors.New("Do should say that the lease has ended"), err)
	}
	fmt.Printf("A lease for %v: the work's context ended after %v. The work went on all the same, and was %v late.\n",
		ttl, ended.Round(time.Millisecond), ranOut.Late.Round(time.Millisecond))
	fmt.Printf("Nobody came: the lease only ran out. Do returned ErrTimeout, with Lost: %t. It says: %v.\n", ranOut.Lost, err)

	var slow, next *dbmutex.Lease
	err = mutex.Do(func(ctx context.Context) (err error) {
		slow, _ = dbmutex.LeaseFrom(ctx)
		<-ctx.Done()
		next, err = db.Mutex("import", dbmutex.WithHolder("the next worker"), dbmutex.WithWait(10*time.Second)).Acquire()
		return err
	})
	var lost *dbmutex.TimeoutError
	if next == nil || !errors.As(err, &lost) {
		return errors.Join(errors.New("the next worker should take the mutex over, and Do say so"), err)
	}
	fmt.Printf("The same again, and the next worker got the mutex while the work went on: token %d, after %d.\n",
		next.Token(), slow.Token())
	fmt.Printf("Somebody came: the lease was lost. Do returned ErrTimeout, with Lost: %t. It says: %v.\n", lost.Lost, err)
	return errors.Join(
		check(errors.Is(cause, dbmutex.ErrTimeout), "the work's context ends with a cause that matches ErrTimeout"),
		check(!ranOut.Lost && ranOut.Late > 0, "a lease to which nobody came is late, and not lost"),
		check(lost.Lost && lost.Late > 0, "a lease that somebody took over is lost"),
		check(next.Token() > slow.Token(), "the fencing token grows with every lease"),
		next.Release()) // nil: the lease was still the next worker's
}

// neverExpires holds a mutex until an operator frees it.
func neverExpires(db *dbmutex.DB) error {
	mutex := db.Mutex("reindex", dbmutex.WithoutTTL())
	lease, err := mutex.Acquire()
	if err != nil {
		return err
	}
	_, second := mutex.Acquire()
	var held *dbmutex.HeldError
	if !errors.As(second, &held) {
		return errors.Join(errors.New("a second Acquire should say who holds the mutex"), second)
	}
	fmt.Printf("%s holds reindex since %s. It expires: %t.\n", held.Holder, clock(held.Since), held.ExpiresAt != nil)
	if err := mutex.ForceRelease(); err != nil {
		return err
	}
	free, err := mutex.Holder()
	if err != nil {
		return err
	}
	fmt.Printf("An operator released it by force. It is free: %t.\n", free == nil)
	var lost *dbmutex.TimeoutError
	told := errors.As(lease.Release(), &lost) && lost.Lost
	fmt.Printf("Its holder learns from Release that the lease was lost: %t.\n", told)
	return errors.Join(
		check(held.ExpiresAt == nil, "a lease without a TTL does not expire"),
		check(free == nil, "ForceRelease frees the mutex"),
		check(told, "the holder's Release says that the lease was lost"))
}

// rolledBack loses the lease of a transaction before its end, and then runs the same transaction undisturbed.
func rolledBack(db *dbmutex.DB) error {
	if err := db.Create(&Payment{Text: "opening balance", Amount: 100}).Error; err != nil {
		return err
	}
	before, err := total(db.Gorm)
	if err != nil {
		return err
	}
	var during int64
	book := func(tx *gorm.DB) (err error) {
		if err = tx.Create(&Payment{Text: "monthly fee", Amount: -25}).Error; err == nil {
			during, err = total(tx)
		}
		return err
	}

	var next *dbmutex.Lease
	how := "its lease ended, and the next worker took the mutex over"
	disturbed := db.Mutex("billing", dbmutex.WithTTL(300*time.Millisecond)).Transaction(func(tx *gorm.DB) (err error) {
		if err := book(tx); err != nil {
			return err
		}
		if db.Name() == "sqlite" {
			// Nobody else can write to the file, so nobody else can take the lease away until the transaction ends.
			how = "its lease was deleted, here by the transaction itself, as SQLite lets nobody else write meanwhile"
			return tx.Where("lock_id = ?", "billing").Delete(&dbmutex.DBMutex{}).Error
		}
		next, err = db.Mutex("billing", dbmutex.WithWait(10*time.Second)).Acquire()
		return err
	})
	after, err := total(db.Gorm)
	if err != nil {
		return err
	}
	fmt.Printf("The payments' total is %d. A transaction made it %d; then %s.\n", before, during, how)
	fmt.Printf("Transaction returned ErrTimeout: %t. It was rolled back: %t, the total is %d.\n",
		errors.Is(disturbed, dbmutex.ErrTimeout), after == before, after)
	err = errors.Join(
		check(during == before-25, "the transaction sees its own payment"),
		check(errors.Is(disturbed, dbmutex.ErrTimeout), "Transaction reports ErrTimeout"),
		check(after == before, "the total is as it was before"))
	if next != nil {
		err = errors.Join(err, next.Release())
	}
	if err != nil {
		return err
	}

	undisturbed := db.Mutex("billing").Transaction(book)
	if after, err = total(db.Gorm); err != nil {
		return err
	}
	fmt.Printf("The same transaction again, undisturbed, committed: %t. The total is %d.\n", undisturbed == nil, after)
	return errors.Join(undisturbed, check(after == before-25, "the payment was committed"))
}

// total is the sum of all payments.
func total(db *gorm.DB) (sum int64, err error) {
	err = db.Model(&Payment{}).Select("COALESCE(SUM(amount), 0)").Scan(&sum).Error
	return sum, err
}

// clock is a time of day.
func clock(t time.Time) string { return t.Local().Format("15:04:05.000") }
