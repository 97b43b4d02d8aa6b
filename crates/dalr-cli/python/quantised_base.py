#!/usr/bin/env python3
"""Corrects a base that is quantised to 4 bits by an adapter, beside the closed form of QERA.

    quantised_base.py PROGRAM WEIGHTS.safetensors [--rank 16]

WEIGHTS is data/minilm_value.safetensors: a layer of MiniLM and real inputs. The blocks are those of GGUF's Q4_0: 32 weights of a row, one
scale in f16 and 4 bits each. The adapter approximates `original - dequantised` (recipe: docs/lora.md). QERA-exact (Zhang et al. 2024):
C = U_k S_k V_k' R^(-1/2), from the SVD of (original - dequantised) R^(1/2), with R the mean of x x' over the inputs.
"""
import argparse
import pathlib
import subprocess
import tempfile

import numpy
from safetensors.numpy import load_file, save_file

BLOCK = 32


def q4_0(weight):
    """Quantises to GGUF's Q4_0: the number of largest magnitude in a block becomes -8. Returns scales and codes."""
    blocks = weight.reshape(-1, BLOCK)
    largest = numpy.take_along_axis(blocks, numpy.abs(blocks).argmax(1)[:, None], 1)
    scales = (largest / -8).astype(numpy.float16)
    inverse = numpy.divide(1, scales, out=numpy.zeros_like(largest), where=scales != 0, dtype=numpy.float32)
    return scales, numpy.clip(numpy.floor(blocks * inverse + 8.5), 0, 15).astype(numpy.uint8)


def dequantised(scales, codes, shape):
    return ((codes.astype(numpy.float32) - 8) * scales.astype(numpy.float32)).reshape(shape)


def qera(residual, inputs, rank):
    moment = inputs.T @ inputs / len(inputs)
    values, vectors = numpy.linalg.eigh(moment)
    kept = values > values[-1] * 1e-10
    values, vectors = values[kept], vectors[:, kept]
    root, inverse = vectors * values**0.5 @ vectors.T, vectors * values**-0.5 @ vectors.T
    U, s, Vt = numpy.linalg.svd(residual @ root, full_matrices=False)
    return U[:, :rank] * s[:rank] @ Vt[:rank] @ inverse


def extract(program, folder, rank, calibration):
    options = ["--base", "base.safetensors", "--tuned", "original.safetensors", "--rank", str(rank), "--force", "-q", "-o", "correction"]
    subprocess.run([program, "lora", "extract", *options, *calibration], cwd=folder, check=True)
    factors = load_file(folder / "correction" / "adapter_model.safetensors")
    start = "base_model.model.layer.lora_"
    return factors[f"{start}B.weight"].astype(numpy.float64) @ factors[f"{start}A.weight"]


def compare(program, weight, calibration, held_out, rank):
    """Errors of the layer's outputs on the two sets of inputs, by method."""
    base = dequantised(*q4_0(weight), weight.shape)
    residual = weight.astype(numpy.float64) - base
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        save_file({"layer.weight": base}, folder / "base.safetensors")
        save_file({"layer.weight": weight}, folder / "original.safetensors")
        save_file({"layer.input": calibration.astype(numpy.float32)}, folder / "activations.safetensors")
        corrections = {
            "quantised": numpy.zeros_like(residual),
            "adapter, without data": extract(program, folder, rank, []),
            "adapter, with activations": extract(program, folder, rank, ["--calibration", "activations.safetensors"]),
            "QERA-exact": qera(residual, calibration, rank),
        }
    error = lambda correction, inputs: numpy.linalg.norm(inputs @ (residual - correction).T) / numpy.linalg.norm(inputs @ weight.T)
    return {name: [error(correction, inputs) for inputs in (calibration, held_out)] for name, correction in corrections.items()}


def show(title, errors):
    print(f"\n{title}\n\n| | error on the calibration data | on others |\n|---|---|---|")
    for name, (calibration, held_out) in errors.items():
        print(f"| {name} | {calibration:.4f} | {held_out:.4f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("weights", type=pathlib.Path)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    program = options.program.resolve()

    # Many samples: shrinkage vanishes, and the adapter is the closed form.
    rng = numpy.random.default_rng(0)
    weight = rng.standard_normal((192, 256)).astype(numpy.float32)
    inputs = rng.standard_normal((60000, 256)) * 0.97 ** numpy.arange(256) @ numpy.linalg.qr(rng.standard_normal((256, 256)))[0]
    many = compare(program, weight, inputs[:40000], inputs[40000:], options.rank)
    show(f"A random layer of 192 x 256, 40000 samples, rank {options.rank}", many)
    for adapter, closed in zip(many["adapter, with activations"], many["QERA-exact"]):
        assert abs(adapter - closed) < 2e-3 * closed, many
    assert many["adapter, with activations"][1] < 0.9 * many["adapter, without data"][1] < many["quantised"][1], many

    stored = load_file(options.weights)
    weight = (stored["weight"] * stored["weight.steps"][:, None]).astype(numpy.float32)
    inputs = stored["inputs"] * stored["inputs.steps"].astype(numpy.float64)
    few = compare(program, weight, inputs[:220], inputs[220:], options.rank)
    show(f"Value projection of MiniLM, 384 x 384, 220 tokens, rank {options.rank}", few)
    # Fewer samples than inputs: the closed form fits the samples, and shrinkage serves other data better.
    assert few["adapter, with activations"][1] < few["adapter, without data"][1] < few["quantised"][1], few
    assert few["adapter, with activations"][1] < few["QERA-exact"][1], few
    print("\nas good as the closed form")


if __name__ == "__main__":
    main()
