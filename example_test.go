package dbmutex_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"gorm.io/driver/sqlite"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex"
)

// openExample opens a new SQLite file; done closes and removes it.
func openExample() (db *dbmutex.DB, done func()) {
	folder, err := os.MkdirTemp("", "dbmutex")
	if err != nil {
		panic(err)
	}
	gdb, err := gorm.Open(sqlite.Open(filepath.Join(folder, "app.db")), &gorm.Config{})
	if err != nil {
		panic(err)
	}
	if err := gdb.Use(dbmutex.New(dbmutex.DefaultSettings())); err != nil {
		panic(err)
	}
	if err := gdb.AutoMigrate(&dbmutex.DBMutex{}, &dbmutex.DBOnce{}); err != nil {
		panic(err)
	}
	return dbmutex.Wrap(gdb), func() {
		pool, _ := gdb.DB()
		_ = pool.Close()
		_ = os.RemoveAll(folder)
	}
}

func Example() {
	db, done := openExample()
	defer done()

	buildReport := func(context.Context) error {
		fmt.Println("the report is built")
		return nil
	}
	err := db.Mutex("nightly-report").Do(func(ctx context.Context) error {
		return buildReport(ctx)
	})
	switch {
	case errors.Is(err, dbmutex.ErrNotAcquired):
		fmt.Println("somebody else is building it")
	case errors.Is(err, dbmutex.ErrTimeout):
		fmt.Println("it ran, but its lease was lost, or only ran out:", err)
	case err != nil:
		fmt.Println("it failed:", err)
	}
	// Output: the report is built
}

// Each verb runs fn, or write, in its own way.
func Example_verbs() {
	gdb, done := openExample()
	defer done()
	if err := gdb.Migrate(); err != nil {
		panic(err)
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Minute) // until when to lead
	defer stop()
	db := gdb.WithContext(ctx)

	runs := 0
	fn := func(context.Context) error {
		if runs++; runs == 5 {
			stop()
		}
		return nil
	}
	write := func(*gorm.DB) error { return nil }
	fmt.Println(errors.Join(
		db.Mutex("report").Do(fn),
		db.Mutex("report", dbmutex.WithWait(time.Minute)).Do(fn),
		db.Mutex("payments").Transaction(write),
		db.Once(dbmutex.Tick("report", time.Now(), 24*time.Hour), 48*time.Hour).Do(fn),
		db.Once("import-7", 720*time.Hour).Transaction(write),
		db.Semaphore("export", 4).Do(fn),
		db.Mutex("leader", dbmutex.WithTTL(30*time.Second)).Lead(fn),
	), "after", runs, "runs")
	// Output: <nil> after 5 runs
}

func ExampleMutex_Do() {
	db, done := openExample()
	defer done()

	report := db.Mutex("nightly-report", dbmutex.WithHolder("machine-7"))
	err := report.Do(func(ctx context.Context) error {
		err := report.Do(func(context.Context) error { // as another process would
			fmt.Println("this does not run")
			return nil
		})
		var held *dbmutex.HeldError
		if errors.As(err, &held) {
			fmt.Println("held by", held.Holder)
		}
		return nil
	})
	fmt.Println(err)
	// Output:
	// held by machine-7
	// <nil>
}

