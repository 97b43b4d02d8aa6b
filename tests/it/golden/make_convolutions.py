#!/usr/bin/env python3
"""Writes convolutions.json: outputs of PyTorch's convolutions.

    python3 -m venv venv && venv/bin/pip install torch numpy
    venv/bin/python tests/it/golden/make_convolutions.py
"""
import json
import pathlib

import torch
import torch.nn.functional as functional

GENERATOR = torch.Generator().manual_seed(17)


def random(*shape):
    """Multiples of 1/16, which JSON holds exactly."""
    return torch.randint(-32, 33, shape, generator=GENERATOR).float() / 16


def case(name, shape, out, kernel, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1, bias=True):
    """`padding` is above, left, below, right."""
    images = random(*shape)
    weight = random(out, shape[1] // groups, *kernel)
    offsets = random(out) if bias else None
    top, left, bottom, right = padding
    if (kernel[0], shape[2], top, bottom) == (1, 1, 0, 0) and left == right:
        # In one dimension.
        outputs = functional.conv1d(
            images[:, :, 0], weight[:, :, 0], offsets, stride[1], left, dilation[1], groups
        )[:, :, None]
    elif (top, left) == (bottom, right):
        outputs = functional.conv2d(images, weight, offsets, stride, (top, left), dilation, groups)
    else:
        padded = functional.pad(images, (left, right, top, bottom))
        outputs = functional.conv2d(padded, weight, offsets, stride, 0, dilation, groups)
    return {
        "name": name,
        "images": images.flatten().tolist(),
        "shape": list(shape),
        "weight": weight.flatten().tolist(),
        "bias": offsets.tolist() if bias else None,
        "out": out,
        "kernel": list(kernel),
        "stride": list(stride),
        "padding": list(padding),
        "dilation": list(dilation),
        "groups": groups,
        "outputs": outputs.flatten().tolist(),
        "output_size": list(outputs.shape[2:]),
    }


def main():
    cases = [
        case("plain", (2, 3, 6, 5), 4, (3, 3)),
        case("without bias", (1, 2, 5, 5), 3, (2, 4), bias=False),
        case("stride and padding", (2, 2, 7, 8), 3, (3, 3), stride=(2, 3), padding=(1, 2, 1, 2)),
        case("padding of each side", (1, 2, 5, 6), 3, (3, 2), padding=(0, 1, 2, 0)),
        case("dilation", (1, 2, 8, 9), 2, (3, 2), padding=(1, 1, 1, 1), dilation=(2, 3)),
        case("groups", (2, 4, 5, 5), 6, (3, 3), padding=(1, 1, 1, 1), groups=2),
        case("groups, 1 x 1", (2, 4, 3, 4), 4, (1, 1), groups=2),
        case("depthwise", (1, 3, 5, 4), 6, (3, 3), groups=3),
        case("1 x 1", (2, 5, 3, 4), 3, (1, 1)),
        case("1 x 1, stride", (1, 3, 5, 5), 2, (1, 1), stride=(2, 2)),
        case("one position", (3, 2, 4, 4), 3, (4, 4)),
        case("one dimension", (2, 3, 1, 11), 4, (1, 3), stride=(1, 2), padding=(0, 1, 0, 1), dilation=(1, 2)),
    ]
    path = pathlib.Path(__file__).with_name("convolutions.json")
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


main()
