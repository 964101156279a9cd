package testdb

import (
	"gorm.io/driver/mysql"
	"gorm.io/gorm"
)

// mysqlKind is MySQL or MariaDB.
var mysqlKind = &Kind{
	Name:      "mysql",
	Remote:    true,
	dialector: mysql.Open,
	on:        func(pool gorm.ConnPool) gorm.Dialector { return mysql.New(mysql.Config{Conn: pool}) },
	past:      `UTC_TIMESTAMP(6) - INTERVAL 1 SECOND`,
}
