#!/usr/bin/env bash
# Builds the wheel in a new environment and runs all tests. Needs a Rust toolchain with rustfmt and clippy, and Python 3.9 or later
# with PyPI or a mirror of it. Without PyTorch or transformers, the tests of these are skipped.
#
#   crates/dalr-py/test.sh              all tests
#   crates/dalr-py/test.sh -k lora      arguments of pytest
#   PYTHON=python3.12 crates/dalr-py/test.sh
set -euo pipefail
cd "$(dirname "$0")"
target=$PWD/../../target/python
export CARGO_TERM_COLOR=never CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$target} PIP_DISABLE_PIP_VERSION_CHECK=1 MYPY_CACHE_DIR=$target/mypy

cargo fmt --check
rm -rf "$target/environment"
"${PYTHON:-python3}" -m venv "$target/environment"
python=$target/environment/bin/python
"$python" -m pip install --quiet pytest mypy numpy tqdm maturin || { echo "skipped: Python packages cannot be installed here"; exit 0; }
"$python" -m pip install --quiet torch safetensors transformers peft || echo "skipped: PyTorch cannot be installed here"
# The environment's interpreter, as for the wheel: another one would compile everything twice.
PYO3_PYTHON=$python cargo clippy --quiet --release --all-targets -- -D warnings
"$python" -m pip install --quiet .
# The stubs have the names and signatures of the extension module, and programs can be typed.
"$python" -m mypy.stubtest dalr._dalr
if "$python" -c 'import torch' 2>/dev/null; then (cd tests && "$python" -m mypy --strict typed_program.py); fi
"$python" -m pytest -q "$@"
