package database

import (
	"database/sql"
	"errors"
	"net"
	"net/url"
	"regexp"
	"strings"

	driver "github.com/go-sql-driver/mysql"
	"gorm.io/driver/mysql"
	"gorm.io/gorm"
)

// addressInParentheses is a pattern for what comes before the database's name in the driver's form of a DSN.
const addressInParentheses = `(^|@)\w+\(.*\)/`

// errNoURL stands for errors that would quote the password.
var errNoURL = errors.New("the mysql:// URL is none: are special characters of the password percent-encoded, as %2F for /?")

func mysqlDialector(dsn string) (gorm.Dialector, error) {
	config, err := mysqlConfig(dsn)
	if err != nil {
		return nil, err
	}
	connector, err := driver.NewConnector(config)
	if err != nil {
		return nil, err
	}
	return mysql.New(mysql.Config{Conn: sql.OpenDB(connector)}), nil
}

// mysqlConfig reads the driver's form of a DSN, and URLs:
//
//	mysql://user:password@host:3306/database?timeout=5s
//	mysql://user:password@localhost/database?socket=/run/mysqld/mysqld.sock
//	mysql://user:password@unix(/run/mysqld/mysqld.sock)/database
//
// In a URL special characters of the user's name and of the password are percent-encoded. The errors name no password.
func mysqlConfig(dsn string) (*driver.Config, error) {
	rest, isURL := strings.CutPrefix(dsn, "mysql://")
	if !isURL {
		return withDefaults(rest)
	}
	if regexp.MustCompile(addressInParentheses).MatchString(rest) {
		config, err := withDefaults(rest)
		if err != nil {
			return nil, err
		}
		var errUser, errPassword error
		config.User, errUser = url.PathUnescape(config.User)
		config.Passwd, errPassword = url.PathUnescape(config.Passwd)
		if errUser != nil || errPassword != nil {
			return nil, errNoURL
		}
		return config, nil
	}
	u, err := url.Parse(dsn)
	if err != nil || u.Fragment != "" { // a # can only be the password's
		return nil, errNoURL
	}
	name := strings.TrimPrefix(u.EscapedPath(), "/")
	if strings.Contains(name, "/") {
		return nil, errors.New("the mysql:// URL has more than a database's name after the host")
	}
	host, port := u.Hostname(), u.Port()
	if host == "" {
		host = "127.0.0.1"
	}
	if port == "" {
		port = "3306"
	}
	address := "tcp(" + net.JoinHostPort(host, port) + ")"
	var parameters []string
	for _, parameter := range strings.Split(u.RawQuery, "&") {
		if socket, found := strings.CutPrefix(parameter, "socket="); found {
			if socket, err = url.QueryUnescape(socket); err != nil {
				return nil, err
			}
			address = "unix(" + socket + ")"
			continue
		}
		parameters = append(parameters, parameter)
	}
	config, err := withDefaults(address + "/" + name + "?" + strings.Join(parameters, "&"))
	if err != nil {
		return nil, err
	}
	config.User = u.User.Username()
	config.Passwd, _ = u.User.Password()
	return config, nil
}

// withDefaults reads the driver's form of a DSN. Without interpolateParams a statement costs two round trips, as it is
// prepared first. What the DSN says itself comes later, and counts.
func withDefaults(dsn string) (*driver.Config, error) {
	end := max(strings.LastIndex(dsn, ")/"), strings.LastIndex(dsn, "@/")) + len(")/")
	name, parameters, _ := strings.Cut(dsn[end:], "?")
	parameters = strings.ReplaceAll(parameters, "/", "%2F") // the driver takes the last / for that before the name
	return driver.ParseDSN(dsn[:end] + name + "?parseTime=true&interpolateParams=true&" + strings.Trim(parameters, "&"))
}
