#!/usr/bin/env bash
# Runs `cargo test` with the arguments given, says which ten tests took longest, and ends with the
# runner's own summaries.
#
# libtest measures tests only behind an unstable flag, which a stable toolchain takes where
# RUSTC_BOOTSTRAP is set. It is set for the test programs alone: build scripts look at it too, and
# cargo would build half of the dependencies anew.
set -uo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# The times go into the log, and what is shown is what libtest always shows.
cargo test --config "target.'cfg(all())'.runner = ['env', 'RUSTC_BOOTSTRAP=1']" "$@" \
    -- -Zunstable-options --report-time 2>&1 | tee "$log" | sed -u 's/ <[0-9.]*s>$//'
status=${PIPESTATUS[0]}

echo
echo "The ten slowest tests, in seconds:"
# "Running tests/it/main.rs (...)" names the program of the tests that follow.
awk '/^ +Running /  { program = $2 == "unittests" ? $3 : $2 }
     match($0, /<[0-9.]+s>$/) && $1 == "test" {
         printf "%9.2f  %s  %s\n", substr($0, RSTART + 1, RLENGTH - 3), program, $2
     }' "$log" | sort -rn | head -n 10
echo
grep -E '^SKIPPED |^ +Running |^test result: |^error: |^    `' "$log"
exit "$status"
