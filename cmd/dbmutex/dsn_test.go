package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheErrorOfADSNNamesNoPassword(t *testing.T) {
	for _, dsn := range []string{
		"mysql://anna:secret/secret@localhost/app", "mysql://anna:secret%zz@localhost/app",
		"mysql://anna:secret@localhost:secret/app", "mysql://anna:x@secret?#@localhost/app",
		"oracle://anna:secret@localhost/app", "anna:secret@tcp(localhost)/app",
	} {
		_, err := dialector(dsn, false)
		require.Error(t, err, dsn)
		require.NotContains(t, err.Error(), "secret")
	}
}

func TestAMySQLURLIsRead(t *testing.T) {
	config, err := mysqlConfig("mysql://anna:a%40b%2Fc@db.example/my%20app?loc=Asia/Tokyo&socket=/run/a.sock&timeout=5s")
	require.NoError(t, err)
	require.Equal(t, "anna", config.User)
	require.Equal(t, "a@b/c", config.Passwd)
	require.Equal(t, "unix", config.Net)
	require.Equal(t, "/run/a.sock", config.Addr)
	require.Equal(t, "my app", config.DBName)
	require.Equal(t, "Asia/Tokyo", config.Loc.String())
	require.True(t, config.ParseTime)
	require.True(t, config.InterpolateParams)
	for url, address := range map[string]string{
		"mysql://anna@[::1]:3307/app": "[::1]:3307", "mysql://anna@db.example/app": "db.example:3306",
		"mysql:///app": "127.0.0.1:3306",
	} {
		config, err := mysqlConfig(url)
		require.NoError(t, err)
		require.Equal(t, address, config.Addr)
	}
}
