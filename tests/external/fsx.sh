#!/usr/bin/env bash
# One file under random reads, writes, truncates, holes, zeroed ranges, mmap, copy_file_range, checked against memory at
# every read: the fsx of crates.io, with holes that are zeroed ranges now and then (fsx_preload.c).
#
# Usage as in setup.sh. A unit is BLOCKS.FILE.SEED: blocks of the default or the smallest size; a small file (256 KiB, many
# overlaps in few blocks), a page-aligned one (8 MiB) or a big one (32 MiB, many blocks and packs); BLOCKS.remount.SEED
# remounts the volume from the store alone, with empty state and cache directories, about every 1,000 operations.
source "$(dirname "$0")/setup.sh"
setup fsx "$@"

smallest_block=4K

# flen, largest operation, alignment, operations per reopen
profile() {
    case $1 in
    small) echo 262144 65536 1 50 ;;
    page) echo 8388608 262144 4096 50 ;;
    big) echo 33554432 1048576 1 50 ;;
    remount) echo 1048576 131072 1 100 ;;
    esac
}

operations() {
    case $size.$1 in
    short.big) echo 500 ;;
    short.remount) echo 3000 ;;
    short.*) echo 2000 ;;
    long.big) echo 2000 ;;
    long.*) echo 20000 ;;
    esac
}

# Weights add up to 50, so that one operation in 50 or 100 reopens the file.
write_config() {
    local flen=$1 largest=$2 align=$3 reopen_each=$4 allocate=2
    # Aligned sizes can become 0, which posix_fallocate refuses on every filesystem.
    [ "$align" = 1 ] || allocate=0
    cat >"$work/fsx.toml" <<TOML
flen = $flen
[opsize]
max = $largest
align = $align
[weights]
close_open = $(awk "BEGIN { print 50 / $reopen_each }")
read = 9
write = 9
mapread = 7
mapwrite = 7
invalidate = 1
truncate = 5
fsync = 0.5
fdatasync = 0.5
posix_fallocate = $allocate
punch_hole = 3
sendfile = 1
posix_fadvise = 1
copy_file_range = 4
TOML
}

# What runs at a remount, while fsx has the file closed; a function of this process, and so exported to it.
remount_checked() {
    local before after
    before=$(cksum <"$FSX_FILE")
    remount_from_the_store
    after=$(cksum <"$FSX_FILE")
    if [ "$before" != "$after" ]; then
        echo "content changed over the remount: $before, then $after"
        return 1
    fi
    if [ "$failed" != 0 ]; then
        return 1
    fi
    echo remounted
}

run_unit() {
    local unit=$1 blocks file seed log=$logs/$1
    IFS=. read -r blocks file seed <<<"$unit"
    local options=()
    [ "$blocks" = default ] || options=(--block-size "$smallest_block")
    mount_fresh "${options[@]}"
    # shellcheck disable=SC2046
    write_config $(profile "$file")
    local every=0
    [ "$file" != remount ] || every=10
    if timeout --foreground 3600 env RUST_BACKTRACE=0 LD_PRELOAD="$work/preload.so" FSX_FILE="$mnt/file" \
        FSX_REOPEN="bash $work/remount >>$log.remounts 2>&1" FSX_REOPEN_EVERY="$every" \
        "$crate_program" -q -f "$work/fsx.toml" -N "$(operations "$file")" -S "$seed" -P "$logs" "$mnt/file" \
        >"$log" 2>&1; then
        if [ "$file" = remount ] && ! grep -q '^remounted$' "$log.remounts"; then
            fail "$unit" "was not remounted once"
        else
            pass
        fi
    else
        fail "$unit" "$(grep -vE '^ *$|RUST_BACKTRACE' "$log" | tail -n 3; tail -n 3 "$log.remounts" 2>/dev/null)"
    fi
    unmount
}

# What finds most comes first: a long run that is stopped has done that.
units_of() {
    local blocks seed file
    case $size in
    short)
        for blocks in default smallest; do
            for seed in 1 2 3; do echo "$blocks.small.$seed"; done
            echo "$blocks.big.1"
            echo "$blocks.remount.1"
        done
        ;;
    long)
        for file in remount small; do
            for seed in $(seq 20); do
                for blocks in default smallest; do echo "$blocks.$file.$seed"; done
            done
        done
        for seed in 1 2 3 4; do
            for file in big page; do
                for blocks in default smallest; do echo "$blocks.$file.$seed"; done
            done
        done
        ;;
    esac
}

is_ready=no
prepare() {
    [ "$is_ready" = no ] || return 0
    is_ready=yes
    need cc gcc libc6-dev
    need_crate fsx 0.3.2
    cc -O1 -Wall -Werror -shared -fPIC -o "$work/preload.so" "$here/fsx_preload.c" -ldl
    # fsx runs a command; what it needs of this process goes there as text.
    {
        echo 'set -eu; unset LD_PRELOAD'
        declare -p suite work mnt logs program mount_options
        echo 'passed=0 failed=0 skipped=0'
        declare -f remount_checked remount_from_the_store unmount mount_again check_log fail
        echo remount_checked
    } >"$work/remount"
}

for unit in $(units_of); do
    if wanted "$unit"; then
        prepare
        run_unit "$unit"
    fi
done
finish
