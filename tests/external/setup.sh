# Sourced by the suites of this folder: a fresh volume on a fresh mountpoint that is gone afterwards whatever happens,
# programs to test with, and results counted per unit. A suite calls `setup NAME "$@"`, lists its units, and runs those
# that `wanted` says:
#
#   SUITE short|long [UNIT...]    short is for CI; without units: all
#   SUITE units short|long        prints the units
#
# The last line printed is `NAME: N passed, N failed, N skipped`; exit 1 if anything failed. GRAVITONFS_TEST_BINARY
# names another binary than target/debug/gravitonfs (short: the tests have built it) or target/release/gravitonfs (long).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
clone=$(cd "$here/../.." && pwd)
cache=${GRAVITONFS_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/gravitonfs-tests}
passed=0 failed=0 skipped=0

setup() {
    suite=$1
    listing=no
    shift
    [ "${1:-}" != units ] || { listing=yes && shift; }
    size=${1:-short}
    case $size in short | long) ;; *) echo "usage: $0 [units] short|long [UNIT...]" >&2 && exit 2 ;; esac
    shift || true
    units=("$@")
    [ "$listing" = no ] || return 0
    if [ "$(id -u)" != 0 ] || [ ! -e /dev/fuse ]; then
        echo "$suite: needs root and /dev/fuse" >&2
        exit 2
    fi
    work=$(mktemp -d "${TMPDIR:-/tmp}/gravitonfs-$suite.XXXXXX")
    chmod 755 "$work"
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
    export GRAVITONFS_STATE_DIR=$work/state GRAVITONFS_CACHE_DIR=$work/cache
    mnt=$work/mnt
    logs=$work/logs
    mkdir "$mnt" "$logs"
    build
}

# True if this unit is to be run now; the listing of units is done here too.
wanted() {
    if [ "$listing" = yes ]; then
        echo "$1"
        return 1
    fi
    if [ ${#units[@]} -gt 0 ] && [[ " ${units[*]} " != *" $1 "* ]]; then
        return 1
    fi
    if reason=$(excluded "$1"); then
        skip "$1" "$reason"
        return 1
    fi
}

# The reason why a unit is not run: `UNIT: REASON` in exclude/SUITE.
excluded() {
    [ -e "$here/exclude/$suite" ] && grep -m1 "^$1: " "$here/exclude/$suite"
}

build() {
    if [ -n "${GRAVITONFS_TEST_BINARY:-}" ]; then
        program=$GRAVITONFS_TEST_BINARY
    elif [ "$size" = short ]; then
        (cd "$clone" && cargo build --quiet --locked)
        program=${CARGO_TARGET_DIR:-$clone/target}/debug/gravitonfs
    else
        (cd "$clone" && cargo build --quiet --locked --release)
        program=${CARGO_TARGET_DIR:-$clone/target}/release/gravitonfs
    fi
}

# Debian packages, if a command that they bring is missing: need COMMAND PACKAGE...
need() {
    command -v "$1" >/dev/null && return 0
    shift
    if ! command -v apt-get >/dev/null; then
        echo "$suite: install these and run again: $*" >&2
        exit 2
    fi
    apt-get -qq update &&
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null ||
        cannot_install "$*"
}

# A program of crates.io, built once into the cache folder with the versions its author tested.
need_crate() {
    local crate=$1 version=$2
    crate_program=$cache/$crate-$version/bin/$crate
    [ ! -x "$crate_program" ] || return 0
    CARGO_TARGET_DIR=$cache/target cargo install --quiet --locked --root "$cache/$crate-$version" "$crate@$version" ||
        cannot_install "$crate"
}

# A package index out of reach says nothing about this tree.
cannot_install() {
    skip all "all: $1 cannot be installed"
    finish
    exit 0
}

# Nothing stays mounted, whatever happens.
clean_up() {
    local status=$?
    trap - EXIT
    if is_mounted; then
        "$program" umount --timeout 60 "$mnt" >/dev/null 2>&1 || umount -l "$mnt" || true
    fi
    rm -rf --one-file-system "$work"
    exit "$status"
}

is_mounted() {
    grep -q " $mnt " /proc/self/mountinfo
}

# A new volume, mounted; arguments are those of `gravitonfs format`, mount options come from the array mount_options.
mount_options=()
mount_fresh() {
    ! is_mounted || unmount
    rm -rf "$work/volume" "$work/state" "$work/cache"
    mkdir "$work/volume" "$work/state" "$work/cache"
    "$program" format "file://$work/volume" "$@" >/dev/null
    mount_again
}

mount_again() {
    "$program" mount "file://$work/volume" "$mnt" "${mount_options[@]}" >/dev/null
}

unmount() {
    "$program" umount "$mnt" >/dev/null
    check_log
}

# As on another machine: nothing but the store is left.
remount_from_the_store() {
    unmount
    rm -rf "$work/state" "$work/cache"
    mkdir "$work/state" "$work/cache"
    mount_again
}

# A complaint of the daemon is a failure even if no program noticed.
check_log() {
    local log
    for log in "$work"/state/*/daemon.log; do
        [ -e "$log" ] || continue
        if grep -E ' (WARN|ERROR) ' "$log" >"$logs/complaints"; then
            fail "daemon" "$(head -c 2000 "$logs/complaints")"
            : >"$log"
        fi
    done
}

pass() {
    passed=$((passed + 1))
}

fail() {
    failed=$((failed + 1))
    printf 'FAILED %s: %s\n' "$1" "${2:-}"
}

skip() {
    skipped=$((skipped + 1))
    printf 'skipped %s\n' "${2:-$1}"
}

# A number of `gravitonfs status`.
status_of() {
    "$program" status --json "$mnt" | grep -o "\"$1\":[0-9]*" | cut -d: -f2
}

finish() {
    [ "$listing" = no ] || exit 0
    ! is_mounted || unmount
    echo "$suite: $passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
}
