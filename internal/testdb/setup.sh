#!/bin/sh
# Makes ready what the tests need: a C compiler for the SQLite driver,
# PostgreSQL's server programs, PgBouncer, and faketime, which sets a process's
# clock. (Some tests break a server, and so want one of their own even where
# DBMUTEX_TEST_DSN names one.)
# Installs what's missing on Debian and its kin; elsewhere it says what to install.
set -eu

# has_postgres looks where findBin in postgres.go looks.
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
PATH="$PATH:/usr/sbin" command -v pgbouncer >/dev/null || packages="$packages pgbouncer"
has_faketime || packages="$packages faketime"
has_compiler || packages="$packages gcc libc6-dev"
[ -n "$packages" ] || exit 0

if [ "$(id -u)" = 0 ]; then
	as_root="env"
elif sudo -n true 2>/dev/null; then
	as_root="sudo -n env"
else
	as_root=
fi
if [ -z "$as_root" ] || ! command -v apt-get >/dev/null; then
	echo "setup: the tests need what these Debian packages have, please install it:$packages" >&2
	exit 1
fi

echo "setup: installing Debian packages:$packages"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { $as_root DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" </dev/null >>"$log" 2>&1; }
# shellcheck disable=SC2086 # a list of words
if ! apt update || ! apt install -y --no-install-recommends $packages; then
	cat "$log" >&2
	echo "setup: the installation failed, please install:$packages" >&2
	exit 1
fi
