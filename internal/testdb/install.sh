#!/bin/sh
# Installs Debian packages, or says what to install and fails.
set -eu

if [ "$(id -u)" = 0 ]; then
	as_root="env"
elif sudo -n true 2>/dev/null; then
	as_root="sudo -n env"
else
	as_root=
fi
if [ -z "$as_root" ] || ! command -v apt-get >/dev/null; then
	echo "setup: please install what these Debian packages have: $*" >&2
	exit 1
fi

echo "setup: installing Debian packages: $*"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { $as_root DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" </dev/null >>"$log" 2>&1; }
if ! apt update || ! apt install -y --no-install-recommends "$@"; then
	cat "$log" >&2
	echo "setup: the installation failed, please install: $*" >&2
	exit 1
fi
