//go:build linux

package torture

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	mysqldriver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"
	"gorm.io/driver/mysql"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-dbmutex/dbmutex"
	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func init() {
	_ = mysqldriver.SetLogger(&mysqldriver.NopLogger{})
	arenas["mysql"] = func(t *testing.T) arena { return newMySQL(t) }
	drivers["mysql"] = func(dsn string) (gorm.Dialector, error) { return openMySQL(dsn, false) }
	drivers["mysql, veiled"] = func(dsn string) (gorm.Dialector, error) { return openMySQL(dsn, true) }
}

func openMySQL(dsn string, veils bool) (gorm.Dialector, error) {
	config, err := mysqldriver.ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	connector, err := mysqldriver.NewConnector(config)
	if err != nil {
		return nil, err
	}
	if veils {
		connector = veil{connector}
	}
	// A worker may start while the server cannot be asked for its version.
	settings := mysql.Config{Conn: sql.OpenDB(connector), SkipInitializeWithVersion: true}
	return counting{mysql.New(settings).(*mysql.Dialector)}, nil
}

// mysqlArena is a server, and a network to it for each worker.
type mysqlArena struct {
	*network
	server    *testdb.Server
	db        *dbmutex.DB
	isolation string // the name of the session's variable
	snapshots bool   // the server can compare a transaction's snapshot with what it changes
}

// theirUser is the user of the workers' sessions.
const theirUser = "worker"

func newMySQL(t *testing.T) *mysqlArena {
	log := []string{"skip_log_bin", "log_bin = binlog"}[rand.New(rand.NewPCG(*seed, 0)).IntN(2)]
	t.Log(log)
	a := &mysqlArena{server: testdb.At("mysql", "").NewServer(t, log, "max_connect_errors = 1000000")}
	db, err := gorm.Open(a.server.Database().Dialector(), &gorm.Config{Logger: logger.Discard})
	require.NoError(t, err)
	require.NoError(t, db.Exec(`CREATE USER `+theirUser).Error)
	require.NoError(t, db.Exec(`GRANT ALL ON *.* TO `+theirUser).Error)
	var variables []struct{ VariableName string }
	require.NoError(t, db.Raw(`SHOW VARIABLES WHERE Variable_name IN
		('tx_isolation', 'transaction_isolation', 'innodb_snapshot_isolation')`).Scan(&variables).Error)
	for _, v := range variables {
		if v.VariableName == "innodb_snapshot_isolation" {
			a.snapshots = true
		} else {
			a.isolation = v.VariableName
		}
	}
	a.db = migrate(t, db)
	a.network = newNetwork(t, a.server.Database())
	return a
}

func (a *mysqlArena) begin(t *testing.T, r *round) {
	r.db = a.db
	r.job.Isolates = true
	r.job.Driver = "mysql"
	if r.maybe(0.3) {
		r.job.Driver = "mysql, veiled"
	}
	r.setting = "driver " + r.job.Driver
	r.total.add("rounds with "+r.setting, 1)
	r.dsn = func(slot int) string { return a.session(t, r, a.proxies[slot].Database.DSN) }
	r.misuse()
	if r.maybe(0.5) {
		r.suffer("session killed", func(*testing.T) { a.kill(`CONNECTION`, 0) })
	}
	if r.maybe(0.5) {
		r.suffer("statements killed", func(*testing.T) { a.kill(`QUERY`, r.upTo(100*time.Millisecond)) })
	}
	if r.maybe(0.5) {
		r.suffer("server stopped for a while", func(t *testing.T) { a.stop(t, r.upTo(300*time.Millisecond)) })
	}
	if r.maybe(0.4) {
		r.suffer("free rows grow old", func(*testing.T) {
			_ = a.db.Exec(`UPDATE db_mutexes SET expires_at = expires_at - INTERVAL 2 HOUR WHERE lease_id = ''`).Error
		})
	}
	r.loseServer(a.server, 0.3, 0.1)
	if r.maybe(0.7) {
		a.breakIn(r, 2)
	}
}

