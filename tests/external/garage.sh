#!/bin/sh
# Runs the object store contract against Garage, if its binary is in the cache folder: building it takes long (5 minutes
# of processor time), so it is done by hand; it needs gcc and make:
#   cargo install garage --version 2.5.0 --locked --debug --no-default-features --features bundled-libs,sqlite \
#       --root "$cache/garage"
#
# Garage 2.5 ignores If-None-Match and If-Match, so the checks of conditional writes are left out: the probe is what
# protects a volume there, and it must answer "lease".
set -eu

cache=${GRAVITONFS_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/gravitonfs-tests}
garage=$cache/garage/bin/garage
here=$(cd "$(dirname "$0")/../.." && pwd)

if [ ! -x "$garage" ]; then
    echo "skipped: no garage binary at $garage"
    exit 0
fi

work=$(mktemp -d)
ports=$(python3 -c '
import socket
sockets = [socket.socket() for _ in range(3)]
[s.bind(("127.0.0.1", 0)) for s in sockets]
print(*(s.getsockname()[1] for s in sockets))')
set -- $ports
cat >"$work/garage.toml" <<TOML
metadata_dir = "$work/meta"
data_dir = "$work/data"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:$1"
rpc_public_addr = "127.0.0.1:$1"
rpc_secret = "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
[s3_api]
s3_region = "us-east-1"
api_bind_addr = "127.0.0.1:$2"
root_domain = ".s3.garage.localhost"
[admin]
api_bind_addr = "127.0.0.1:$3"
TOML

run() { "$garage" -c "$work/garage.toml" "$@"; }
# Not through the function: the shell would run that in a process of its own, and the trap would end only that one.
"$garage" -c "$work/garage.toml" server >"$work/log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true; rm -rf "$work"' EXIT INT TERM

tries=0
until node=$(run node id -q 2>/dev/null) && run status >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -ge 100 ] || ! kill -0 "$server" 2>/dev/null; then
        cat "$work/log" >&2
        echo "garage did not start" >&2
        exit 1
    fi
    sleep 0.2
done
run layout assign -z dc1 -c 10G "${node%%@*}" >/dev/null
run layout apply --version 1 >/dev/null
run key create test >"$work/key"
run bucket create conformance >/dev/null
run bucket allow --read --write --owner conformance --key test >/dev/null

cd "$here"
GRAVITONFS_TEST_S3_ENDPOINT=http://127.0.0.1:$2 GRAVITONFS_TEST_S3_BUCKET=conformance \
    GRAVITONFS_TEST_S3_KEY=$(sed -n 's/^Key ID: *//p' "$work/key") \
    GRAVITONFS_TEST_S3_SECRET=$(sed -n 's/^Secret key: *//p' "$work/key") \
    GRAVITONFS_TEST_S3_FENCING=lease \
    cargo test --test conformance external_s3 -- --nocapture
