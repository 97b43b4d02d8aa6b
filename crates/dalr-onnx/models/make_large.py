"""Makes a model of 1 GB with external data, and inputs for it.

usage: make_large.py FOLDER

16 layers of 4096 × 4096 with residual connections and tanh; the weights have spectra that
decay, as those of trained networks do. Needs numpy and onnx. Writes large.onnx, large.onnx.data and
inputs.npy (320 samples).
"""

import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 4096
LAYERS = 16
SAMPLES = 320


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for number in range(LAYERS):
        # A random matrix with columns of falling size has a decaying spectrum.
        weight = random.standard_normal((SIZE, SIZE), np.float32)
        weight *= (np.arange(1, SIZE + 1, dtype=np.float32) ** -0.5)[random.permutation(SIZE)]
        name = f"layer{number}"
        weights.append(numpy_helper.from_array(weight, f"{name}.weight"))
        weights.append(numpy_helper.from_array(np.zeros(SIZE, np.float32), f"{name}.bias"))
        nodes.append(helper.make_node("MatMul", [value, f"{name}.weight"], [f"{name}.product"], name=name))
        nodes.append(helper.make_node("Add", [f"{name}.product", f"{name}.bias"], [f"{name}.sum"]))
        nodes.append(helper.make_node("Tanh", [f"{name}.sum"], [f"{name}.tanh"]))
        output = "y" if number == LAYERS - 1 else f"{name}.output"
        nodes.append(helper.make_node("Add", [value, f"{name}.tanh"], [output]))
        value = output
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", SIZE]) for name in "xy"]
    graph = helper.make_graph(nodes, "large", info[:1], info[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "large.onnx"
    (folder / "large.onnx.data").unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location="large.onnx.data")
    # Inputs of a domain: they vary in few directions.
    scale = (np.arange(1, SIZE + 1, dtype=np.float32) ** -0.7)[None, :]
    mixed = random.standard_normal((SAMPLES, SIZE), np.float32) * scale
    np.save(folder / "inputs.npy", mixed)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
