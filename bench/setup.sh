#!/bin/sh
# Makes ready what the benchmark needs beside internal/testdb/setup.sh: a Redis,
# which it starts itself. Debian's package redis-tools has the server without the
# system's service: redis-server is another name of redis-check-rdb.
# The benchmark does without Redis where it is not to be had.
set -eu

if command -v redis-server >/dev/null || command -v redis-check-rdb >/dev/null; then
	exit 0
fi
if [ "$(id -u)" = 0 ]; then
	as_root="env"
elif sudo -n true 2>/dev/null; then
	as_root="sudo -n env"
else
	as_root=
fi
if [ -z "$as_root" ] || ! command -v apt-get >/dev/null; then
	echo "setup: without redis-server the benchmark leaves out what runs on Redis" >&2
	exit 0
fi

echo "setup: installing the Debian package redis-tools"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { $as_root DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" </dev/null >>"$log" 2>&1; }
if ! apt update || ! apt install -y --no-install-recommends redis-tools; then
	cat "$log" >&2
	echo "setup: the installation failed; without Redis the benchmark leaves out what runs on it" >&2
fi
