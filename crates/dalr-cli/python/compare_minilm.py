#!/usr/bin/env python3
"""Compresses all-MiniLM-L6-v2 by published algorithms in PyTorch, with the texts and the uniform ranks of `examples/minilm`.

    compare_minilm.py RESULTS.json MODEL_FOLDER data.noun [--keep 0.8 0.6 0.4 0.3] [--draws 1 2 3]
    compare_minilm.py RESULTS.json      prints the table of the results in the file

The quality is the mean cosine between original and compressed embeddings of 1000 definitions that calibration did not see.
All methods keep the biases. Factors are computed in float64; the network runs in float32.

- SVD-LLM (Wang et al. 2024): the SVD of W S, with S the Cholesky factor of the uncentred second moment of the inputs.
- AA-SVD (Sinha and Fleuret 2026), its objective for one layer: minimises |W X - C X'|^2, with X' the inputs that the network
  compressed so far produces. Layers are compressed in the order of execution, those with a shared input together. The
  refinement of whole blocks by gradients, which is part of AA-SVD, is left out. There is no ridge unless the second moment is
  singular; then it is the smallest of 1e-6, 1e-5, ... of the mean diagonal entry that the Cholesky factorization accepts.
- The same with the ridge of `dalr` for such inputs: lambda |W - C|^2, with lambda 0.1 of the mean diagonal entry.

Every method runs in a process of its own for each draw, so that its peak memory is its own. The seconds are those of one
compression, from texts to factors. SVD-LLM calibrates and decomposes once for all budgets, so its seconds are the same for all.
On a busy machine `--threads 1` is faster than two threads, which wait for each other.
"""

import argparse
import copy
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections import defaultdict

import torch
from safetensors.torch import load_file

import minilm_texts
from collect_minilm import READERS, Model
from evaluate_minilm import CALIBRATION, HELD_OUT, cosine

sys.path.append(str(pathlib.Path(__file__).parents[3] / "benches" / "peers"))
from compare import whitening

BATCH = 64
RANK_MULTIPLE = 8


def names(block, place):
    return [f"encoder.layer.{block}.{reader}" for reader in READERS[place]]


def uniform_ranks(tensors, layers, keep):
    """The largest ranks for one fraction of every layer that keep the whole within its budget, as `Allocator` of dalr finds them.

    The fraction can be above `keep`, because rounding ranks down leaves parameters over.
    """
    shapes = {layer: tensors[f"{layer}.weight"].shape for layer in layers}

    def parameters(layer, rank):
        m, n = shapes[layer]
        return rank * (m + n) + m if rank else m * n + m

    # Rank 0 stands for the original layer, which comes last.
    candidates = {}
    for layer, shape in shapes.items():
        saving = [rank for rank in range(RANK_MULTIPLE, min(shape) + 1, RANK_MULTIPLE) if parameters(layer, rank) < parameters(layer, 0)]
        candidates[layer] = [*saving, 0]

    def chosen(fraction):
        affordable = {layer: fraction * parameters(layer, 0) for layer in layers}
        return {
            layer: next((rank for rank in reversed(candidates[layer]) if parameters(layer, rank) <= affordable[layer]), candidates[layer][0])
            for layer in layers
        }

    def cost(ranks):
        return sum(parameters(layer, rank) for layer, rank in ranks.items())

    limit = keep * sum(parameters(layer, 0) for layer in layers)
    fractions = {parameters(layer, rank) / parameters(layer, 0) for layer in layers for rank in candidates[layer]}
    ranks = next((ranks for ranks in map(chosen, sorted(fractions, reverse=True)) if cost(ranks) <= limit), None)
    if ranks is None:
        raise ValueError(f"{keep} of the parameters is below the smallest possible budget")
    return {layer: rank for layer, rank in ranks.items() if rank}, cost(ranks)


def decompose(target, root):
    """The factors of target / (root root'), full rank, to be truncated: the best in the norm of C root."""
    left, values, right = torch.linalg.svd(torch.linalg.solve_triangular(root, target.mT, upper=False).mT, full_matrices=False)
    balance = values.sqrt()
    return left * balance, balance[:, None] * torch.linalg.solve_triangular(root, right, upper=False, left=False)


def replace(tensors, layer, factors, rank):
    """Puts two factors in place of a layer."""
    up, down = (factor.float().contiguous() for factor in (factors[0][:, :rank], factors[1][:rank]))
    del tensors[f"{layer}.weight"]
    tensors |= {f"{layer}.0.weight": down, f"{layer}.1.weight": up, f"{layer}.1.bias": tensors.pop(f"{layer}.bias")}


def svd_llm(model, texts, budgets):
    """Yields the compressed tensors for each set of ranks, the seconds, and the largest relative shift."""
    started = time.perf_counter()
    moments = defaultdict(float)

    def read(block, place, inputs):
        inputs = inputs.double()
        moments[block, place] += inputs.T @ inputs

    model.embed(texts, read, BATCH)
    factors, largest = {}, 0.0
    for (block, place), moment in moments.items():
        root, shift = whitening(moment)
        largest = max(largest, shift / moment.diagonal().mean().item())
        for layer in names(block, place):
            factors[layer] = decompose(model.tensors[f"{layer}.weight"].double() @ moment, root)
    seconds = time.perf_counter() - started
    for ranks in budgets:
        tensors = dict(model.tensors)
        for layer, rank in ranks.items():
            replace(tensors, layer, factors[layer], rank)
        yield tensors, seconds, largest


