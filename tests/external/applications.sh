#!/usr/bin/env bash
# Programs that many rely on, doing their daily work on a mount; afterwards their own checkers look at what is there, and
# again after the volume was mounted anew from the store alone.
#
# Usage as in setup.sh. A unit is an application.
source "$(dirname "$0")/setup.sh"
setup applications "$@"

seconds=${APPLICATION_SECONDS:-$([ "$size" = short ] && echo 5 || echo 600)}

# Runs a check of a unit; what it prints is shown if it fails.
check() {
    local unit=$1
    shift
    if ! ("$@") >>"$logs/$unit" 2>&1; then
        fail "$unit" "$*: $(tail -n 5 "$logs/$unit")"
        return 1
    fi
}

dbench_works() {
    mkdir "$mnt/dbench"
    check dbench timeout --foreground $((seconds * 3 + 120)) dbench -c /usr/share/dbench/client.txt -D "$mnt/dbench" -t "$seconds" 4 &&
        check dbench sh -c "! grep -E 'failed|ERROR' '$logs/dbench'" &&
        pass
    rm -rf "$mnt/dbench"
}

# Two writers and a reader share one database in WAL mode, which needs shared memory and byte-range locks.
sqlite_writer() {
    local writer=$1 until=$((SECONDS + seconds)) count=0
    while [ "$SECONDS" -lt "$until" ]; do
        count=$((count + 1))
        sqlite3 -cmd '.timeout 60000' "$mnt/sqlite/db" "
            begin immediate;
            insert into log select $writer, $count, hex(randomblob(200));
            update total set n = n + 1 where writer = $writer;
            commit;" >/dev/null || return 1
    done
    echo "$count" >"$work/sqlite.$writer"
}

sqlite_is_whole() {
    local wanted=$(($(cat "$work/sqlite.1") + $(cat "$work/sqlite.2")))
    [ "$(sqlite3 "$mnt/sqlite/db" 'pragma integrity_check')" = ok ] &&
        [ "$(sqlite3 "$mnt/sqlite/db" 'select count(*) from log')" = "$wanted" ] &&
        [ "$(sqlite3 "$mnt/sqlite/db" 'select sum(n) from total')" = "$wanted" ]
}

sqlite_works() {
    local first second ok=yes
    mkdir "$mnt/sqlite"
    [ "$(sqlite3 "$mnt/sqlite/db" 'pragma journal_mode = wal')" = wal ] || ok=no
    sqlite3 "$mnt/sqlite/db" 'create table log (writer, count, data); create index by_data on log (data);
        create table total (writer, n); insert into total values (1, 0), (2, 0);'
    sqlite_writer 1 >>"$logs/sqlite" 2>&1 & first=$!
    sqlite_writer 2 >>"$logs/sqlite" 2>&1 & second=$!
    wait "$first" || ok=no
    wait "$second" || ok=no
    if [ "$ok" = no ]; then
        fail sqlite "$(tail -n 3 "$logs/sqlite")"
    elif check sqlite sqlite_is_whole && remount_from_the_store && check sqlite sqlite_is_whole; then
        pass
    fi
    rm -rf "$mnt/sqlite"
}

# Several checkouts of one repository at a time, each by several workers; then switches between versions.
git_prepare() {
    local part
    git init -q -b main "$work/origin"
    for part in 1 2 3 4; do
        mkdir "$work/origin/$part"
        cp -r "$clone/src" "$clone/tests" "$clone/docs" "$work/origin/$part/"
        # git keeps no empty directories, and the checkouts are compared with this one.
        find "$work/origin/$part" -type d -empty -delete
        git -C "$work/origin" add -A
        git -C "$work/origin" -c user.name=test -c user.email=test@example.org commit -q -m "part $part"
        git -C "$work/origin" branch "part-$part"
    done
}

git_checkout() {
    local tree=$mnt/git/tree.$1
    git -C "$mnt/git/repository" worktree add -q --detach "$tree" "origin/part-4" &&
        git -C "$tree" -c checkout.workers=4 -c checkout.thresholdForParallelism=1 checkout -q "origin/part-$1" &&
        git -C "$tree" -c checkout.workers=4 -c checkout.thresholdForParallelism=1 checkout -q "origin/part-4" &&
        [ -z "$(git -C "$tree" status --porcelain)" ] &&
        diff -r --exclude=.git "$tree" "$work/origin"
}

git_round() {
    local tree running=()
    for tree in 1 2 3; do
        git_checkout "$tree" &
        running+=($!)
    done
    for tree in "${running[@]}"; do wait "$tree" || return 1; done
}

git_is_whole() {
    git -C "$mnt/git/repository" fsck --full --strict && diff -r --exclude=.git "$mnt/git/tree.1" "$work/origin"
}