// Do's context ends with the lease. Work that looks at it stops in time.
func ExampleMutex_Do_timeout() {
	db, done := openExample()
	defer done()

	err := db.Mutex("report", dbmutex.WithTTL(10*time.Millisecond)).Do(func(ctx context.Context) error {
		select {
		case <-time.After(time.Minute): // the work
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	fmt.Println(errors.Is(err, dbmutex.ErrTimeout))
	// Output: true
}

// Both runs outlast their leases. Nobody comes during the first; somebody takes the mutex over during the second.
func ExampleTimeoutError() {
	db, done := openExample()
	defer done()

	report := db.Mutex("report", dbmutex.WithTTL(10*time.Millisecond))
	for _, next := range []*dbmutex.Mutex{nil, db.Mutex("report", dbmutex.WithWait(time.Minute))} {
		err := report.Do(func(ctx context.Context) error {
			<-ctx.Done()
			if next == nil {
				return nil
			}
			return next.Do(func(context.Context) error { return nil }) // as another process would
		})
		var timeout *dbmutex.TimeoutError
		if !errors.As(err, &timeout) {
			fmt.Println(err) // the lease did not end before the work did
			return
		}
		if timeout.Lost {
			fmt.Println("the lease was lost: somebody else may have overlapped")
		} else {
			fmt.Println("the lease only ran out: certainly nobody else did; the work was late:", timeout.Late > 0)
		}
	}
	// Output:
	// the lease only ran out: certainly nobody else did; the work was late: true
	// the lease was lost: somebody else may have overlapped
}

func ExampleMutex_Decorate() {
	db, done := openExample()
	defer done()

	report := db.Mutex("report", dbmutex.WithWait(time.Minute)).Decorate(func(ctx context.Context) error {
		fmt.Println("runs once at a time")
		return nil
	})
	err := report(context.Background())
	fmt.Println(err)
	fmt.Println(report(context.Background()))
	// Output:
	// runs once at a time
	// <nil>
	// runs once at a time
	// <nil>
}

func ExampleDoValue() {
	db, done := openExample()
	defer done()

	rows, err := dbmutex.DoValue(db.Mutex("import"), func(ctx context.Context) (int, error) {
		return 42, nil
	})
	fmt.Println(rows, err)
	// Output: 42 <nil>
}

// A lease by hand, for work that does not fit into a function.
func ExampleMutex_Acquire() {
	db, done := openExample()
	defer done()

	lease, err := db.Mutex("import", dbmutex.WithRenewal()).Acquire()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = lease.Release() }()

	// lease.Context() ends when the lease does. A store outside of the database can refuse smaller tokens than the
	// greatest that it has seen.
	fmt.Println(lease.Context().Err(), lease.Token())
	// Output: <nil> 1
}

// What fn writes is committed only if the lease is still held: no money is moved twice, though leases may run out.
func ExampleMutex_Transaction() {
	db, done := openExample()
	defer done()

	type Payment struct {
		ID   int64
		Paid bool
	}
	if err := db.Migrate(&Payment{}); err != nil {
		fmt.Println(err)
		return
	}
	db.Create(&Payment{})

	err := db.Mutex("payments").Transaction(func(tx *gorm.DB) error {
		return tx.Model(&Payment{}).Where("paid = ?", false).Update("paid", true).Error
	})
	var open int64
	db.Model(&Payment{}).Where("paid = ?", false).Count(&open)
	fmt.Println(err, open)
	// Output: <nil> 0
}

// Guard lets a transaction of one's own commit only while the lease is held.
func ExampleLease_Guard() {
	db, done := openExample()
	defer done()

	err := db.Mutex("import").Do(func(ctx context.Context) error {
		lease, _ := dbmutex.LeaseFrom(ctx)
		return db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
			if err := lease.Guard(tx); err != nil {
				return err
			}
			return tx.Exec("CREATE TABLE imported (id integer)").Error
		})
	})
	fmt.Println(err)
	// Output: <nil>
}

// ReleaseIn makes the end of the work and the end of the lease one commit.
func ExampleLease_ReleaseIn() {
	db, done := openExample()
	defer done()

	err := db.Mutex("import").Do(func(ctx context.Context) error {
		lease, _ := dbmutex.LeaseFrom(ctx)
		return db.Gorm.Transaction(func(tx *gorm.DB) error {
			if err := tx.Exec("CREATE TABLE imported (id integer)").Error; err != nil {
				return err
			}
			return lease.ReleaseIn(tx)
		})
	})
	fmt.Println(err)
	// Output: <nil>
}

func ExampleSettings() {
	settings, err := dbmutex.SettingsFromEnv() // DB_MUTEX_TTL_SECONDS
	if err != nil {
		fmt.Println(err)
		return
	}
	settings.Wait = 10 * time.Second
	settings.Renew = true
	plugin := dbmutex.New(settings) // for gorm.DB.Use

	fmt.Println(plugin.Name(), *settings.TTL)
	// Output: dbmutex 30m0s
}

