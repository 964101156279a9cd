package server

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/go-sql-driver/mysql"
)

// MySQL is a MySQL or MariaDB server.
type MySQL struct {
	Version  string
	Settings string // those that bear on durability

	db        *sql.DB // one connection
	config    *mysql.Config
	databases int
	asked     int64 // how often Statements has
}

// NewMySQL connects to the server of a DSN without a database.
func NewMySQL(ctx context.Context, dsn string) (*MySQL, error) {
	config, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	m := &MySQL{db: db, config: config}
	err = db.QueryRowContext(ctx, `SELECT VERSION(), CONCAT('innodb_buffer_pool_size=', @@innodb_buffer_pool_size >> 20,
	'MB, innodb_doublewrite=', @@innodb_doublewrite, ', innodb_flush_log_at_trx_commit=', @@innodb_flush_log_at_trx_commit,
	', log_bin=', @@log_bin, ', sync_binlog=', @@sync_binlog)`).Scan(&m.Version, &m.Settings)
	return m, err
}

// Address is where clients find it.
func (m *MySQL) Address() string { return m.config.Addr }

// Place makes a fresh database and returns its DSN.
func (m *MySQL) Place(ctx context.Context) (string, error) {
	m.databases++
	config := m.config.Clone()
	config.DBName = fmt.Sprintf("bench_%d", m.databases)
	_, err := m.db.ExecContext(ctx, `CREATE DATABASE `+config.DBName)
	return config.FormatDSN(), err
}

// Remove drops the database of a DSN.
func (m *MySQL) Remove(ctx context.Context, dsn string) error {
	config, err := mysql.ParseDSN(dsn)
	if err == nil {
		_, err = m.db.ExecContext(ctx, `DROP DATABASE `+config.DBName)
	}
	return err
}

// Statements is how many it has run so far, without its own.
func (m *MySQL) Statements(ctx context.Context) (int64, error) {
	var name string
	var n int64
	err := m.db.QueryRowContext(ctx, `SHOW GLOBAL STATUS LIKE 'Questions'`).Scan(&name, &n)
	m.asked++
	return n - m.asked, err
}

// Through is a DSN of the server by way of a proxy.
func (m *MySQL) Through(dsn string, proxy *Proxy) string {
	config, err := mysql.ParseDSN(dsn)
	if err != nil {
		return dsn // for the driver to refuse
	}
	config.Addr = proxy.Addr()
	return config.FormatDSN()
}

// Close ends its own connection.
func (m *MySQL) Close() { _ = m.db.Close() }
