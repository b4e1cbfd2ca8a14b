#!/usr/bin/env bash
# System calls as POSIX has them: the pjdfstest of crates.io, all of its 398 cases, none skipped: a secondary filesystem
# is given for EXDEV, the mount is made read-only for EROFS, and the limit of links is told to it (pjdfstest_preload.c).
#
# Usage as in setup.sh; short and long are the same.
source "$(dirname "$0")/setup.sh"
setup pjdfstest "$@"

cases_expected=398

configure() {
    cat >"$work/pjdfstest.toml" <<TOML
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = $1
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
TOML
}

# The cases whose name contains one of the patterns, all without any; output goes to the log.
run_cases() {
    local other_filesystem=$work/other
    mkdir -p "$mnt/cases" "$other_filesystem"
    chmod 755 "$mnt/cases"
    timeout --foreground 900 env RUST_BACKTRACE=0 PATH="$work/bin:$PATH" LD_PRELOAD="$work/preload.so" \
        "$crate_program" -c "$work/pjdfstest.toml" -s "$other_filesystem" -p "$mnt/cases" "$@"
}

# Those that need a read-only mount run in a process of their own: others leave a file open for writing behind, and
# then no filesystem can be made read-only.
run_all() {
    configure false
    run_cases >"$logs/all" 2>&1 || true
    configure true
    run_cases erofs >"$logs/erofs" 2>&1 || true
    # What the first run skipped is in the second.
    grep -vE '::erofs_[a-z_]* +skipped$' "$logs/all" >"$logs/cases" || true
    cat "$logs/erofs" >>"$logs/cases"
}

count() {
    local name outcome cases=0 reason
    while read -r name outcome; do
        cases=$((cases + 1))
        case $outcome in
        ok) pass ;;
        *) if reason=$(excluded "$name"); then skip "$name" "$reason"; else
            fail "$name" "$outcome: $(grep -F -A1 "$name " "$logs/cases" | tail -n 1)"
        fi ;;
        esac
    done < <(sed -nE 's/^([a-z0-9_]+(::[a-z0-9_]+)+) +(ok|skipped|FAILED)$/\1 \3/p' "$logs/cases")
    if [ "$cases" != "$cases_expected" ]; then
        fail runner "$cases cases instead of $cases_expected: $(tail -n 3 "$logs/all")"
    fi
}

if wanted all; then
    need cc gcc libc6-dev
    # The suite links with it.
    [ -e /usr/include/sys/acl.h ] || need /usr/include/sys/acl.h libacl1-dev
    need_crate pjdfstest 0.2.2
    cc -O1 -Wall -Werror -shared -fPIC -o "$work/preload.so" "$here/pjdfstest_preload.c" -ldl
    # mount(8) would ask a helper program of the mount's type to remount; the kernel does it alone.
    mkdir "$work/bin"
    printf '#!/bin/sh\nexec %s -i "$@"\n' "$(command -v mount)" >"$work/bin/mount"
    chmod 755 "$work/bin/mount"
    mount_fresh
    run_all
    count
fi
finish