// session chooses what a worker's sessions are like.
func (a *mysqlArena) session(t *testing.T, r *round, dsn string) string {
	config, err := mysqldriver.ParseDSN(dsn)
	require.NoError(t, err)
	config.User = theirUser
	config.InterpolateParams = r.maybe(0.5)
	config.ClientFoundRows = r.maybe(0.4)
	config.ParseTime = r.maybe(0.5)
	if r.maybe(0.2) {
		config.ReadTimeout = 500 * time.Millisecond
	}
	config.Params = map[string]string{}
	set := func(probability float64, name, value string) {
		if r.maybe(probability) {
			config.Params[name] = value
			r.total.add("workers with "+name+"="+value, 1)
		}
	}
	set(0.3, a.isolation, []string{"'READ-COMMITTED'", "'SERIALIZABLE'"}[r.rand.IntN(2)])
	set(0.2, "autocommit", "0")
	set(0.3, "innodb_lock_wait_timeout", "1")
	if a.snapshots {
		set(0.3, "innodb_snapshot_isolation", "1")
	}
	return config.FormatDSN()
}

// theirs are the workers' sessions, those that do something first.
func (a *mysqlArena) theirs() (ids []int64, err error) {
	err = a.db.Raw(`SELECT id FROM information_schema.processlist WHERE user IN (?, 'unauthenticated user')
		ORDER BY command = 'Sleep', RAND()`, theirUser).Scan(&ids).Error
	return ids, err
}

// kill ends some sessions, or what they are doing, again and again for a while: few statements take long.
func (a *mysqlArena) kill(what string, d time.Duration) {
	for end := time.Now().Add(d); ; {
		ids, _ := a.theirs()
		for _, id := range ids[:min(3, len(ids))] {
			_ = a.db.Exec(fmt.Sprintf(`KILL %s %d`, what, id)).Error
		}
		if time.Now().After(end) {
			return
		}
	}
}

// stop stops the server's process for a while.
func (a *mysqlArena) stop(t *testing.T, d time.Duration) {
	var path string
	require.NoError(t, a.db.Raw(`SELECT @@pid_file`).Scan(&path).Error)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	id, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(id, syscall.SIGSTOP))
	time.Sleep(d)
	require.NoError(t, syscall.Kill(id, syscall.SIGCONT))
}

// quiesce also waits for what is still rolled back, after a kill or a crash.
func (a *mysqlArena) quiesce(t *testing.T) {
	require.Eventually(t, func() bool {
		ids, err := a.theirs()
		for _, id := range ids {
			_ = a.db.Exec(fmt.Sprintf(`KILL CONNECTION %d`, id)).Error
		}
		left := -1
		counted := a.db.Raw(`SELECT count(*) FROM information_schema.innodb_trx
			WHERE trx_rows_locked > 0 OR trx_rows_modified > 0`).Scan(&left).Error
		return err == nil && counted == nil && len(ids) == 0 && left == 0
	}, 30*time.Second, 20*time.Millisecond, "the workers' sessions do not end")
}

func (a *mysqlArena) end(t *testing.T, r *round) {
	for _, table := range []string{"counters", "runs", "db_onces"} {
		require.NoError(t, r.db.Exec(`DELETE FROM `+table).Error)
	}
}

// counting is a dialector whose statements are counted if they get no answer. It is GORM that tells: a driver that is
// wrapped hides from the library what it knows of its connections.
type counting struct{ *mysql.Dialector }

func (c counting) Initialize(db *gorm.DB) error {
	callbacks := db.Callback()
	return errors.Join(
		c.Dialector.Initialize(db),
		callbacks.Create().Register("count", countLost), callbacks.Query().Register("count", countLost),
		callbacks.Row().Register("count", countLost), callbacks.Raw().Register("count", countLost),
	)
}

func countLost(db *gorm.DB) {
	note := noteOf(db.Statement.Context)
	if noAnswer(db.Error) {
		note.lost.Add(1)
	}
	// What another goroutine reads, as renewals do, is not for the client's to ask.
	if rows, reads := db.Statement.Dest.(*sql.Rows); reads && rows != nil && note.owner == goroutine() {
		note.asks = append(note.asks, func() bool { return noAnswer(rows.Err()) }) // it says so also once it is closed
	}
}

// noAnswer says whether an error is not what the server answered, or said as it ended the session.
func noAnswer(err error) bool {
	var answer *mysqldriver.MySQLError
	answered := errors.As(err, &answer) && answer.Number != 1053 && answer.Number != 1927
	return err != nil && !answered
}

// veil hides the type of its connections.
type veil struct{ driver.Connector }

func (v veil) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := v.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return struct{ mysqlConn }{conn.(mysqlConn)}, nil
}

// mysqlConn is what the driver's connections can do.
type mysqlConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}
