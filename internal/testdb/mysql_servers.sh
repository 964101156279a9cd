#!/bin/sh
# Unpacks MySQL 9.7 or MariaDB 11.8 from the packages of a newer Debian, libraries included, and prints the folder of its
# programs. The argument is mysql or mariadb. Nothing is installed, and the machine's own apt only says which mirror it uses.
set -eu
umask 022

case $1 in
mysql) suite=sid packages="mysql-server-core mysql-client-core" programs="mysqld mysql mysqladmin" ;;
mariadb)
	suite=trixie packages="mariadb-server-core mariadb-client-core"
	programs="mariadbd mariadb mariadb-install-db my_print_defaults resolveip"
	;;
esac

# Not in a home folder: root's is closed to the user that the servers run as.
folder=${TMPDIR:-/tmp}/dbmutex-mysql/$1
if [ -e "$folder/complete" ]; then
	echo "$folder/bin"
	exit
fi
echo "unpacking Debian's $packages ($suite) into $folder" >&2

# shellcheck disable=SC2016 # it is apt's format
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' |
	head -n 1) || :
if [ -z "$mirror" ]; then
	echo "$0: this needs a Debian machine that knows a mirror: apt-get update" >&2
	exit 1
fi

rm -rf "$folder"
apt=$folder/apt root=$folder/root
mkdir -p "$apt/etc/apt/apt.conf.d" "$apt/etc/apt/preferences.d" "$apt/var/lib/apt/lists/partial" \
	"$apt/var/cache/apt/archives/partial" "$root" "$folder/bin"
: >"$apt/status" # Nothing is installed, so that apt downloads every library.
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/etc/apt/sources.list"
{
	apt-config dump --no-empty | grep '^Acquire::' | grep -v IndexTargets # how the machine gets at the mirror
	echo "Dir \"$apt\"; Dir::State::status \"$apt/status\"; APT::Sandbox::User \"root\"; Acquire::Languages \"none\";"
} >"$apt/apt.conf"

apt() {
	APT_CONFIG=$apt/apt.conf apt-get "$@" </dev/null >"$apt/log" 2>&1 || {
		cat "$apt/log" >&2
		exit 1
	}
}
apt update
# shellcheck disable=SC2086 # a list of words
apt install -y --download-only --no-install-recommends $packages
for package in "$apt"/var/cache/apt/archives/*.deb; do
	dpkg -x "$package" "$root"
done
rm -rf "$apt"

# The folder looks like an installation, where the programs are scripts: they run the real ones with the loader and the
# libraries that they were made for.
ln -s bin "$folder/sbin"
ln -s root/usr/lib "$folder/lib"
ln -s root/usr/share "$folder/share"
loader=$(echo "$root"/usr/lib*/ld-linux-*.so.*)
libraries=$(echo "$root"/usr/lib/*-linux-gnu)
for program in $programs; do
	real=$(echo "$root"/usr/*bin/"$program") options=
	run="$loader --library-path $libraries $real"
	case $program in
	mysqld) options="--basedir=$folder --secure-file-priv=NULL" ;;
	mariadbd) options="--basedir=$folder" ;;
	mariadb-install-db) run=$real options="--basedir=$folder" ;;
	esac
	printf '#!/bin/sh\nexec %s "$@" %s\n' "$run" "$options" >"$folder/bin/$program"
	chmod +x "$folder/bin/$program"
done
touch "$folder/complete"
echo "$folder/bin"
