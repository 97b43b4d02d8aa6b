"""Checks the models that the Rust tests write: usage: check_models.py FOLDER

Every model must pass onnx.checker, with type and shape inference, and run in ONNX Runtime. The
models NAME.factors.onnx, NAME.pivoted.onnx and NAME.units.onnx have the outputs of NAME.onnx.
"""

import pathlib
import sys

import numpy
import onnx
import onnxruntime

# Dimensions that are not fixed.
ANY = 3
# Relative to the largest output; numbers of 16 bits are rounded in between.
TOLERANCES = {"float": 1e-5, "double": 1e-5, "float16": 2e-2}
# What ONNX Runtime does not run: products of `bfloat16`, and two nodes of one name.
NOT_RUN = ("storage_Bf16", "names_same")


def inputs_of(model):
    """Random inputs, the same for every model with these inputs."""
    random = numpy.random.default_rng(0)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        of_tensor = value.type.tensor_type
        shape = [dim.dim_value or ANY for dim in of_tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(of_tensor.elem_type)
        inputs[value.name] = random.standard_normal(shape).astype(dtype)
    return inputs


def outputs_of(path, inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs), [output.type for output in session.get_outputs()]


def main(folder):
    compared, checked = 0, 0
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        checked += 1
        name, _, form = path.stem.rpartition(".")
        if form not in ("factors", "pivoted", "units", "saved") or name.startswith(NOT_RUN):
            continue
        original = folder / f"{name}.onnx"
        inputs = inputs_of(onnx.load(original))
        expected, types = outputs_of(original, inputs)
        found, _ = outputs_of(path, inputs)
        for old, new, kind in zip(expected, found, types, strict=True):
            assert old.shape == new.shape, (path.name, old.shape, new.shape)
            tolerance = TOLERANCES[kind.removeprefix("tensor(").removesuffix(")")]
            error = numpy.abs(old.astype("f8") - new).max() / numpy.abs(old).max()
            assert error <= tolerance, f"{path.name}: relative error {error:.2e}"
        compared += 1
    assert compared > 100, f"only {compared} models were compared"
    print(f"{checked} models are valid; {compared} have the outputs of their originals in ONNX Runtime")


main(pathlib.Path(sys.argv[1]))
