#!/usr/bin/env bash
# Builds the package and runs its tests. Needs Rust with rustfmt and clippy, a C++ compiler, and the
# PyTorch that tch requires: either LIBTORCH_USE_PYTORCH=1 and that PyTorch in the default Python,
# or LIBTORCH with the folder of libtorch.
set -euo pipefail
cd "$(dirname "$0")"
export CARGO_TERM_COLOR=never CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/../../target/tch}

if [ -n "${LIBTORCH_USE_PYTORCH:-}" ]; then
  # Only Python knows the folders of its libraries.
  libraries=$(python3 -c '
import pathlib, torch
site = pathlib.Path(torch.__file__).parent.parent
print(":".join(str(path) for path in [site / "torch/lib", *site.glob("nvidia/*/lib")]))')
else
  libraries=${LIBTORCH:?set LIBTORCH_USE_PYTORCH=1, or LIBTORCH to the folder of libtorch}/lib
fi
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

cargo fmt --check
cargo clippy --quiet --all-targets -- -D warnings
if [ -z "${DALR_PROGRAM:-}" ]; then
  (cd ../.. && CARGO_TARGET_DIR=target cargo build --quiet --release -p dalr-cli)
  export DALR_PROGRAM=$PWD/../../target/release/dalr
fi
cargo test --quiet
echo "tch: all tests passed"