git_works() {
    local until=$((SECONDS + seconds)) ok=yes
    check git git_prepare || return 0
    mkdir "$mnt/git"
    check git git clone -q "$work/origin" "$mnt/git/repository" || return 0
    while :; do
        check git git_round || return 0
        check git git -C "$mnt/git/repository" gc -q || return 0
        [ "$SECONDS" -lt "$until" ] || break
        rm -rf "$mnt"/git/tree.*
        git -C "$mnt/git/repository" worktree prune
    done
    if check git git_is_whole && remount_from_the_store && check git git_is_whole; then
        pass
    fi
    rm -rf "$mnt/git"
}

as_postgres() {
    runuser -u postgres -- env PATH="$postgres_bin:$PATH" PGHOST="$work/socket" PGPORT=54321 PGDATABASE=postgres "$@"
}

postgres_start() {
    as_postgres pg_ctl -s -w -t 120 -D "$mnt/postgres" -l "$work/socket/log" \
        -o "-c listen_addresses= -c unix_socket_directories=$work/socket -c port=54321 -c restart_after_crash=off" start
}

# Commits numbers one by one and notes each that was acknowledged.
postgres_ledger() {
    local number=0
    while [ ! -e "$work/socket/stop" ]; do
        number=$((number + 1))
        as_postgres psql -qX -c "insert into ledger values ($number)" >/dev/null 2>&1 || continue
        echo "$number" >>"$work/ledger"
    done
}

# All processes at once, as a crash of the machine would end them.
postgres_kill() {
    local postmaster
    postmaster=$(head -n 1 "$mnt/postgres/postmaster.pid")
    # Stopped first, so that it cannot start others meanwhile.
    kill -STOP "$postmaster"
    # shellcheck disable=SC2046
    kill -KILL $(pgrep -P "$postmaster") "$postmaster"
    while kill -0 "$postmaster" 2>/dev/null; do sleep 0.1; done
}

postgres_is_whole() {
    local lost sums
    as_postgres pg_amcheck --install-missing --heapallindexed --parent-check --database=postgres || return 1
    sums=$(as_postgres psql -qXAt -c "select (select sum(abalance) from pgbench_accounts) =
        (select sum(bbalance) from pgbench_branches) and (select sum(bbalance) from pgbench_branches) =
        (select sum(tbalance) from pgbench_tellers) and (select sum(bbalance) from pgbench_branches) =
        (select coalesce(sum(delta), 0) from pgbench_history)")
    echo "sums agree: $sums"
    [ "$sums" = t ] || return 1
    as_postgres psql -qXAt -c 'select number from ledger' | sort >"$work/ledger.found"
    lost=$(sort "$work/ledger" | comm -23 - "$work/ledger.found")
    echo "acknowledged: $(wc -l <"$work/ledger"), lost: $lost"
    [ -z "$lost" ]
}

postgres_works() {
    local ledger bench
    mkdir "$mnt/postgres" "$work/socket"
    chmod 700 "$mnt/postgres"
    chown postgres "$mnt/postgres" "$work/socket"
    : >"$work/ledger"
    check postgres as_postgres initdb -D "$mnt/postgres" -k -E UTF8 --locale=C || return 0
    check postgres postgres_start || return 0
    check postgres as_postgres pgbench -i -q -s "$([ "$size" = short ] && echo 1 || echo 20)" || return 0
    as_postgres psql -qX -c 'create table ledger (number integer primary key)'
    postgres_ledger & ledger=$!
    as_postgres pgbench -c 4 -j 2 -T $((seconds + 30)) >>"$logs/postgres" 2>&1 & bench=$!
    sleep "$seconds"
    postgres_kill
    touch "$work/socket/stop"
    wait "$ledger" || true
    wait "$bench" || true
    if ! check postgres postgres_start; then
        tail -n 5 "$work/socket/log"
        return 0
    fi
    check postgres postgres_is_whole || return 0
    check postgres as_postgres pg_ctl -s -w -m fast -D "$mnt/postgres" stop || return 0
    remount_from_the_store
    check postgres postgres_start || return 0
    if check postgres postgres_is_whole; then
        pass
    fi
    as_postgres pg_ctl -s -w -m fast -D "$mnt/postgres" stop
    rm -rf "$mnt/postgres"
}

prepare() {
    case $1 in
    dbench) need dbench dbench ;;
    sqlite) need sqlite3 sqlite3 ;;
    git) need git git ;;
    postgres)
        postgres_found() {
            postgres_bin=$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
            [ -n "$postgres_bin" ]
        }
        need pgrep procps
        if ! postgres_found; then
            # No server of the machine's own shall come with it.
            need pg_createcluster postgresql-common
            sed -i 's/^#*create_main_cluster *=.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
            need initdb postgresql
            postgres_found
        fi
        # It runs as a user of its own.
        mount_options=(-o allow_other)
        ;;
    esac
}

for unit in dbench sqlite git postgres; do
    if wanted "$unit"; then
        prepare "$unit"
        mount_fresh
        "${unit}_works"
        ! is_mounted || unmount
    fi
done
finish
