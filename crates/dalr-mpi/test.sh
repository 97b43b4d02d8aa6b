#!/usr/bin/env bash
# Builds the package and runs its tests with 4 ranks over the loopback interface. Needs a Rust toolchain with rustfmt and
# clippy, Open MPI and libclang. Installs the latter two with apt-get if it may, and skips the tests otherwise.
set -euo pipefail
cd "$(dirname "$0")"
export CARGO_TERM_COLOR=never CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/../../target/mpi}

missing() {
  for command in mpirun mpicc; do
    command -v "$command" >/dev/null || printf '%s ' "$command"
  done
  # Packages install it in these places.
  compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || compgen -G '/usr/lib*/libclang*.so*' >/dev/null ||
    compgen -G '/usr/lib/*/libclang*.so*' >/dev/null || [ -n "${LIBCLANG_PATH:-}" ] || printf 'libclang'
}

install() {
  local sudo=
  [ "$(id -u)" = 0 ] || sudo="sudo -n"
  command -v apt-get >/dev/null && $sudo true 2>/dev/null || return 1
  $sudo apt-get install -y -qq libopenmpi-dev openmpi-bin libclang-dev >/dev/null 2>&1 ||
    { $sudo apt-get update -qq && $sudo apt-get install -y -qq libopenmpi-dev openmpi-bin libclang-dev; } >/dev/null 2>&1
}

if [ -n "$(missing)" ] && ! { install && [ -z "$(missing)" ]; }; then
  echo "skipped: MPI tests need $(missing)(apt-get install libopenmpi-dev openmpi-bin libclang-dev)"
  exit 0
fi
if ! mpirun --version | grep -q 'Open MPI'; then
  echo "skipped: MPI tests are written for Open MPI's mpirun, not for $(mpirun --version | head -1)"
  exit 0
fi

cargo fmt --check
cargo clippy --quiet --all-targets -- -D warnings
cargo build --quiet --tests
# Every job has a limit of its own; this one covers the rest. The ranks share few cores, so one test runs at a time.
timeout --kill-after=10 200 cargo test --quiet -- --test-threads=1
echo "MPI: all tests passed, 4 ranks over the loopback interface"
