"""Writes the LeNet of lenet_digits.safetensors as ONNX, and the digits that calibrate it.

usage: export_lenet.py lenet_digits.safetensors lenet_digits.onnx digits.npz

Needs numpy, onnx and safetensors. The model takes 8 × 8 digits of grey values 0 to 16, of type
uint8, and enlarges them itself. `digits.npz` has the first 1000 digits, which the network was
fine-tuned on; the other 797 are for tests.
"""

import io
import sys
import zipfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open


def main(source, model_path, digits_path):
    with safe_open(source, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        train = int(file.metadata()["train"])
    weights, nodes = [], []

    def constant(name, array):
        weights.append(numpy_helper.from_array(array, name))
        return name

    def add(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def layer(name):
        bias = tensors[f"target.{name}.bias"]
        weight = tensors[f"target.{name}.weight"].reshape(len(bias), -1)
        return weight, constant(f"{name}.bias", bias)

    x = add("Cast", ["digits"], "grey", to=TensorProto.FLOAT)
    x = add("Div", [x, constant("whitest", np.float32(16))], "scaled")
    x = add("Unsqueeze", [x, constant("axis", np.array([1]))], "image")
    sizes = constant("scales", np.array([1, 1, 4, 4], np.float32))
    x = add("Resize", [x, "", sizes], "enlarged", mode="linear", coordinate_transformation_mode="half_pixel")
    for name, channels in [("conv1", 1), ("conv2", 6)]:
        weight, bias = layer(name)
        weight = constant(f"{name}.weight", weight.reshape(-1, channels, 5, 5))
        x = add("Conv", [x, weight, bias], name, kernel_shape=[5, 5])
        x = add("Relu", [x], f"{name}.relu")
        x = add("MaxPool", [x], f"{name}.pool", kernel_shape=[2, 2], strides=[2, 2])
    x = add("Flatten", [x], "features")
    for name in ["fc1", "fc2", "fc3"]:
        weight, bias = layer(name)
        x = add("Gemm", [x, constant(f"{name}.weight", weight), bias], name, transB=1)
        x = add("Relu", [x], f"{name}.relu") if name != "fc3" else x
    nodes[-1].output[0] = "scores"
    graph = helper.make_graph(
        nodes,
        "lenet_digits",
        [helper.make_tensor_value_info("digits", TensorProto.UINT8, ["n", 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, model_path)
    array = io.BytesIO()
    np.save(array, tensors["digits.images"][:train].reshape(train, 8, 8))
    # Without times, the file has the same bytes whenever it is made.
    with zipfile.ZipFile(digits_path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr(zipfile.ZipInfo("digits.npy"), array.getvalue(), zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