func ExampleDB_Leases() {
	db, done := openExample()
	defer done()
	for _, id := range []string{"export/1", "export/2", "report"} {
		lease, err := db.Mutex(id, dbmutex.WithHolder("machine-7")).Acquire()
		if err != nil {
			panic(err)
		}
		defer func() { _ = lease.Release() }()
	}

	leases, err := db.Leases(dbmutex.LeaseQuery{Prefix: "export/", Limit: 50})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, lease := range leases {
		fmt.Println(lease.LockID, "is held by", lease.Holder, "- for less than a minute:", lease.HeldFor() < time.Minute)
	}
	// The next page has the LockID of the last lease as After, and its Slot as AfterSlot.

	// Output:
	// export/1 is held by machine-7 - for less than a minute: true
	// export/2 is held by machine-7 - for less than a minute: true
}

func ExampleDB_AllLeases() {
	db, done := openExample()
	defer done()
	lease, err := db.Mutex("nightly-report", dbmutex.WithHolder("machine-7")).Acquire()
	if err != nil {
		panic(err)
	}
	defer func() { _ = lease.Release() }()

	for lease, err := range db.AllLeases(dbmutex.LeaseQuery{State: dbmutex.LeasesAll}) {
		if err != nil {
			fmt.Println(err)
			break
		}
		fmt.Printf("%s, held by %s, ran out: %t\n", lease.LockID, lease.Holder, lease.Expired())
	}
	// Output: nightly-report, held by machine-7, ran out: false
}

func ExampleDB_LeaseStats() {
	db, done := openExample()
	defer done()
	lease, err := db.Mutex("nightly-report", dbmutex.WithoutTTL()).Acquire()
	if err != nil {
		panic(err)
	}
	defer func() { _ = lease.Release() }()

	stats, err := db.LeaseStats()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("held:", stats.Held, "without expiry:", stats.WithoutExpiry, "ran out:", stats.Expired)
	fmt.Println("the oldest:", stats.Oldest.LockID)
	// Output:
	// held: 1 without expiry: 1 ran out: 0
	// the oldest: nightly-report
}

// Two holders have crashed; the lease of one has run out.
func ExampleDB_Prune() {
	db, done := openExample()
	defer done()
	for _, ttl := range []time.Duration{time.Millisecond, time.Hour} {
		if _, err := db.Mutex(fmt.Sprint("job of ", ttl), dbmutex.WithTTL(ttl)).Acquire(); err != nil {
			panic(err)
		}
	}
	time.Sleep(10 * time.Millisecond)

	removed, err := db.Prune()
	fmt.Println(removed, err)
	// Output: 1 <nil>
}

// An operator saw a lease that never expires, of a holder that crashed. When it is to be released, others may have been
// quicker: then the next holder keeps its lease.
func ExampleMutex_ForceReleaseLease() {
	db, done := openExample()
	defer done()
	report := db.Mutex("nightly-report", dbmutex.WithoutTTL())
	if _, err := report.Acquire(); err != nil {
		panic(err)
	}

	seen, err := report.Inspect()
	if err != nil || seen == nil {
		fmt.Println("no lease:", err)
		return
	}
	for range 2 {
		released, err := db.Mutex("nightly-report", dbmutex.WithHolder("anna")).ForceReleaseLease(seen.LeaseID)
		fmt.Println("released:", released, err)
	}
	// Output:
	// released: true <nil>
	// released: false <nil>
}

// The plugin's settings carry the observer for the whole program.
func ExampleSettings_observer() {
	folder, err := os.MkdirTemp("", "dbmutex")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(folder) }()
	gdb, err := gorm.Open(sqlite.Open(filepath.Join(folder, "app.db")), &gorm.Config{})
	if err != nil {
		panic(err)
	}
	settings := dbmutex.DefaultSettings()
	settings.Observer = dbmutex.LogTo(slog.Default())
	err = gdb.Use(dbmutex.New(settings))
	fmt.Println(err)
	// Output: <nil>
}

