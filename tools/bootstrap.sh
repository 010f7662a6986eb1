#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Make a virtual environment, after making sure that the system has what the build needs.
#
# Called by the Makefile. On Debian and Ubuntu, run by root, missing packages are installed;
# otherwise the line that installs them is printed and nothing is changed. No package with a
# service is installed: the tests' redis-server is the binary in redis-tools, under its own name.
#
#   bootstrap.sh venv DIR    system packages for the build, then the environment in DIR
#   bootstrap.sh extras DIR  programs that some tests run; without them those tests are skipped

set -eu

say() { echo "uffdswap: $*" >&2; }

python_is_new_enough() {
	"$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# The newest names come last: what the user calls python3 goes first.
find_python() {
	for name in ${PYTHON:-} python3 python3.11 python3.12 python3.13 python3.14; do
		if command -v "$name" >/dev/null 2>&1 && python_is_new_enough "$name"; then
			command -v "$name"
			return 0
		fi
	done
	return 1
}

include_file() { echo "#include <$1>" | cc -E - >/dev/null 2>&1; }

# Debian's package for a file of the interpreter's own: python3.12-dev for /usr/bin/python3.12.
python_package() {
	"$1" -c 'import sys; print("python%d.%d" % sys.version_info[:2])'
}

# Print the Debian packages that are missing for the build with interpreter $1.
missing_packages() {
	command -v cc >/dev/null 2>&1 && include_file stdio.h || echo gcc libc6-dev
	command -v pkg-config >/dev/null 2>&1 || echo pkg-config
	pkg-config --exists liblz4 2>/dev/null || echo liblz4-dev
	pkg-config --exists libxxhash 2>/dev/null || echo libxxhash-dev
	pkg-config --exists libcrypto 2>/dev/null || echo libssl-dev
	pkg-config --exists libzstd 2>/dev/null || echo libzstd-dev
	pkg-config --exists liburing 2>/dev/null || echo liburing-dev
	if [ -z "$1" ]; then # one that is too old is make_venv()'s to tell
		command -v python3 >/dev/null 2>&1 || echo python3 python3-venv python3-dev
		return
	fi
	"$1" -c 'import ensurepip, venv' 2>/dev/null || echo "$(python_package "$1")-venv"
	"$1" -c 'import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' ||
		echo "$(python_package "$1")-dev"
}

apt_install() {
	DEBIAN_FRONTEND=noninteractive
	export DEBIAN_FRONTEND
	apt-get -qq update >/dev/null
	# shellcheck disable=SC2068 # package names, one a word
	apt-get -qq -y --no-install-recommends install $@ >/dev/null
}

may_use_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; }

require_packages() {
	missing=$(missing_packages "$(find_python || true)" | tr '\n' ' ')
	[ -n "$missing" ] || return 0
	if may_use_apt; then
		say "installing $missing"
		# shellcheck disable=SC2086
		apt_install $missing
		missing=$(missing_packages "$(find_python || true)" | tr '\n' ' ')
		[ -n "$missing" ] || return 0
	fi
	say "the build needs packages that are missing here. Install them, then run make again:"
	say "  Debian, Ubuntu:  sudo apt-get install $missing"
	say "  Fedora:          sudo dnf install gcc pkgconf-pkg-config lz4-devel xxhash-devel openssl-devel libzstd-devel liburing-devel python3-devel"
	say "  Arch:            sudo pacman -S gcc pkgconf lz4 xxhash openssl zstd liburing python"
	exit 1
}

make_venv() {
	require_packages
	if ! python=$(find_python); then
		say "Python 3.11 or later is needed; python3 here is $(python3 -V 2>&1 || true)."
		say "Install one, and name it if it is not on the PATH: make PYTHON=/path/to/python3.12 ..."
		exit 1
	fi
	"$python" -m venv "$1"
	# 25.1 is the first pip that reads [dependency-groups].
	"$1/bin/python" -m pip --quiet --disable-pip-version-check install --upgrade 'pip>=25.1'
}

add_extras() {
	missing=""
	command -v stress-ng >/dev/null 2>&1 || missing="stress-ng"
	command -v redis-server >/dev/null 2>&1 || command -v redis-check-rdb >/dev/null 2>&1 ||
		missing="$missing redis-tools"
	if [ -n "$missing" ] && may_use_apt; then
		say "installing $missing for some tests"
		# shellcheck disable=SC2086
		apt_install $missing || say "could not install $missing: tests that need them are skipped"
	elif [ -n "$missing" ]; then
		say "tests that need $missing are skipped; to run them: sudo apt-get install $missing"
	fi
	# Server and checker are one program that goes by its name; redis-tools has no service.
	if ! command -v redis-server >/dev/null 2>&1 && command -v redis-check-rdb >/dev/null 2>&1; then
		ln -sf "$(command -v redis-check-rdb)" "$1/bin/redis-server"
	fi
}

case "${1:-}" in
venv) make_venv "$2" ;;
extras) add_extras "$2" ;;
*)
	echo "usage: bootstrap.sh venv|extras DIR" >&2
	exit 2
	;;
esac
