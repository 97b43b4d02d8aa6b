#!/usr/bin/env bash
# Builds dalr's side, makes a Python environment of its own under target/, and compares. `lora.sh` sets other
# programs than the ones for whole layers.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --release --example "${EXAMPLE:-compress_matrices}"
environment=target/peers
[ -x "$environment/bin/python" ] || python3 -m venv "$environment"
"$environment/bin/python" -c 'import numpy, torch' 2>/dev/null || "$environment/bin/pip" install --quiet numpy torch
exec "$environment/bin/python" "benches/peers/${SCRIPT:-compare.py}" "$@"
