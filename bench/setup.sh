#!/bin/sh
# Makes ready what the benchmark needs beside internal/testdb/setup.sh: a Redis,
# which it starts itself. Debian's package redis-tools has the server without the
# system's service: redis-server is another name of redis-check-rdb.
# The benchmark does without Redis where it is not to be had.
set -eu

if command -v redis-server >/dev/null || command -v redis-check-rdb >/dev/null; then
	exit 0
fi
"$(dirname "$0")/../internal/testdb/install.sh" redis-tools ||
	echo "setup: without redis-server the benchmark leaves out what runs on it" >&2
