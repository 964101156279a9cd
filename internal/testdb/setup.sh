#!/bin/sh
# Makes ready what the tests need: a C compiler for the SQLite driver,
# the server programs of PostgreSQL and MariaDB, PgBouncer, faketime, which sets a
# process's clock, redis-server for contrib/asynq, and chromium for
# contrib/dashboard. (Some tests break a server, and so want one of their own
# even where the environment names one. A server that a package starts does not
# matter: tests start theirs, on ports of their own.)
# Installs what's missing on Debian and its kin; elsewhere it says what to install.
set -eu

# has_postgres looks where findPostgres in postgres.go looks.
has_postgres() {
	if [ -n "${DBMUTEX_TEST_PGBIN:-}" ]; then
		return 0
	fi
	initdb=$(command -v initdb || true)
	for bin in ${initdb:+"${initdb%/*}"} \
		/usr/lib/postgresql/*/bin \
		/usr/pgsql-*/bin \
		/usr/local/pgsql/bin \
		/opt/homebrew/opt/postgresql*/bin \
		/usr/local/opt/postgresql*/bin
	do
		if [ -x "$bin/initdb" ] && [ -x "$bin/pg_ctl" ] && [ -x "$bin/postgres" ]; then
			return 0
		fi
	done
	return 1
}

# has_mariadb looks where findMySQL in mysql.go looks.
has_mariadb() {
	[ -n "${DBMUTEX_TEST_MYSQLBIN:-}" ] || PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v mariadbd >/dev/null
}

# has_browser looks where findBrowser of contrib/dashboard/internal/browser looks.
has_browser() {
	for program in chromium chromium-browser google-chrome; do
		command -v "$program" >/dev/null && return 0
	done
	return 1
}

has_compiler() {
	compiler=$(go env CC)
	command -v "${compiler%% *}" >/dev/null
}

has_faketime() {
	for library in /usr/lib/*/faketime/libfaketime.so.1 /usr/lib/faketime/libfaketime.so.1 \
		/usr/lib64/faketime/libfaketime.so.1
	do
		[ -e "$library" ] && return 0
	done
	return 1
}

packages=
has_postgres || packages="$packages postgresql"
has_mariadb || packages="$packages mariadb-server"
PATH="$PATH:/usr/sbin" command -v pgbouncer >/dev/null || packages="$packages pgbouncer"
has_faketime || packages="$packages faketime"
command -v redis-server >/dev/null || packages="$packages redis-server"
has_browser || packages="$packages chromium"
has_compiler || packages="$packages gcc libc6-dev"
[ -n "$packages" ] || exit 0

# shellcheck disable=SC2086 # a list of words
exec "$(dirname "$0")/install.sh" $packages