// LogTo logs what happens to mutexes, here from level Info on.
func ExampleLogTo() {
	db, done := openExample()
	defer done()

	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr { // what differs from run to run
			switch a.Key {
			case slog.TimeKey, "waited", "held", "error":
				return slog.Attr{}
			}
			return a
		},
	}))
	report := db.Mutex("report", dbmutex.WithObserver(dbmutex.LogTo(logger)), dbmutex.WithHolder("machine-7"))
	err := report.Do(func(context.Context) error {
		_, err := report.Acquire() // as another process would
		return errors.Join(err, report.ForceRelease())
	})
	fmt.Println(errors.Is(err, dbmutex.ErrTimeout))
	// Output:
	// level=INFO msg="the mutex is held" mutex=report holder=machine-7 outcome=held tries=1
	// level=WARN msg="the release of the mutex was forced" mutex=report holder=machine-7 token=1
	// level=ERROR msg="the mutex was released, but its lease had been lost" mutex=report holder=machine-7 token=1 outcome=lost
	// true
}

// An Observer of one's own counts runs that found the mutex held.
func ExampleObserver() {
	db, done := openExample()
	defer done()

	counter := &heldCounter{}
	report := db.Mutex("nightly-report", dbmutex.WithObserver(counter), dbmutex.WithSkipHeld())
	err := report.Do(func(context.Context) error {
		return report.Do(func(context.Context) error { return nil }) // as another process would
	})
	fmt.Println(counter.skipped.Load(), err)
	// Output: 1 <nil>
}

type heldCounter struct{ skipped atomic.Int64 }

func (c *heldCounter) Observe(ctx context.Context, e dbmutex.Event) context.Context {
	if e.Kind == dbmutex.AcquireEnded && e.Outcome == dbmutex.OutcomeSkipped {
		c.skipped.Add(1)
	}
	return ctx
}

// Every process calls Lead. One of them leads at a time; here it resigns when it has done its work.
func ExampleMutex_Lead() {
	db, done := openExample()
	defer done()

	ctx, stop := context.WithCancel(context.Background()) // a service uses signal.NotifyContext
	leader := db.WithContext(ctx).Mutex("leader", dbmutex.WithTTL(10*time.Second))
	err := leader.Lead(func(ctx context.Context) error {
		lease, _ := dbmutex.LeaseFrom(ctx)
		fmt.Println("leads, in epoch", lease.Token())
		stop()
		<-ctx.Done() // the lease has ended, or the program stops
		return nil
	})
	fmt.Println(err)
	// Output:
	// leads, in epoch 1
	// <nil>
}

func ExampleDB_Semaphore() {
	db, done := openExample()
	defer done()

	api := db.Semaphore("api", 4, dbmutex.WithWait(time.Minute)) // at most 4 calls at once
	err := api.Do(func(ctx context.Context) error {
		lease, _ := dbmutex.LeaseFrom(ctx)
		fmt.Println("one of the slots from 1 to 4:", lease.Slot() >= 1 && lease.Slot() <= 4)
		return nil
	})
	fmt.Println(err)
	// Output:
	// one of the slots from 1 to 4: true
	// <nil>
}

// An operator sees who holds a semaphore, and ends one of the leases.
func ExampleSemaphore_Holders() {
	db, done := openExample()
	defer done()
	for _, holder := range []string{"machine-1", "machine-2"} { // as other processes would
		if _, err := db.Semaphore("api", 2, dbmutex.WithHolder(holder)).Acquire(); err != nil {
			panic(err)
		}
	}

	api := db.Semaphore("api", 2)
	holders, err := api.Holders()
	if err != nil {
		panic(err)
	}
	fmt.Println(len(holders), "slots are taken")
	for _, info := range holders {
		if info.Holder == "machine-1" { // it has crashed
			released, err := api.ForceReleaseLease(info.LeaseID)
			fmt.Println(released, err)
		}
	}
	// Output:
	// 2 slots are taken
	// true <nil>
}

