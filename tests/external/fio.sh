#!/usr/bin/env bash
# What fio wrote, it reads back and checks block by block: orders, sizes, engines, open flags. Every job is also checked
# after the volume was mounted anew from the store alone.
#
# Usage as in setup.sh. A unit is a job.
source "$(dirname "$0")/setup.sh"
setup fio "$@"

# name, options
jobs="
sequential   --rw=write --bs=1m
unaligned    --rw=write --bs=13000
random-4k    --rw=randwrite --bs=4k
mixed-sizes  --rw=randwrite --bsrange=512-128k --bs_unaligned
read-write   --rw=randrw --bs=16k --numjobs=4
overwrite    --rw=randwrite --bs=8k --overwrite=1 --loops=2
fsync        --rw=randwrite --bs=16k --fsync=8
sync         --rw=randwrite --bs=16k --sync=1
mmap         --rw=randwrite --bs=4k --ioengine=mmap
direct       --rw=randwrite --bs=64k --direct=1
libaio       --rw=randwrite --bs=16k --ioengine=libaio --iodepth=16 --direct=1
io_uring     --rw=randwrite --bs=16k --ioengine=io_uring --iodepth=16
four-jobs    --rw=randwrite --bs=4k --numjobs=4 --ioengine=libaio --iodepth=8
many-files   --rw=write --bs=4k --nrfiles=500 --filesize=16k --openfiles=16
"

size_of() {
    case $size.$1 in
    short.sync | short.fsync | short.many-files) echo 8M ;;
    short.read-write | short.four-jobs) echo 8M ;;
    short.*) echo 24M ;;
    long.sync) echo 64M ;;
    long.many-files) echo 8M ;;
    long.*) echo 1G ;;
    esac
}

run_fio() {
    local name=$1
    shift
    timeout --foreground 3600 fio --name="$name" --directory="$mnt/$name" --size="$(size_of "$name")" --ioengine=psync \
        --verify=crc32c --verify_fatal=1 --verify_state_save=0 --group_reporting "$@"
}

run_job() {
    local name=$1 log=$logs/$1
    shift
    mkdir "$mnt/$name"
    if ! run_fio "$name" --do_verify=1 "$@" >"$log" 2>&1 || grep -qiE 'verify: bad|verify failed' "$log"; then
        fail "$name" "$(grep -m3 -iE 'error|verify|err=' "$log" | cut -c -300)"
        return
    fi
    # Two overlapping passes over a file leave what only the process that wrote it knows.
    case $name in
    overwrite | read-write) ;;
    *)
        remount_from_the_store
        if ! run_fio "$name" --verify_only "$@" >"$log.again" 2>&1 ||
            grep -qiE 'verify: bad|verify failed' "$log.again"; then
            fail "$name" "after a remount: $(grep -m3 -iE 'error|verify|err=' "$log.again" | cut -c -300)"
            return
        fi
        ;;
    esac
    rm -rf "${mnt:?}/$name"
    pass
}

while read -r name options; do
    [ -n "$name" ] || continue
    if wanted "$name"; then
        need fio fio
        is_mounted || mount_fresh
        # shellcheck disable=SC2086
        run_job "$name" $options </dev/null
    fi
done <<<"$jobs"
finish
