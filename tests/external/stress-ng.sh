#!/usr/bin/env bash
# The filesystem class of stress-ng and others of its stressors that work on files, each with its checks on; afterwards
# the daemon may not have kept memory, descriptors or files.
#
# Usage as in setup.sh. A unit is a stressor, or `leaks`, which is about all that ran before it. STRESS_SECONDS: for how
# long each runs (short: 2, long: 30).
source "$(dirname "$0")/setup.sh"
setup stress-ng "$@"

more="aio aiol hdd iomix mmap msync readahead revio seek sendfile splice tee"

# That many stressors at a time, with two workers each.
at_once=3

seconds=${STRESS_SECONDS:-$([ "$size" = short ] && echo 2 || echo 30)}

# What the daemon may hold beyond what it had before, after the kernel has forgotten all files. The number is what was
# seen and some room: with memory=64MiB the short form leaves 122 MiB resident.
memory_grown_max=$((200 << 20))

run_stressor() {
    local name=$1 log=$logs/$1 code=0
    mkdir "$mnt/$name" "$work/$name"
    (cd "$work/$name" && exec timeout --foreground $((seconds * 12 + 60)) \
        stress-ng --"$name" 2 --timeout "${seconds}s" --verify --temp-path "$mnt/$name" --metrics-brief) >"$log" 2>&1 ||
        code=$?
    echo "$code" >"$log.code"
    rm -rf "${mnt:?}/$name" || echo "stress-ng: fail: files could not be removed" >>"$log"
}

judge() {
    local name=$1 log=$logs/$1 code
    code=$(cat "$log.code")
    if grep -qE ' fail: ' "$log"; then
        fail "$name" "$(grep -m3 -E ' fail: ' "$log" | cut -c -300)"
    elif [ "$code" = 4 ] || [ "$code" = 3 ] || { [ "$code" = 0 ] && grep -q 'will be skipped' "$log"; }; then
        skip "$name" "$name: stress-ng says: $(grep -m1 -iE 'skip|not (implemented|supported|enough)' "$log" | cut -c -200)"
    elif [ "$code" = 0 ]; then
        pass
    else
        fail "$name" "exit code $code: $(grep -m3 -iE 'error' "$log" | cut -c -300)"
    fi
}

# Makes the kernel drop what it knows of files, so that the daemon may too.
forget_files() {
    "$program" sync "$mnt" >/dev/null
    sync
    echo 2 >/proc/sys/vm/drop_caches
    sleep 1
}

measure() {
    forget_files
    local pid
    pid=$(status_of pid)
    memory=$(awk '/^VmRSS:/ { print $2 * 1024 }' "/proc/$pid/status")
    descriptors=$(find "/proc/$pid/fd" -mindepth 1 | wc -l)
    files=$(status_of files)
    bytes=$(status_of logical_bytes)
    waiting=$(cat "/sys/fs/fuse/connections/$(stat -c %d "$mnt")/waiting" 2>/dev/null || echo 0)
    pending=$(($(status_of dirty_bytes) + $(status_of pending_upload_bytes)))
}

check_leaks() {
    local memory_before=$memory descriptors_before=$descriptors files_before=$files bytes_before=$bytes
    measure
    echo "memory $((memory_before >> 20)) MiB, then $((memory >> 20)) MiB; descriptors $descriptors_before, then" \
        "$descriptors; files $files_before, then $files; bytes $bytes_before, then $bytes; requests waiting: $waiting"
    if [ $((memory_before + memory_grown_max)) -lt "$memory" ]; then
        fail leaks "memory: $memory_before bytes, then $memory"
    elif [ $((descriptors_before + 8)) -lt "$descriptors" ]; then
        fail leaks "descriptors: $descriptors_before, then $descriptors"
    elif [ "$files_before $bytes_before" != "$files $bytes" ]; then
        fail leaks "files: $files_before with $bytes_before bytes, then $files with $bytes"
    elif [ "$waiting" != 0 ]; then
        fail leaks "$waiting requests were never answered"
    else
        pass
    fi
}

[ "$listing" = yes ] || need stress-ng stress-ng
names=$({ stress-ng --class 'filesystem?' 2>&1 | sed 's/.*: //' && echo "$more"; } | tr ' ' '\n' | sort -u)

started=()
for name in $names; do
    wanted "$name" || continue
    if ! is_mounted; then
        # Small, so that what is kept shows.
        mount_options=(-o memory=64MiB)
        mount_fresh
        measure
    fi
    started+=("$name")
    run_stressor "$name" &
    while [ "$(jobs -pr | wc -l)" -ge "$at_once" ]; do wait -n || true; done
done
wait
for name in "${started[@]}"; do judge "$name"; done
if wanted leaks && is_mounted; then
    check_leaks
fi
finish