// The leader's ticks are a Once each. A leader begins with the tick that was last, which it makes up for if it is not done.
func ExampleMutex_Lead_ticks() {
	db, done := openExample()
	defer done()

	ctx, stop := context.WithCancel(context.Background()) // a service uses signal.NotifyContext
	const every = 100 * time.Millisecond
	reports := 0
	buildReport := func(context.Context) error {
		fmt.Println("the report is built")
		if reports++; reports == 2 {
			stop()
		}
		return nil
	}
	leader := db.WithContext(ctx).Mutex("scheduler", dbmutex.WithTTL(10*time.Second))
	err := leader.Lead(func(ctx context.Context) error {
		for at := time.Now().Truncate(every); ; at = at.Add(every) {
			select {
			case <-time.After(time.Until(at)): // at once for the first
			case <-ctx.Done(): // the lease has ended, or the program stops
				return nil
			}
			tick := db.WithContext(ctx).Once(dbmutex.Tick("report", at, every), 2*every,
				dbmutex.WithTTL(30*time.Second), dbmutex.WithRenewal(), dbmutex.WithWait(dbmutex.Forever))
			if err := tick.Do(buildReport); err != nil {
				return err // Lead begins again after a pause, here or in another process
			}
		}
	})
	fmt.Println(err)
	// Output:
	// the report is built
	// the report is built
	// <nil>
}

// Somebody else holds the mutex for a moment.
func ExampleMutex_Watch() {
	db, done := openExample()
	defer done()
	leader := db.Mutex("leader", dbmutex.WithHolder("machine-7"))
	lease, err := leader.Acquire() // as another process would
	if err != nil {
		panic(err)
	}

	for info, err := range leader.Watch(context.Background()) {
		switch {
		case err != nil:
			fmt.Println("unknown for the moment:", err)
		case info == nil:
			fmt.Println("nobody leads")
			return
		default:
			fmt.Println(info.Holder, "leads")
			if err := lease.Release(); err != nil {
				fmt.Println(err)
			}
		}
	}
	// Output:
	// machine-7 leads
	// nobody leads
}

// Every process runs this when a report is due. One of them makes it; if it fails, or crashes, another does.
func ExampleDB_Once() {
	db, done := openExample()
	defer done()

	tick := dbmutex.Tick("report", time.Now(), 24*time.Hour)
	for range 3 { // three machines, for example
		report := db.Once(tick, 7*24*time.Hour)
		err := report.Do(func(ctx context.Context) error {
			fmt.Println("makes the report")
			return nil
		})
		if err != nil { // somebody else is at it, or the work failed
			fmt.Println(err)
		}
	}
	// Output: makes the report
}

// The payment and its record commit together: it is made once, however often it is asked for.
func ExampleOnce_Transaction() {
	db, done := openExample()
	defer done()
	if err := db.Exec(`CREATE TABLE payments (amount integer)`).Error; err != nil {
		panic(err)
	}

	for range 3 {
		payment := db.Once("payment/4711", 30*24*time.Hour, dbmutex.WithWait(time.Minute))
		err := payment.Transaction(func(tx *gorm.DB) error {
			return tx.Exec(`INSERT INTO payments VALUES (100)`).Error
		})
		if err != nil {
			fmt.Println(err)
		}
	}
	var payments int64
	db.Table("payments").Count(&payments)
	fmt.Println(payments)
	// Output: 1
}

// The value is that of the one run that succeeded.
func ExampleOnceValue() {
	db, done := openExample()
	defer done()

	for range 2 {
		order := db.Once("order/4711", 24*time.Hour, dbmutex.WithWait(time.Minute))
		number, err := dbmutex.OnceValue(order, func(ctx context.Context) (int, error) {
			fmt.Println("orders")
			return 42, nil
		})
		fmt.Println(number, err)
	}
	// Output:
	// orders
	// 42 <nil>
	// 42 <nil>
}

// Clocks that are a moment before the hour, and after it, give the same id.
func ExampleTick() {
	hour := time.Date(2026, 3, 29, 12, 0, 0, 0, time.UTC)
	fmt.Println(dbmutex.Tick("cleanup", hour.Add(-300*time.Millisecond), time.Hour))
	fmt.Println(dbmutex.Tick("cleanup", hour.Add(200*time.Millisecond), time.Hour))
	// Output:
	// cleanup@2026-03-29T12:00:00Z
	// cleanup@2026-03-29T12:00:00Z
}
