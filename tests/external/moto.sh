#!/bin/sh
# Runs the object store contract against moto, an S3 server that nobody here wrote. Installs it on first use (Python's
# venv and pip; about a minute) into a cache folder outside the clone.
#
# moto checks neither signatures nor checksums; the contract needs neither. The tests that do are in tests/s3.rs.
# It ignores If-Match when a multipart upload is completed: that check is left out.
set -eu

cache=${GRAVITONFS_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/gravitonfs-tests}
venv=$cache/moto
here=$(cd "$(dirname "$0")/../.." && pwd)

if [ ! -x "$venv/bin/moto_server" ]; then
    mkdir -p "$cache"
    python3 -m venv "$venv"
    # A package index out of reach says nothing about this tree.
    "$venv/bin/pip" install --quiet 'moto[server]==5.2.*' || {
        echo "skipped: moto cannot be installed"
        exit 0
    }
fi

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
log=$(mktemp)
"$venv/bin/moto_server" -H 127.0.0.1 -p "$port" >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null; rm -f "$log"' EXIT INT TERM

endpoint=http://127.0.0.1:$port
tries=0
until curl -fsS -o /dev/null -X PUT "$endpoint/conformance" 2>/dev/null; do
    tries=$((tries + 1))
    if [ "$tries" -ge 100 ] || ! kill -0 "$server" 2>/dev/null; then
        cat "$log" >&2
        echo "moto did not start" >&2
        exit 1
    fi
    sleep 0.2
done

cd "$here"
GRAVITONFS_TEST_S3_ENDPOINT=$endpoint GRAVITONFS_TEST_S3_BUCKET=conformance \
    GRAVITONFS_TEST_S3_KEY=any GRAVITONFS_TEST_S3_SECRET=any \
    GRAVITONFS_TEST_S3_SKIP=a_large_object_replaces_the_expected_version_only \
    cargo test --test conformance external_s3 -- --nocapture
