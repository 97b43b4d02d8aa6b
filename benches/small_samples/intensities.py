#!/usr/bin/env python3
"""How much to shrink: held-out error over that of truncated SVD + BC, for several formulas, in plain NumPy terms.

    intensities.py FOLDER...        folders from `activations.py`; a Markdown table, median and worst of all layers

`odds` is the ridge in units of tr S / n; `d` the degrees of freedom. This is what the constants of
docs/mathematics.md, "How much to shrink", were chosen by.
"""
import collections
import math
import pathlib
import statistics
import sys

import torch
from safetensors.torch import load_file

FULL = 2.0**36
SEEDS = 3


def oracle_odds(trace, square, n, d):
    """Chen et al. 2010, eq. 23."""
    rho = ((1 - 2 / n) * square + trace**2) / ((d + 1 - 2 / n) * (square - trace**2 / n))
    return rho / (1 - rho) if rho < 1 else FULL


def share_outside(sample, directions):
    """Of the energy, outside of a randomised range (Halko, Martinsson and Tropp 2011, algorithm 4.1)."""
    probes = 2 * torch.rand(sample.shape[1], directions, generator=torch.Generator().manual_seed(0), dtype=sample.dtype) - 1
    basis = torch.linalg.qr(sample.T @ (sample @ probes))[0]
    return 1 - float((sample @ basis).square().sum() / sample.square().sum())


def candidates(sample):
    p, n = sample.shape
    trace = float(sample.square().sum()) / p
    square = float((sample @ sample.T).square().sum()) / p**2
    d = p - 1
    oracle, noise = oracle_odds(trace, square, n, d), n / d
    w = (min(1, n / d) + 8 / d) / 2

    def cautious(uncertain):
        return oracle ** (1 - w) * max(oracle, uncertain * n / (d - 8)) ** w if d > 8 and oracle < FULL else FULL

    return {
        "oracle approximating": oracle_odds(trace, square, n, p),
        "geometric mean": math.sqrt(oracle * noise),
        "all uncertain": cautious(1.0),
        "default": cautious(share_outside(sample, min(d // 2, 16))),
        "as large as the noise": noise,
    }


def main():
    ratios = collections.defaultdict(list)
    for path in sorted(path for folder in sys.argv[1:] for path in pathlib.Path(folder).glob("*.safetensors")):
        tensors = load_file(path)
        inputs, held_out = tensors["calibration"].double(), tensors["held_out"].double()
        mean = held_out.mean(0)
        # On the smaller side of the weight; the first of the layers that read this input.
        weight = next(tensors[name] for name in sorted(tensors) if name.endswith(".weight")).double()
        weight = torch.linalg.qr(weight)[1] if len(weight) > weight.shape[1] else weight
        outputs = (held_out - mean) @ weight.T
        truth, plain = outputs.T @ outputs / len(outputs), weight @ weight.T
        n, m = inputs.shape[1], len(weight)
        for p in (8, 16, 32, 128, 512):
            for order in ("at random", "consecutive"):
                for seed in range(SEEDS):
                    generator = torch.Generator().manual_seed(1000 * seed + p)
                    start = int(torch.randint(len(inputs) - p, (1,), generator=generator))
                    rows = torch.randperm(len(inputs), generator=generator)[:p] if order == "at random" else slice(start, start + p)
                    sample = inputs[rows]
                    shift = weight @ (mean - sample.mean(0))
                    sample = sample - sample.mean(0)
                    trace = float(sample.square().sum()) / p
                    seen = sample @ weight.T
                    seen = seen.T @ seen / p

                    def errors(matrix):
                        vectors = torch.linalg.eigh(matrix)[1].flip(1)
                        for share in (0.1, 0.25, 0.5):
                            basis = vectors[:, : round(m * share)]
                            kept = ((truth @ basis) * basis).sum() + (basis.T @ shift).square().sum()
                            yield math.sqrt(truth.trace() + shift.square().sum() - kept)

                    base = list(errors(plain))
                    for name, odds in candidates(sample).items():
                        ours = errors(seen + odds * trace / n * plain)
                        ratios[p, order, name] += [error / svd for error, svd in zip(ours, base)]
    names = list(dict.fromkeys(name for _, _, name in ratios))
    print("| samples | drawn |", " | ".join(names), "|\n|---|---|" + "---|" * len(names))
    for p, order in dict.fromkeys(key[:2] for key in ratios):
        cells = (f"{statistics.median(ratios[p, order, name]):.3f}, {max(ratios[p, order, name]):.3f}" for name in names)
        print(f"| {p} | {order} |", " | ".join(cells), "|")


main()
