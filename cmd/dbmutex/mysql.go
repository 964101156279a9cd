package main

import (
	"cmp"
	"database/sql"
	"errors"
	"net"
	"net/url"
	"strings"

	driver "github.com/go-sql-driver/mysql"
	"gorm.io/driver/mysql"
	"gorm.io/gorm"
)

const mysqlScheme = "mysql://"

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

// mysqlConfig reads a URL, whose parameters are the driver's, or socket=PATH.
func mysqlConfig(dsn string) (*driver.Config, error) {
	u, err := url.Parse(dsn)
	if err != nil || u.Fragment != "" { // a # can only be the password's
		return nil, errNoURL
	}
	address := "tcp(" + net.JoinHostPort(cmp.Or(u.Hostname(), "127.0.0.1"), cmp.Or(u.Port(), "3306")) + ")"
	// Without interpolateParams a statement costs two round trips, as it is prepared first. What the URL says counts.
	parameters := []string{"interpolateParams=true"}
	for _, parameter := range strings.Split(u.RawQuery, "&") {
		if socket, found := strings.CutPrefix(parameter, "socket="); found {
			if socket, err = url.QueryUnescape(socket); err != nil {
				return nil, err
			}
			address = "unix(" + socket + ")"
		} else if parameter != "" {
			// The driver takes the last / for that before the name.
			parameters = append(parameters, strings.ReplaceAll(parameter, "/", "%2F"))
		}
	}
	config, err := driver.ParseDSN(address + "/?" + strings.Join(parameters, "&"))
	if err != nil {
		return nil, err
	}
	config.User = u.User.Username()
	config.Passwd, _ = u.User.Password()
	config.DBName = strings.TrimPrefix(u.Path, "/")
	config.ParseTime = true
	return config, nil
}
