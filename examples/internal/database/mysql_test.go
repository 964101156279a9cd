package database

import (
	"net/url"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"
	"gorm.io/gorm"

	"github.com/gorm-dbmutex/dbmutex/internal/testdb"
)

func TestAMySQLURLIsRead(t *testing.T) {
	type parts struct{ user, password, network, address, database string }
	for dsn, want := range map[string]parts{
		"mysql://anna:secret@db.example:3307/app":       {"anna", "secret", "tcp", "db.example:3307", "app"},
		"mysql://anna:secret@db.example/app":            {"anna", "secret", "tcp", "db.example:3306", "app"},
		"mysql://anna@[::1]/app":                        {"anna", "", "tcp", "[::1]:3306", "app"},
		"mysql://[::1]:3307/app":                        {"", "", "tcp", "[::1]:3307", "app"},
		"mysql://anna@/app":                             {"anna", "", "tcp", "127.0.0.1:3306", "app"},
		"mysql:///app":                                  {"", "", "tcp", "127.0.0.1:3306", "app"},
		"mysql://localhost":                             {"", "", "tcp", "localhost:3306", ""},
		"mysql://anna:a%40b%2Fc@localhost/my%2Fapp":     {"anna", "a@b/c", "tcp", "localhost:3306", "my/app"},
		"mysql://anna:a@b@localhost/app":                {"anna", "a@b", "tcp", "localhost:3306", "app"},
		"mysql://anna:a%28b%29@localhost/app":           {"anna", "a(b)", "tcp", "localhost:3306", "app"},
		"mysql://anna@localhost/app?socket=/run/a.sock": {"anna", "", "unix", "/run/a.sock", "app"},
		"mysql://anna:x@/app?socket=%2Frun%2Fa%20b":     {"anna", "x", "unix", "/run/a b", "app"},
		"mysql://anna:a%40b@unix(/run/a.sock)/app":      {"anna", "a@b", "unix", "/run/a.sock", "app"},
		"mysql://unix(/run/a.sock)/app":                 {"", "", "unix", "/run/a.sock", "app"},
		"mysql://anna:a%2Fb@tcp(localhost:3307)/app":    {"anna", "a/b", "tcp", "localhost:3307", "app"},
		"anna:a%40b@c/d@tcp(localhost:3307)/app":        {"anna", "a%40b@c/d", "tcp", "localhost:3307", "app"},
		"anna@unix(/run/a.sock)/app":                    {"anna", "", "unix", "/run/a.sock", "app"},
		"anna:secret@tcp(localhost)/app":                {"anna", "secret", "tcp", "localhost:3306", "app"},
		"anna:secret@/app":                              {"anna", "secret", "tcp", "127.0.0.1:3306", "app"},
		"tcp(localhost:3307)/":                          {"", "", "tcp", "localhost:3307", ""},
	} {
		require.Regexp(t, mysqlForm, dsn)
		config, err := mysqlConfig(dsn)
		require.NoError(t, err, dsn)
		require.Equal(t, want, parts{config.User, config.Passwd, config.Net, config.Addr, config.DBName}, dsn)
		require.True(t, config.ParseTime)
		require.True(t, config.InterpolateParams)
	}
}

func TestTheParametersOfAMySQLDSNCount(t *testing.T) {
	for _, address := range []string{"mysql://anna:x@localhost", "mysql://anna:x@tcp(localhost)", "anna:x@tcp(localhost)"} {
		config, err := mysqlConfig(address + "/app?interpolateParams=false&parseTime=false&timeout=5s&loc=Asia%2FTokyo" +
			"&time_zone=%27%2B09%3A00%27&charset=utf8mb4,utf8&tls=skip-verify")
		require.NoError(t, err)
		require.False(t, config.ParseTime)
		require.False(t, config.InterpolateParams)
		require.Equal(t, 5*time.Second, config.Timeout)
		require.Equal(t, "Asia/Tokyo", config.Loc.String())
		require.Equal(t, map[string]string{"time_zone": "'+09:00'"}, config.Params)
		require.Equal(t, "skip-verify", config.TLSConfig)
		require.Contains(t, config.FormatDSN(), "charset=utf8mb4,utf8")
	}
	for _, dsn := range []string{"mysql://localhost/app", "mysql://tcp(localhost)/app", "anna@/app"} {
		config, err := mysqlConfig(dsn + "?loc=Asia/Tokyo") // the driver wants %2F
		require.NoError(t, err)
		require.Equal(t, "Asia/Tokyo", config.Loc.String())
	}
}

func TestTheErrorOfAURLNamesNoPassword(t *testing.T) {
	for _, dsn := range []string{
		"mysql://anna:secret/secret@localhost/app", "mysql://anna:secret%zz@localhost/app",
		"mysql://anna:secret%zz@tcp(localhost)/app", "mysql://anna:secret@localhost/app/secret",
		"mysql://anna:secret@localhost:secret/app", "mysql://anna:x@secret?#@localhost/app",
		"oracle://anna:secret@localhost/app",
	} {
		_, err := Dialector(dsn)
		require.Error(t, err, dsn)
		require.NotContains(t, err.Error(), "secret")
	}
}

func TestMySQLGetsThePasswordOfTheURL(t *testing.T) {
	const user, password = "odd:user", `p@ss/w:rd?#%&(é)+ "x`
	d := testdb.MySQL(t)
	server, err := driver.ParseDSN(d.DSN)
	require.NoError(t, err)
	db := d.Open(t)
	require.NoError(t, db.Exec("CREATE USER `"+user+"`@`%` IDENTIFIED BY '"+password+"'").Error)
	t.Cleanup(func() { require.NoError(t, db.Exec("DROP USER `"+user+"`@`%`").Error) })
	require.NoError(t, db.Exec("GRANT ALL ON "+server.DBName+".* TO `"+user+"`@`%`").Error)
	dsn := "mysql://" + url.UserPassword(user, password).String() + "@" + server.Addr + "/" + server.DBName
	for _, parameters := range []string{"", "?charset=latin1&loc=Asia/Tokyo&interpolateParams=false"} {
		dialector, err := Dialector(dsn + parameters)
		require.NoError(t, err)
		opened, err := gorm.Open(dialector)
		require.NoError(t, err)
		pool, err := opened.DB()
		require.NoError(t, err)
		require.NoError(t, pool.Close())
	}
}

func TestADSNNamesItsDatabase(t *testing.T) {
	for dsn, name := range map[string]string{
		"postgres://user@localhost/database":             "postgres",
		"postgresql://user:a@tcp(b)@localhost/database":  "postgres",
		"host=/run/postgresql user=anna dbname=database": "postgres",
		"mysql://user:password@localhost/database":       "mysql",
		"user:password@tcp(localhost:3306)/database":     "mysql",
		"app.db":                       "sqlite",
		"/home/anna@work/app.db":       "sqlite",
		"file:app.db?cache=shared":     "sqlite",
		`C:\Users\Anna (work)\app.db`:  "sqlite",
		"/home/anna/work (old)/app.db": "sqlite",
	} {
		dialector, err := Dialector(dsn)
		require.NoError(t, err, dsn)
		require.Equal(t, name, dialector.Name(), dsn)
	}
	_, err := Dialector("oracle://localhost/database")
	require.ErrorContains(t, err, "must begin with postgres:// or mysql://")
}
