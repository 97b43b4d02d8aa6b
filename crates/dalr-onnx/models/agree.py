"""Checks a model by onnx.checker, and that ONNX Runtime and the embedded engine agree on it.

usage: agree.py RUN MODEL INPUTS

RUN is the example `run` of dalr-onnx. Needs numpy, onnx, onnxruntime and safetensors.
"""

import pathlib
import sys
import tempfile

import onnx

import measure

# The largest difference of an output, relative to the largest output.
TOLERANCE = 1e-3


def main(run, model, inputs):
    onnx.checker.check_model(str(model), full_check=True)
    runtime = measure.outputs(model, measure.batches(inputs))
    with tempfile.TemporaryDirectory() as folder:
        embedded = measure.embedded(run, model, inputs, pathlib.Path(folder))
    assert len(runtime) == len(embedded)
    largest = max(abs(sample).max() for sample in runtime)
    difference = measure.largest_difference(runtime, embedded) / largest
    print(f"{model}: the engines differ by {difference:.1e} of the largest output, on {len(runtime)} samples")
    if not difference < TOLERANCE:
        sys.exit(1)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*map(pathlib.Path, sys.argv[1:]))
