#!/usr/bin/env bash
# Builds the package and runs its tests. Needs rustfmt and clippy, and a Rust toolchain that burn
# supports; skips with an older one.
set -euo pipefail
cd "$(dirname "$0")"
export CARGO_TERM_COLOR=never CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/../../target/burn}

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
found=$(rustc --version | cut -d ' ' -f 2)
if [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -1)" != "$wanted" ]; then
  echo "skipped: burn needs Rust $wanted, this is $found"
  exit 0
fi

cargo fmt --check
cargo clippy --quiet --all-targets -- -D warnings
timeout --kill-after=10 900 cargo test --quiet
echo "burn: all tests passed"