def aa_svd(model, texts, budgets, ridge=0.0):
    for ranks in budgets:
        started = time.perf_counter()
        compressed, largest = copy.copy(model), 0.0
        compressed.tensors = dict(model.tensors)
        starts = [model.start(texts[first : first + BATCH]) for first in range(0, len(texts), BATCH)]
        states = [(state, state, mask) for state, mask in starts]
        for block in range(model.blocks):
            # The blocks stop before each place, so that the layers behind it run compressed.
            runs = [(model.block(block, one, mask), compressed.block(block, other, mask), mask) for one, other, mask in states]
            for place in READERS:
                moment = cross = 0.0
                for one, other, mask in runs:
                    original, inputs = (next(run)[1][mask].double() for run in (one, other))
                    moment = moment + inputs.T @ inputs
                    cross = cross + original.T @ inputs
                scale = moment.diagonal().mean().item()
                shift = ridge * scale * torch.eye(len(moment), dtype=moment.dtype)
                root, more = whitening(moment + shift)
                largest = max(largest, more / scale)
                for layer in names(block, place):
                    if layer in ranks:
                        target = model.tensors[f"{layer}.weight"].double() @ (cross + shift)
                        replace(compressed.tensors, layer, decompose(target, root), ranks[layer])
            states = [(next(one)[1], next(other)[1], mask) for one, other, mask in runs]
        yield compressed.tensors, time.perf_counter() - started, largest


METHODS = {
    "SVD-LLM": svd_llm,
    "AA-SVD's objective": aa_svd,
    "AA-SVD's objective, ridge 0.1": lambda *arguments: aa_svd(*arguments, ridge=0.1),
}


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@torch.no_grad()
def measure(method, draw, options):
    """The results of one method on one draw of the calibration texts."""
    torch.set_num_threads(options.threads)
    model = Model(load_file(options.model / "model.safetensors"), options.model / "tokenizer.json")
    texts = minilm_texts.split(minilm_texts.read(options.texts), options.calibration, options.held_out, draw)
    calibration, held_out = map(minilm_texts.by_length, texts)
    layers = [layer for block in range(model.blocks) for place in READERS for layer in names(block, place)]
    budgets = [uniform_ranks(model.tensors, layers, keep) for keep in options.keep]
    tokens = sum(len(model.tokenizer.encode(text).ids) for text in calibration)
    compressed = list(METHODS[method](model, calibration, [ranks for ranks, _ in budgets]))
    peak = peak_memory()
    original = model.embed(held_out, batch=BATCH)
    rows = []
    for keep, (_, parameters), (tensors, seconds, shift) in zip(options.keep, budgets, compressed):
        other = copy.copy(model)
        other.tensors = tensors
        similarity = cosine(original, other.embed(held_out, batch=BATCH))
        row = {"method": method, "draw": draw, "keep": keep, "tokens": tokens, "parameters": parameters, "cosine": similarity}
        rows.append(row | {"threads": options.threads, "seconds": seconds, "shift": shift, "peak": peak, "peak_with_evaluation": peak_memory()})
    return rows


def table(rows):
    """Mean and range over the draws, in Markdown."""
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]
    draws = sorted({row["draw"] for row in rows})

    def cells(keep, quantity, text):
        for method in methods:
            values = [quantity(row) for row in rows if row["method"] == method and keep in (None, row["keep"])]
            yield text(values) if values else "–"

    def spread(values):
        return f"{sum(values) / len(values):.3f} ({min(values):.3f}–{max(values):.3f})"

    lines = [f"| parameters kept | {' | '.join(methods)} |", "|---|" + "---|" * len(methods)]
    for keep in sorted({row["keep"] for row in rows}, reverse=True):
        lines.append(f"| {keep:.0%} | ".replace("%", " %") + " | ".join(cells(keep, lambda row: row["cosine"], spread)) + " |")
    seconds = cells(None, lambda row: row["seconds"], lambda values: f"{min(values):.0f}–{max(values):.0f} s")
    memory = cells(None, lambda row: row["peak"] / 1e9, lambda values: f"{max(values):.2f} GB")
    lines += [f"| time | {' | '.join(seconds)} |", f"| peak memory | {' | '.join(memory)} |"]
    return "\n".join([*lines, "", f"Draws: {', '.join(map(str, draws))}."])


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("results", type=pathlib.Path)
    arguments.add_argument("model", type=pathlib.Path, nargs="?")
    arguments.add_argument("texts", type=pathlib.Path, nargs="?")
    arguments.add_argument("--keep", type=float, nargs="+", default=[0.8, 0.6, 0.4, 0.3])
    arguments.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3])
    arguments.add_argument("--calibration", type=int, default=CALIBRATION)
    arguments.add_argument("--held-out", type=int, default=HELD_OUT)
    arguments.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    arguments.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.child:
        method, draw = options.child
        return print(json.dumps(measure(method, int(draw), options)))
    rows = json.loads(options.results.read_text()) if options.results.exists() else []
    if options.texts:
        for draw in options.draws:
            for method in METHODS:
                done = subprocess.run([sys.executable, *sys.argv, "--child", method, str(draw)], stdout=subprocess.PIPE, check=True)
                new = json.loads(done.stdout)
                for row in new:
                    print(f"draw {draw}, {row['tokens']} tokens, {row['keep']:.0%}, {method}: {row['cosine']:.4f}, {row['seconds']:.1f} s", flush=True)
                replaced = {(row["method"], row["draw"], row["keep"]) for row in new}
                rows = [row for row in rows if (row["method"], row["draw"], row["keep"]) not in replaced] + new
                options.results.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
