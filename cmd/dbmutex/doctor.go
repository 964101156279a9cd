package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/leaseview"
)

const (
	// doctorsID is the mutex with which rights are tried.
	doctorsID = "dbmutex.doctor"
	// clockLimit is how much the clocks may differ.
	clockLimit = time.Second
)

func newDoctor(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Look whether everything is as it should be",
		Long: `Doctor looks at the connection, the table with its columns, its index and its sequence, the rights, the table of run
--once-per, the clocks, and at leases that never expire. Each line says ok, or what to do. The exit code is 1 if there is
something to do. Who uses no Once needs no table of it.

To try the rights it takes and releases the mutex ` + doctorsID + `.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return g.withDB(false, func(ctx context.Context, db *dbmutex.DB) error {
				return (&doctor{global: g}).examine(ctx, db)
			})
		},
	}
}

// doctor is one dbmutex doctor.
type doctor struct {
	*global

	found    bool  // something to do
	writeErr error // what was found could not be written
}

func (d *doctor) ok(what, detail string) { d.write(what, "ok"+detail) }

func (d *doctor) bad(what, todo string) {
	d.found = true
	d.write(what, oneLine(todo))
}

func (d *doctor) write(what, verdict string) {
	if _, err := fmt.Printf("%-10s  %s\n", what, verdict); err != nil {
		d.writeErr = err
	}
}

// examine looks at one thing after the other. What is not as it should be is no error of it, but a database that does not
// answer is.
func (d *doctor) examine(ctx context.Context, db *dbmutex.DB) error {
	d.ok("connection", ": "+db.Name())
	looks := []func(*dbmutex.DB) error{d.lookAtTable, d.lookAtRights, d.lookAtOnce, d.lookAtClock}
	for i := 0; i < len(looks) && !d.found; i++ { // what follows needs what comes before
		if err := d.within(ctx, db, looks[i]); err != nil {
			return err
		}
	}
	if d.writeErr == nil && d.found {
		return &exitError{code: exitNo}
	}
	return d.writeErr
}

// lookAtTable lets the library look at the table, as it does before the first use.
func (d *doctor) lookAtTable(db *dbmutex.DB) error {
	_, err := db.Leases(dbmutex.LeaseQuery{Limit: 1})
	switch {
	case err == nil:
		d.ok("table", ": "+d.table)
		for _, what := range []string{"columns", "index", "sequence"} {
			d.ok(what, "")
		}
	case db.Statement.Context.Err() != nil:
		return err
	default:
		problem := problemOf(err)
		switch what := about(problem); what {
		case "missing":
			d.bad("table", d.table+" is missing: run dbmutex migrate")
		case "rights":
			d.bad(what, problem+neededRights)
		default:
			d.bad(what, problem)
		}
	}
	return nil
}

// problemOf is what is wrong with a table.
func problemOf(err error) string {
	problem := err.Error()
	if _, why, unusable := strings.Cut(problem, " cannot be used: "); unusable {
		return why
	}
	return problem
}

// lookAtOnce is lookAtTable for the table that only Once needs.
func (d *doctor) lookAtOnce(db *dbmutex.DB) error {
	table := onceTable(d.table)
	_, err := db.Leases(dbmutex.LeaseQuery{Once: true, Limit: 1})
	switch {
	case err == nil:
		d.ok("once", ": "+table)
	case db.Statement.Context.Err() != nil:
		return err
	case leaseview.MissingTable(err):
		d.ok("once", ": "+table+" is missing, which only run --once-per and Once need; dbmutex migrate makes it")
	case about(err.Error()) == "rights":
		d.ok("once", ": "+table+" cannot be read, which only run --once-per and Once need: "+oneLine(err.Error()))
	default:
		d.bad("once", table+": "+problemOf(err))
	}
	return nil
}

const neededRights = "; if that is denied: a program needs SELECT, INSERT, UPDATE and DELETE on the table, on PostgreSQL " +
	"also USAGE on the sequence"

// about says which part of the table an error is about, or that the table is missing.
func about(problem string) string {
	for _, part := range []struct {
		what  string
		words []string
	}{
		{"rights", []string{"denied"}},
		{"missing", []string{"is missing: run AutoMigrate"}},
		{"sequence", []string{"sequence", "AUTOINCREMENT", "AUTO_INCREMENT", "fencing tokens"}},
		{"index", []string{"unique", "index", "PRIMARY KEY"}},
		{"columns", []string{"column"}},
	} {
		if slices.ContainsFunc(part.words, func(word string) bool { return strings.Contains(problem, word) }) {
			return part.what
		}
	}
	return "table"
}

// lookAtRights uses every right that a program needs.
func (d *doctor) lookAtRights(db *dbmutex.DB) error {
	err := db.Mutex(doctorsID, dbmutex.WithTTL(d.timeout), dbmutex.WithWait(d.timeout/2)).Do(func(ctx context.Context) error {
		lease, _ := dbmutex.LeaseFrom(ctx)
		return lease.Renew()
	})
	if err == nil { // MySQL keeps the row of a free mutex
		err = db.Where("lock_id = ? AND lease_id = ''", doctorsID).Delete(&dbmutex.DBMutex{}).Error
	}
	switch {
	case errors.Is(err, dbmutex.ErrNotAcquired):
		d.ok("rights", ": not tried, as another doctor holds "+doctorsID)
	case err == nil:
		d.ok("rights", "")
	case db.Statement.Context.Err() != nil:
		return err
	default:
		d.bad("rights", err.Error()+neededRights)
	}
	return nil
}

// lookAtClock compares the clocks, and counts the leases on the way.
func (d *doctor) lookAtClock(db *dbmutex.DB) error {
	before := time.Now()
	stats, err := db.LeaseStats()
	if err != nil {
		return err
	}
	took := time.Since(before)
	d.compare(before.Add(took/2).Sub(stats.Now), took/2)
	if n := stats.WithoutExpiry; n > 0 {
		d.bad("leases", count(n, "lease never expires", "leases never expire")+": look whether their holders are alive, with "+
			"dbmutex list --order oldest; dbmutex release frees the mutex of one that is not")
	} else {
		d.ok("leases", ": all expire")
	}
	return nil
}

// compare judges how much this machine's clock is ahead of the database's, as far as that can be known.
func (d *doctor) compare(ahead, doubt time.Duration) {
	where := "ahead of"
	if ahead < 0 {
		where = "behind"
	}
	text := fmt.Sprintf("this machine is %s %s the database", inWords(ahead.Abs()), where)
	if ahead.Abs() > clockLimit+doubt {
		d.bad("clock", text+": let both follow NTP; leases go by the database's clock")
		return
	}
	d.ok("clock", ": "+text)
}
